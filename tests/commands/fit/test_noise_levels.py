"""``recon fit`` and ``recon reconstruct`` with one regularizer for all noise levels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from models import ConvexRidge, NoiseConditioned
from models.files.storage import load_regularizer, save_regularizer
from recon.commands.main import main
from recon.lower_level import LBFGS, Energy
from recon.reconstruction import mirrored
from tests.commands.fit.test_fit import assert_equal, read_metrics
from tests.lower_level.problems import perturb


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four filters and their gains on three random pictures of 16x14 pixels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RECON_DEBUG", raising=False)
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for name in "abcde":
        smooth = np.kron(rng.integers(0, 256, (4, 2)), np.ones((4, 7))).astype(np.uint8)
        Image.fromarray(smooth).save(tmp_path / "pictures" / f"{name}.png")
    inner = {"class_path": "models.ConvexRidge", "init_args": {"filters": 4, "size": 3, "knots": 5, "spacing": 0.1}}
    regularizer = {"class_path": "models.NoiseConditioned", "init_args": {"regularizer": inner, "largest": 0.2}}
    data = {"train": "pictures", "val": "rest", "sigma": [0.02, 0.2], "dtype": "float64", "pictures": {"limit": 3}}
    content = {
        "model": {
            "class_path": "models.BilevelModule",
            "init_args": {"regularizer": regularizer, "optimizer": {"class_path": "recon.bilevel.MAID"}},
        },
        "data": {"class_path": "datasets.DenoisingDataModule", "init_args": data},
        "trainer": {"max_epochs": 4, "accelerator": "cpu", "enable_progress_bar": False},
    }
    path = tmp_path / "levels.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def error(capsys: pytest.CaptureFixture[str]) -> str:
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("recon")]
    return message


def test_a_run_goes_on_with_the_same_numbers(config: Path, tmp_path: Path) -> None:
    """Two iterations and two more are four; what was learned can be read and used."""
    fit = ["fit", "--config", str(config), "--trainer.default_root_dir"]
    assert main([*fit, str(tmp_path / "whole")]) == 0
    assert main([*fit, str(tmp_path / "parts"), "--trainer.max_epochs=2"]) == 0
    first, whole = tmp_path / "parts" / "version_0", tmp_path / "whole" / "version_0"
    assert main([*fit, str(tmp_path / "parts"), "--ckpt_path", str(first / "checkpoints" / "last.ckpt")]) == 0
    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, first)]
    assert_equal(states[0]["state_dict"], states[1]["state_dict"])
    rows, parts = read_metrics(whole), read_metrics(first)
    assert [row["loss"] for row in rows] == [row["loss"] for row in parts]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    regularizer, metadata = load_regularizer(whole / "regularizer.safetensors")
    assert isinstance(regularizer, NoiseConditioned)
    assert metadata["setting"]["noise"] == {"kind": "gaussian", "sigma": [0.02, 0.2]}
    start = NoiseConditioned(ConvexRidge(4, 3, 5, 0.1), 0.2)
    assert float((regularizer.log_gains - start.log_gains).detach().abs().max()) > 1e-6, "gains are learned"


def test_data_of_one_level_are_at_that_level(config: Path, tmp_path: Path) -> None:
    fit = ["fit", "--config", str(config), "--data.sigma=0.1", "--trainer.max_epochs=1"]
    assert main([*fit, "--trainer.default_root_dir", str(tmp_path / "run")]) == 0
    _, metadata = load_regularizer(tmp_path / "run" / "version_0" / "regularizer.safetensors")
    assert metadata["setting"]["noise"] == {"kind": "gaussian", "sigma": 0.1}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data.sigma=[0.25, 0.3]"], ["the noise level is 0.", "standard deviations from 0 to 0.2"]),
        (["--data.sigma=[0.2, 0.1]"], ["sigma is [0.2, 0.1]", "the smaller one first"]),
        (["--data.sigma=[0.2]"], ["sigma"]),
        (["--model.regularizer.largest=0"], ["needs 0 <= smallest < largest"]),
        (["--model.regularizer.knots=1"], ["knots is 1"]),
    ],
)
def test_errors_are_one_sentence(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: list[str]
) -> None:
    assert main(["fit", "--config", str(config), *options]) == 1
    message = error(capsys)
    assert message.startswith("recon fit: ")
    assert all(word in message for word in words), message
    assert not list(tmp_path.glob("outputs/**/version_*")), "a failed start leaves nothing"


def test_other_levels_are_other_data(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ["fit", "--config", str(config), "--trainer.default_root_dir", str(tmp_path / "run")]
    assert main([*fit, "--trainer.max_epochs=1"]) == 0
    last = str(tmp_path / "run" / "version_0" / "checkpoints" / "last.ckpt")
    capsys.readouterr()
    assert main([*fit, "--ckpt_path", last, "--data.sigma=[0.03, 0.2]"]) == 1
    assert "other training data" in error(capsys)


# --- recon reconstruct -----------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    inner = ConvexRidge(3, 3, knots=5, spacing=0.05, log_weight=-1.0, log_width=-1.0)
    made = perturb(NoiseConditioned(inner, 0.2, 0.01), 0, 0.2)
    metadata = {"operator": "Identity", "fidelity": "SquaredL2", "mu": 0.0}
    return save_regularizer(made, tmp_path / "levels", metadata)


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    true = np.kron(np.random.default_rng(1).random((4, 5)), np.ones((6, 6)))
    np.save(tmp_path / "noisy.npy", true + 0.1 * np.random.default_rng(0).standard_normal(true.shape))
    return tmp_path / "noisy.npy"


def reconstruct(model: Path, data: Path, *options: str) -> tuple[int, Path]:
    output = model.parent / "results"
    command = ["reconstruct", "--model", str(model), "--data", str(data), "--output", str(output), *options]
    return main(command), output


@pytest.mark.parametrize("option", ["--sigma", "--noise"])
def test_the_result_is_that_of_a_direct_solve(model: Path, noisy: Path, option: str) -> None:
    regularizer, _ = load_regularizer(model)
    y = mirrored(torch.from_numpy(np.load(noisy))[None, None], regularizer.margin)
    found = {}
    for sigma in (0.1, 0.05):
        status, output = reconstruct(model, noisy, option, str(sigma), "--accuracy", "1e-6")
        assert status == 0
        found[sigma] = torch.from_numpy(np.load(output / "noisy.npy"))
        exact = LBFGS()(Energy(y, regularizer.double().at(sigma)), y, 1e-9).x[0, 0, 2:-2, 2:-2]
        (entry,) = json.loads((output / "report.json").read_text())["images"]
        assert float((found[sigma] - exact).norm()) <= entry["error"] <= 1e-6
        assert entry["noise_level"] == sigma
        assert entry["regularizer"] == "NoiseConditioned(ConvexRidge)"
        assert f"noise level {sigma}, given" in entry["minimizer"]
    assert float((found[0.1] - found[0.05]).norm()) > 1e-2


@pytest.mark.parametrize("sigma", ["0.3", "0.001"])
def test_levels_outside_of_the_range_are_refused(
    model: Path, noisy: Path, capsys: pytest.CaptureFixture[str], sigma: str
) -> None:
    assert reconstruct(model, noisy, "--sigma", sigma)[0] == 1
    shown = capsys.readouterr()
    assert f"the noise level is {sigma}, but the model is for standard deviations from 0.01 to 0.2" in (
        shown.err + shown.out
    )
    assert "Traceback" not in shown.err


def test_estimates_outside_of_the_range_are_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "loud.npy", np.random.default_rng(0).standard_normal((24, 30)))
    assert reconstruct(model, tmp_path / "loud.npy")[0] == 1
    shown = capsys.readouterr()
    assert "but the model is for standard deviations from 0.01 to 0.2" in shown.err + shown.out
