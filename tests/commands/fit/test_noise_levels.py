"""``recon fit`` and ``recon reconstruct`` with one regularizer for all noise levels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from models import ConvexRidge, NoiseConditioned
from models.files.storage import save_regularizer
from recon.commands.main import main
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
