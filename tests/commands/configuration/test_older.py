"""Options of the Lightning modules that older configurations have in other places."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from recon.commands.configuration.older import current_configuration
from recon.commands.main import main

OLDER = Path(__file__).parents[2] / "models" / "files" / "older" / "bilevel.yaml"


def test_steps_go_to_the_group_that_they_belong_to_by_now() -> None:
    options = {"adjoint_steps": 3, "unrolled_steps": None, "mu": 0.5}
    config = {"model": {"class_path": "models.BilevelModule", "init_args": options}, "seed": [1, {"a": 2}]}
    found = current_configuration(config)
    assert found["model"]["init_args"] == {"mu": 0.5, "differentiation": {"adjoint_steps": 3}}
    assert found["seed"] == config["seed"]
    assert options == {"adjoint_steps": 3, "unrolled_steps": None, "mu": 0.5}


@pytest.mark.parametrize(("tune", "images"), [(True, {}), (False, {"tune_images": None})])
def test_no_tuning_is_no_image_to_tune_with(tune: bool, images: dict[str, None]) -> None:
    config = {"class_path": "AdversarialModule", "init_args": {"tune": tune}}
    assert current_configuration(config) == {"class_path": "AdversarialModule", "init_args": images}


def test_options_of_other_classes_stay() -> None:
    config = {"class_path": "own.Module", "init_args": {"tune": False, "adjoint_steps": 2}}
    assert current_configuration(config) == config


def test_an_older_configuration_trains_as_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load(OLDER.read_text())
    config["model"]["init_args"]["adjoint_steps"] = 0
    older = tmp_path / "older.yaml"
    older.write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(older)]) == 1
    assert "adjoint_steps is 0, but must be at least 1" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("option", "by_now"),
    [
        ("--model.adjoint_steps", "--model.differentiation.adjoint_steps"),
        ("--model.init_args.unrolled_steps", "--model.init_args.differentiation.unrolled_steps"),
        ("--model.tune", "--model.tune_images by now; null leaves the published weight"),
    ],
)
def test_options_of_the_command_line_say_what_they_are_called(
    option: str, by_now: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", str(OLDER), f"{option}=1"]) == 1
    assert f"{option} is {by_now}" in " ".join(capsys.readouterr().err.split())


def test_options_of_the_command_line_reach_the_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fit", "--config", str(OLDER), "--trainer.default_root_dir", str(tmp_path)]
    assert main([*arguments, "--model.differentiation.adjoint_steps", "0"]) == 1
    assert "adjoint_steps is 0, but must be at least 1" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("models.bilevel.BilevelModule", "models.BilevelModule"),
        ("models.regularizers.ridge.RidgeRegularizer", "models.regularizers.ridge.RidgeRegularizer"),
        ("recon.lower_level.lbfgs.LBFGS", "recon.lower_level.LBFGS"),
        ("my_package.Filters", "my_package.Filters"),
    ],
)
def test_classes_have_the_names_of_today_where_theirs_are_gone(path: str, expected: str) -> None:
    assert current_configuration({"class_path": path}) == {"class_path": expected}
