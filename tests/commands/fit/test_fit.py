"""`recon fit | validate | test | predict`: round trip, kill and resume, bad input."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from models import FieldsOfExperts
from models.files.storage import load_regularizer
from recon.commands.main import main
from tests.commands.summaries import check_summary

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny problem: four Fields of Experts on three random pictures of 16x14 pixels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RECON_DEBUG", raising=False)
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for name in "abcde":
        smooth = np.kron(rng.integers(0, 256, (4, 2)), np.ones((4, 7))).astype(np.uint8)
        Image.fromarray(smooth).save(tmp_path / "pictures" / f"{name}.png")
    regularizer = {"class_path": "models.FieldsOfExperts", "init_args": {"filters": 4, "size": 3}}
    data = {"train": "pictures", "val": "rest", "test": "rest", "limit": 3, "sigma": 0.1, "dtype": "float64"}
    content = {
        "model": {
            "class_path": "models.BilevelModule",
            "init_args": {"regularizer": regularizer, "optimizer": {"class_path": "recon.bilevel.MAID"}},
        },
        "data": {"class_path": "datasets.DenoisingDataModule", "init_args": data},
        "trainer": {"max_epochs": 6, "check_val_every_n_epoch": 2, "accelerator": "cpu"},
    }
    (tmp_path / "configs" / "foe").mkdir(parents=True)
    path = tmp_path / "configs" / "foe" / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def read_metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def recon(*arguments: str, folder: Path, **options: Any) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    code = "import sys; from recon.commands.main import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(*arguments: str, folder: Path) -> None:
    """Run to the end; with the threads of :func:`recon`, because another number of them rounds otherwise."""
    process = recon(*arguments, folder=folder)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def test_round_trip(config: Path, tmp_path: Path) -> None:
    assert main(["fit", "--config", str(config)]) == 0
    run = tmp_path / "outputs" / "foe" / "tiny" / "version_0"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["iterations"] == 6
    assert summary["status"] == "iteration limit"
    assert summary["lower"] <= summary["loss"] <= summary["upper"]
    assert summary["config"] == str(config)
    check_summary(run, "fit", "iteration limit")
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert [bool(row["val_psnr"]) for row in rows] == [False, True] * 3
    assert float(rows[-1]["loss"]) == summary["loss"] < float(rows[0]["loss"])
    assert float(rows[-1]["val_psnr"]) == summary["val_psnr"]
    for name in ("images/filters.png", "images/reconstruction_1.png", "config.yaml", "checkpoints/best.ckpt"):
        assert (run / name).is_file()
    regularizer, metadata = load_regularizer(run / "regularizer.safetensors")
    assert isinstance(regularizer, FieldsOfExperts)
    assert metadata["mu"] == 0.0

    last = str(run / "checkpoints" / "last.ckpt")
    for command in ("validate", "test", "predict"):
        assert main([command, "--config", str(config), "--ckpt_path", last]) == 0
    validated = read_metrics(tmp_path / "outputs" / "foe" / "tiny" / "validate_0")
    assert float(validated[0]["val_psnr"]) == pytest.approx(summary["val_psnr"], rel=1e-12)
    for command, name in (("validate", "val_psnr"), ("test", "test_psnr")):
        folder = tmp_path / "outputs" / "foe" / "tiny" / f"{command}_0"
        saved = json.loads((folder / "summary.json").read_text())
        check_summary(folder, command)
        assert saved[name] == pytest.approx(float(read_metrics(folder)[0][name]), rel=1e-6)
    predicted = tmp_path / "outputs" / "foe" / "tiny" / "predict_0"
    assert sorted(p.name for p in predicted.iterdir()) == ["000_d.npy", "000_d.png", "001_e.npy", "001_e.png"]
    assert np.load(predicted / "000_d.npy").shape == (1, 16, 14)
    # the configuration that was written says everything
    (run / "config.yaml").rename(tmp_path / "again.yaml")
    assert main(["fit", "--config", "again.yaml", "--trainer.max_epochs=1"]) == 0
    # parameters that no epoch has validated are validated at the end
    assert read_metrics(tmp_path / "outputs" / "again" / "version_0")[0]["val_psnr"]


def test_kill_and_resume_is_bit_identical(config: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    fit = ["fit", "--config", str(config), "--trainer.default_root_dir"]
    finish(*fit, str(whole), folder=tmp_path)
    command = [*fit, str(killed)]
    process = recon(*command, "--trainer.max_epochs=10000", folder=tmp_path)
    run, last = killed / "version_0", killed / "version_0" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    # killed at no particular moment, somewhere after the second iteration has been logged
    while not (last.is_file() and len(read_metrics(run)) >= 2) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    reached = torch.load(last, weights_only=True)["global_step"]
    assert 1 <= reached < 6
    finish(*command, "--ckpt_path", "last", folder=tmp_path)

    expected, found = read_metrics(whole / "version_0"), read_metrics(run)
    assert [{**row} for row in found] == [{**row} for row in expected]
    a, b = (torch.load(r / "checkpoints" / "last.ckpt", weights_only=True) for r in (whole / "version_0", run))
    assert_equal(a["state_dict"], b["state_dict"])
    assert_equal(a["optimizer_states"], b["optimizer_states"])
    assert_equal(a["bilevel"], b["bilevel"])


def assert_equal(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model.regularizer=models.Nonsense"], ["model.regularizer", "Nonsense", "FieldsOfExperts"]),
        (["--model.regularizer=torch.nn.Linear"], ["model.regularizer", "torch.nn.Linear", "Regularizer"]),
        (["--model.optimizer.lrr=1"], ["model.optimizer", "lrr", "lr", "line_search"]),
        (["--model.optimizer.lr=-1"], ["lr is -1", "positive"]),
        (["--model.mu=-1"], ["mu is -1", "not negative"]),
        (["--model.chunk_size=0"], ["chunk_size is 0", "at least 1"]),
        (["--model.nope=1"], ["model", "nope", "regularizer"]),
        (["--data.dtype=float16"], ["data.dtype", "float16", "float64"]),
        (["--data.sigma=-1"], ["sigma is -1", "at least 0"]),
        (["--data.train=missing"], ["missing", "no such file or folder"]),
        (["--data.batch_size=1"], ["3 batches", "batch_size", "chunk_size"]),
        (["--trainer.max_epochs=x"], ["trainer.max_epochs", "int", "got x"]),
        (["--nonsense=3"], ["--nonsense=3"]),
        (["--ckpt_path=missing.ckpt"], ["missing.ckpt", "no such checkpoint"]),
        (["--ckpt_path=configs/foe/tiny.yaml"], ["tiny.yaml", "not a checkpoint"]),
        (["--ckpt_path=last"], ["last.ckpt", "no run"]),
        (["--config=missing.yaml"], ["missing.yaml"]),
        (
            ["--model.regularizer.potential=student_t", "--model.regularizer.log_weight=3"],
            ["strongly convex", "FieldsOfExperts"],
        ),
    ],
)
def test_errors_are_one_sentence(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: list[str]
) -> None:
    assert main(["fit", "--config", str(config), "--trainer.enable_progress_bar=false", *options]) == 1
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("recon")]
    assert message.startswith("recon fit: ")
    assert all(word in message for word in words), message
    assert not list(tmp_path.glob("outputs/*/*/version_*")), "a failed start leaves nothing"


def test_command_line_of_the_program(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nonsense"]) == 2
    assert "valid are fit, validate" in capsys.readouterr().err
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "recon COMMAND" in capsys.readouterr().out
    assert main(["fit", "--config", str(config), "--model.mu=-1", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--data.sigma", "0.2"], ["--model.mu=0.5"]])
def test_options_before_the_configuration_are_refused(
    config: Path, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The file would replace them."""
    assert main(["fit", *option, "--config", str(config)]) == 1
    name = option[0].partition("=")[0]
    assert f"{name} stands before --config, whose file could replace it; put it behind" in capsys.readouterr().err


