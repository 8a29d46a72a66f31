"""Checkpoints and configurations that were written before the files of the project moved (folder ``older``)."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import models
from models.files.storage import load_model
from models.files.trust import OWN, find_class
from recon.commands.main import main
from recon.names import current_name

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


@pytest.mark.parametrize("name", sorted(OWN))
def test_every_model_has_its_older_name(name: str) -> None:
    found = find_class(name)
    module = found.__module__.rpartition(".")[2]
    assert find_class(f"models.{module}.{found.__name__}") is found


def test_configurations_may_have_the_older_names_of_classes(tmp_path: Path) -> None:
    older = tmp_path / "older.yaml"
    text = (FOLDER / "bilevel.yaml").read_text().replace("models.BilevelModule", "models.bilevel.BilevelModule")
    older.write_text(text.replace("models.FieldsOfExperts", "models.fields_of_experts.FieldsOfExperts"))
    assert main(["fit", "--config", str(older), "--trainer.default_root_dir", str(tmp_path)]) == 0


def test_options_learn_the_new_name_of_a_class(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", str(FOLDER / "bilevel.yaml"), "--model", "models.bilevel.BilevelModule"]) == 1
    assert "models.bilevel.BilevelModule is called models.BilevelModule by now" in capsys.readouterr().err


def test_classes_that_older_configurations_name_are_public() -> None:
    for older in ("models.supervised.PublishedAdam", "models.critic_training.CriticAdam", "models.saddle.SaddleModule"):
        package, _, name = current_name(older).rpartition(".")
        assert package == "models"
        assert hasattr(models, name)
