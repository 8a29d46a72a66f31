"""Two programs in one folder: the second is refused, and programs that have died keep nobody out."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from recon.commands.main import main
from recon.commands.output import lock
from recon.commands.output.lock import LOCK, LockedError, locked

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = "import sys; from recon.commands.main import main; sys.exit(main(sys.argv[1:]))"
HOLD = (
    "import pathlib, sys, time; from recon.commands.output.lock import locked\n"
    "with locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(600)"
)


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # tests that run in the background of a shell ignore SIGINT, and what they start would
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {code}"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without flock."""

    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)


def holds_alone(folder: Path) -> None:
    with locked(folder):
        refusal = pytest.raises(LockedError, match=rf"out: another program \(process {os.getpid()} on ")
        with refusal as caught, locked(folder):
            pass
        assert f"delete {folder / LOCK}" in str(caught.value)
        (folder / "result").write_text("")
    assert [p.name for p in folder.iterdir()] == ["result"]
    with locked(folder):
        pass


def test_one_at_a_time(tmp_path: Path) -> None:
    holds_alone(tmp_path / "out")


@pytest.mark.usefixtures("by_name")
def test_one_at_a_time_without_flock(tmp_path: Path) -> None:
    holds_alone(tmp_path / "out")


def test_nothing_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wrong"), locked(tmp_path / "out"):
        raise ValueError("wrong")
    assert not (tmp_path / "out").exists()


def test_a_killed_program_keeps_nobody_out(tmp_path: Path) -> None:
    with start(HOLD, str(tmp_path)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=f"process {process.pid} on"), locked(tmp_path):
            pass
        process.kill()
    assert (tmp_path / LOCK).is_file()
    with locked(tmp_path):
        pass
    assert not (tmp_path / LOCK).exists()


def entry(**changes: object) -> str:
    """The lock of a process that runs: this one."""
    return json.dumps({**lock._self(), **changes})


@pytest.mark.usefixtures("by_name")
@pytest.mark.parametrize(
    "stale",
    [entry(process=2**22 + 1), entry(started="1"), entry(process="x"), entry(process=None), "", "[" * 9999],
    ids=["gone", "of another start", "no number", "no process", "empty", "brackets"],
)
def test_stale_locks_without_flock(tmp_path: Path, stale: str) -> None:
    """Of processes that are gone, of other processes with the same number, and what is no lock."""
    (tmp_path / LOCK).write_text(stale)
    with locked(tmp_path), pytest.raises(LockedError), locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("by_name")
def test_locks_of_other_machines_without_flock(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(entry(host=f"not {socket.gethostname()}", process=2**22 + 1))
    with pytest.raises(LockedError, match="on not "), locked(tmp_path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == [LOCK]


@pytest.mark.usefixtures("by_name")
def test_a_lock_that_was_replaced_is_not_taken_away(tmp_path: Path) -> None:
    """Two programs see one stale lock; the slower one must not remove the new lock of the faster one."""
    (tmp_path / LOCK).write_text(entry())
    lock._take_away(tmp_path / LOCK, {"process": 1})
    assert (tmp_path / LOCK).read_text() == entry()
    assert len(list(tmp_path.iterdir())) == 1


def test_what_killed_programs_left_is_removed(tmp_path: Path) -> None:
    kept = ("a.npy", ".hidden", "notes.part", ".x.part", ".a.npy.0123456g.part")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "other").mkdir()
    for name in (*kept, ".a.npy.0123abcd.part", "checkpoints/.last.ckpt.deadbeef.part", "other/.b.npy.0123abcd.part"):
        (tmp_path / name).write_text("")
    (tmp_path / "other" / LOCK).write_text("")  # of a program that writes there
    with locked(tmp_path):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "checkpoints", "other"])
    assert not list((tmp_path / "checkpoints").iterdir())
    assert (tmp_path / "other" / ".b.npy.0123abcd.part").is_file()


def test_two_reconstructions_with_one_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", np.linspace(0, 1, 64).reshape(8, 8) + 0.1 * np.eye(8))
    command = ["reconstruct", "--method", "tv", "--data", str(tmp_path / "a.npy"), "--output", str(tmp_path / "out")]
    with start(HOLD, str(tmp_path / "out")) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert main(command) == 1
        assert f"process {process.pid}" in capsys.readouterr().err
        assert [p.name for p in (tmp_path / "out").iterdir()] == [LOCK]
        process.kill()
    assert main(command) == 0


TRAINING = """
model:
  class_path: models.BilevelModule
  init_args:
    regularizer: {class_path: models.TotalVariation}
    optimizer: {class_path: recon.bilevel.MAID}
data:
  class_path: datasets.DenoisingDataModule
  init_args: {train: pictures, val: pictures, test: pictures, sigma: 0.1, n_patches: 1, patch_size: 12}
trainer: {default_root_dir: runs, limit_val_batches: 0, enable_progress_bar: false}
"""


def test_two_resumes_of_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second is refused and changes nothing."""
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    np.save("pictures/a.npy", np.random.default_rng(0).random((16, 16)))
    Path("c.yaml").write_text(TRAINING)
    assert main(["fit", "--config", "c.yaml", "--trainer.max_epochs", "1"]) == 0, capsys.readouterr().err
    run = Path("runs/version_0")
    assert not (run / LOCK).exists()
    command = ["fit", "--config", "c.yaml", "--trainer.max_epochs", "2", "--ckpt_path", "last"]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with start(HOLD, str(run)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert main(command) == 1
        assert f"runs/version_0: another program (process {process.pid}" in capsys.readouterr().err
        process.kill()
    (run / LOCK).unlink()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert main(command) == 0
    with (run / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_program_alike(tmp_path: Path, number: signal.Signals) -> None:
    """In one sentence, without the lock, without half-written files."""
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((400, 400)))
    options = ("--method", "smoothed-tv", "--weight", "0.1", "--accuracy", "1e-9", "--smoothing", "1e-6")
    files = ("--data", str(tmp_path / "a.npy"), "--output", str(tmp_path / "out"))
    with start(PROGRAM, "reconstruct", *files, *options) as process:
        wait_for((tmp_path / "out" / LOCK).exists)
        time.sleep(1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 128 + number
    assert errors.strip().splitlines()[-1].startswith("recon: interrupted")
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