def test_error_in_a_subprocess(config: Path, tmp_path: Path) -> None:
    process = recon("fit", "--config", str(config), "--model.regularizer=models.Nonsense", folder=tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert errors.count("recon fit: ") == 1


def test_a_checkpoint_belongs_to_its_model_and_problem(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = ["--config", str(config), "--trainer.enable_progress_bar=false", "--trainer.max_epochs=2"]
    assert main(["fit", *quiet]) == 0
    last = tmp_path / "outputs" / "foe" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    capsys.readouterr()

    def message(command: str, *options: str) -> str:
        assert main([command, *quiet, "--ckpt_path", str(last), *options]) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith(f"recon {command}: {last}: ")
        return error

    assert "FieldsOfExperts there, but models.TotalVariation here" in message(
        "fit", "--model.regularizer=models.TotalVariation"
    )
    assert "TotalVariation here" in message("test", "--model.regularizer=models.TotalVariation")
    assert "regularizer.log_weights" in message("validate", "--model.regularizer.filters=5")
    assert "smallest_width" in message("fit", "--model.regularizer.smallest_width=0.1")
    assert "optimizer.line_search.armijo is 0.0001 there, but 0.01 here" in message(
        "fit", "--model.optimizer.line_search.armijo=0.01"
    )
    assert "recon.bilevel.PublishedMAID" in message("fit", "--model.optimizer=recon.bilevel.PublishedMAID")
    assert "solver" in message("fit", "--model.solver=recon.lower_level.FISTA")
    assert "mu is 0.0 there, but 0.5 here" in message("fit", "--model.mu=0.5")
    assert "dtype" in message("fit", "--data.dtype=float32")
    assert "other training data" in message("fit", "--data.sigma=0.2", "--trainer.max_epochs=3")
    assert main(["fit", *quiet, "--ckpt_path", str(last)]) == 1
    assert "has made 2 iterations already, and max_epochs of the trainer is 2" in capsys.readouterr().err
    # another noise is a fair test, and a checkpoint that could not be resumed still holds
    assert main(["test", *quiet, "--ckpt_path", str(last), "--data.sigma=0.2"]) == 0
    assert main(["fit", *quiet, "--ckpt_path", str(last), "--trainer.max_epochs=3"]) == 0
