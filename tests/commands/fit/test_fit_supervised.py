"""`recon fit | test | predict` with a network that reconstructs: round trip, kill and resume (of a critic, too)."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from models import UNet
from models.files.storage import load_reconstructor
from recon.commands.main import main
from tests.commands.fit.test_fit import assert_equal, config, finish, read_metrics, recon

__all__ = ["config"]
CONFIGS = Path(__file__).resolve().parents[3] / "configs"


@pytest.fixture
def supervised(config: Path) -> Path:
    """The tiny problem of the other tests, with a tiny U-Net: three pictures, six passes of two steps."""
    content = yaml.safe_load(config.read_text())
    network = {"class_path": "models.UNet", "init_args": {"scales": 2, "channels": 2}}
    options = {"reconstructor": network, "batch_size": 2, "steps": 12}
    content["model"] = {"class_path": "models.SupervisedModule", "init_args": options}
    content["data"]["init_args"]["dtype"] = "float32"
    config.write_text(yaml.safe_dump(content))
    return config


def test_round_trip(supervised: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", str(supervised)]) == 0
    run = tmp_path / "outputs" / "foe" / "tiny" / "version_0"
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["iterations"], summary["val_error"]) == ("all steps made", 12, None)
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == ["2", "4", "6", "8", "10", "12"]
    assert [bool(row["val_psnr"]) for row in rows] == [False, True] * 3
    assert (run / "images" / "reconstruction_1.png").is_file()
    network, metadata = load_reconstructor(run / "reconstructor.safetensors")
    assert isinstance(network, UNet)
    assert metadata["setting"]["noise"] == {"kind": "gaussian", "sigma": 0.1}
    assert metadata["training"]["val_psnr"] == summary["val_psnr"]
    last = str(run / "checkpoints" / "last.ckpt")
    for command in ("validate", "test", "predict"):
        assert main([command, "--config", str(supervised), "--ckpt_path", last]) == 0
    folder = tmp_path / "outputs" / "foe" / "tiny"
    tested = json.loads((folder / "test_0" / "summary.json").read_text())
    assert tested["test_psnr"] > 5
    assert np.load(folder / "predict_0" / "000_d.npy").shape == (1, 16, 14)
    capsys.readouterr()
    assert main(["fit", "--config", str(supervised), "--ckpt_path", last]) == 1
    assert "nothing is left to do: the checkpoint has made 12 iterations already" in capsys.readouterr().err
    # training goes on from a file
    content = yaml.safe_load(supervised.read_text())
    start = {"class_path": "models.pretrained_reconstructor", "init_args": {"path": str(run / "reconstructor")}}
    content["model"]["init_args"] |= {"reconstructor": start, "steps": 2}
    (tmp_path / "further.yaml").write_text(yaml.safe_dump(content))
    assert main(["fit", "--config", "further.yaml"]) == 0, capsys.readouterr().err


@pytest.fixture
def adversarial(config: Path) -> Path:
    """The tiny problem of the other tests, with a small critic; the weight is tuned on one picture in the end."""
    content = yaml.safe_load(config.read_text())
    network = {"class_path": "models.ICNN", "init_args": {"filters": 2, "size": 3, "inner_size": 3, "width": 0.1}}
    options = {"regularizer": network, "mu": 0.01, "tune_images": 1, "reconstruction_accuracy": 0.5}
    content["model"] = {"class_path": "models.AdversarialModule", "init_args": options}
    config.write_text(yaml.safe_dump(content))
    return config


@pytest.mark.parametrize(
    ("kind", "more", "part"),
    [
        ("supervised", ["--model.steps=200", "--trainer.max_epochs=1000"], "supervised"),
        ("adversarial", ["--trainer.max_epochs=200"], "bilevel"),
    ],
)
def test_kill_and_resume_is_bit_identical(
    kind: str, more: list[str], part: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    fit = ["fit", "--config", str(request.getfixturevalue(kind)), *more, "--trainer.default_root_dir"]
    finish(*fit, str(whole), folder=tmp_path)
    command = [*fit, str(killed)]
    process = recon(*command, folder=tmp_path)
    run, last = killed / "version_0", killed / "version_0" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    # killed at no particular moment, somewhere after the second pass has been logged
    while not (last.is_file() and len(read_metrics(run)) >= 2) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 1 <= torch.load(last, weights_only=True)["global_step"] < 200
    finish(*command, "--ckpt_path", "last", folder=tmp_path)
    assert read_metrics(run) == read_metrics(whole / "version_0")
    a, b = (torch.load(r / "checkpoints" / "last.ckpt", weights_only=True) for r in (whole / "version_0", run))
    for name in ("state_dict", "optimizer_states", part):
        assert_equal(a[name], b[name])


@pytest.mark.parametrize("name", ["ct/lpd", "ct/unet", "mri/lpd", "mri/unet"])
def test_configurations_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name.startswith("ct"):
        pytest.importorskip("astra")
    monkeypatch.chdir(tmp_path)
    few = ["--model.steps=4", "--trainer.limit_val_batches=1", "--trainer.accelerator=cpu"]
    assert main(["fit", "--config", str(CONFIGS / f"{name}_quick.yaml"), *few]) == 0
    # the large ones, on small pictures; the same network and noise
    data: Any = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["data"]
    reference = yaml.safe_load((CONFIGS / name.split("/")[0] / "foe.yaml").read_text())["data"]
    assert data == reference
    side = ["--data.crop_size=32"] if name.startswith("mri") else ["--data.size=32"]
    small = ["--data.train=builtin", "--data.val=builtin", "--data.limit=2", *side]
    assert main(["fit", "--config", str(CONFIGS / f"{name}.yaml"), *few, *small]) == 0, capsys.readouterr().err
