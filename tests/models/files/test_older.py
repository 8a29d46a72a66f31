"""Checkpoints and configurations that were written before the files of the project moved (folder ``older``)."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml

import models
from models.files.storage import load_model
from models.files.trust import OLDER, OWN, find_class
from recon.commands.main import main

FOLDER = Path(__file__).parent / "older"
LEARNED = {
    "adam": models.ConvexRidge,
    "adversarial": models.ICNN,
    "bilevel": models.FieldsOfExperts,
    "hoag": models.TotalVariation,
    "saddle": models.LearnedTV,
    "supervised": models.UNet,
}


@pytest.mark.parametrize("name", LEARNED)
def test_training_goes_on_from_an_older_checkpoint(name: str, tmp_path: Path) -> None:
    arguments = ["fit", "--config", str(FOLDER / f"{name}.yaml"), "--ckpt_path", str(FOLDER / f"{name}.ckpt")]
    assert main([*arguments, "--trainer.max_epochs", "2", "--trainer.default_root_dir", str(tmp_path)]) == 0
    (metrics,) = tmp_path.rglob("metrics.csv")
    with metrics.open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == [4 if name == "supervised" else 2]


@pytest.mark.parametrize("name", LEARNED)
def test_an_older_checkpoint_is_a_model(name: str) -> None:
    assert type(load_model(FOLDER / f"{name}.ckpt")[0]) is LEARNED[name]


def test_another_problem_is_noticed_whatever_its_classes_were_called(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["fit", "--config", str(FOLDER / "bilevel.yaml"), "--ckpt_path", str(FOLDER / "bilevel.ckpt")]
    changed = ["--model.solver", "recon.lower_level.FISTA", "--trainer.default_root_dir", str(tmp_path)]
    assert main([*arguments, *changed]) == 1
    assert "solver is recon.lower_level.lbfgs.LBFGS there, but recon.lower_level.FISTA here" in capsys.readouterr().err


def test_every_model_has_its_older_name() -> None:
    assert set(OLDER.values()) == OWN
    for older, name in OLDER.items():
        assert find_class(older) is find_class(name)


def test_configurations_learn_the_new_name_of_a_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    older = tmp_path / "older.yaml"
    text = (FOLDER / "bilevel.yaml").read_text()
    older.write_text(text.replace("models.BilevelModule", "models.bilevel.BilevelModule"))
    assert main(["fit", "--config", str(older)]) == 1
    assert "models.bilevel.BilevelModule is called models.BilevelModule by now" in capsys.readouterr().err


def test_configurations_with_all_options_on_one_level_are_read(tmp_path: Path) -> None:
    """As an older version wrote it into the folder of its run, with the options that MAID did not use."""
    flat = {"certificate": "goal_oriented", "direction": "lbfgs", "accuracy": "predicted", "lr": 0.1, "armijo": 0.0001}
    flat |= {"solution_accuracy": 1.0, "adjoint_accuracy": 1.0, "slack": 0.9, "step_shrink": 0.5, "step_growth": 1.2}
    flat |= {"accuracy_shrink": 0.5, "accuracy_growth": 1.05, "line_search": 12, "descent_check": False, "eta": 0.5}
    flat |= {"memory": 4, "largest_growth": 4.0, "tolerance": 0.0}
    content = yaml.safe_load((FOLDER / "bilevel.yaml").read_text())
    content["model"]["init_args"]["optimizer"] = {"class_path": "recon.bilevel.MAID", "init_args": flat}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(content))
    arguments = ["fit", "--config", str(config), "--ckpt_path", str(FOLDER / "bilevel.ckpt")]
    with pytest.warns(FutureWarning, match=r"the option armijo is called line_search\.armijo by now"):
        assert main([*arguments, "--trainer.max_epochs", "2", "--trainer.default_root_dir", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("armijo=0.1", "armijo is called line_search.armijo by now"),
        ("slack=0.1", "slack is called limits.slack by now"),
        ("line_search=5", "model.optimizer.line_search: 5 is no group of options with their values"),
        ("accuracy=schedule", "MAID with the accuracy schedule is PublishedMAID by now"),
    ],
)
def test_the_command_line_learns_the_new_place_of_an_option(
    option: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["fit", "--config", str(FOLDER / "bilevel.yaml"), "--model.optimizer", "recon.bilevel.MAID"]
    assert main([*arguments, f"--model.optimizer.{option}"]) == 1
    assert words in capsys.readouterr().err
