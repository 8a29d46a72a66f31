"""Checkpoints are whole or refused: every flipped bit is found, wherever it is."""

from __future__ import annotations

import io
import logging
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from models import TotalVariation
from models.files.checkpoint_file import CheckpointError, checkpoint_bytes, load_checkpoint
from models.files.storage import ModelFileError, load_regularizer
from recon.bilevel import MAID, BilevelObjective, Training
from recon.commands.reproduce import race_run

CONTENT: dict[str, Any] = {
    "params": [torch.linspace(0, 1, 7, dtype=torch.float64), torch.arange(3.0)],
    "state": {"step": 3, "loss": 0.25, "name": "a", "flags": [True, None]},
}


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_round_trip_and_other_programs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(checkpoint_bytes(CONTENT))
    assert same(load_checkpoint(path), CONTENT)
    assert same(torch.load(path, weights_only=True), CONTENT)
    assert zipfile.ZipFile(path).testzip() is None
    assert not caplog.records


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    content = checkpoint_bytes(CONTENT)
    bits = 8 * len(content)
    drawn = random.Random(0).sample(range(bits), 400)
    for bit in {*drawn, *range(64), *range(bits - 8 * 110, bits)}:  # the head, and all of what holds the checksum
        path.write_bytes(flipped(content, bit))
        with pytest.raises(CheckpointError, match=r"^\S*last\.ckpt: .*(damaged|truncated)"):
            load_checkpoint(path)


@pytest.mark.parametrize("end", [-1, -64, -77, -99, -100, 500, 0])
def test_cut_off_or_extended(tmp_path: Path, end: int) -> None:
    path = tmp_path / "last.ckpt"
    content = checkpoint_bytes(CONTENT)
    for changed in (content[:end], content + b"\0" * (abs(end) + 1)):
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"damaged|truncated"):
            load_checkpoint(path)


def test_older_files_load_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "last.ckpt"
    buffer = io.BytesIO()
    torch.save(CONTENT, buffer)
    path.write_bytes(buffer.getvalue())
    with caplog.at_level(logging.WARNING):
        assert same(load_checkpoint(path), CONTENT)
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}: has no checksum, as those of earlier versions; whether it is whole cannot be known"
    ]
    start = buffer.getvalue().index(CONTENT["params"][0].numpy().tobytes())
    for bit in range(8 * start, 8 * (start + 7 * 8), 5):  # of the parameters themselves: the archive's own checksum
        path.write_bytes(flipped(buffer.getvalue(), bit))
        with pytest.raises(CheckpointError, match=r"is damaged, the checksum of .*data/0 is wrong"):
            load_checkpoint(path)


@pytest.mark.parametrize("content", [torch.arange(3), [1], "text"])
def test_other_content(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(checkpoint_bytes(content))
    with pytest.raises(CheckpointError, match=f"holds a {type(content).__name__}"):
        load_checkpoint(path)


def test_models_are_not_taken_from_damaged_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    content = checkpoint_bytes(CONTENT)
    path.write_bytes(flipped(content, 8 * (len(content) // 2)))
    with pytest.raises(ModelFileError, match="is damaged"):
        load_regularizer(path)


def test_a_run_of_a_race_refuses_a_flipped_bit(tmp_path: Path) -> None:
    clean = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    objective = BilevelObjective(TotalVariation(-3.0, -3.0).double(), clean, clean + 0.1 * torch.randn_like(clean))
    run = Training(objective, MAID(objective.params))
    run.descend(budget=1e6, iterations=1)
    iterations = [race_run.Iteration(run.records[0], 1.0, [])]
    path = tmp_path / "a.ckpt"
    race_run.save(path, run, iterations, 30.0)
    content = path.read_bytes()
    assert race_run.resume(path, run)[0][0].record == iterations[0].record
    before = [p.detach().clone() for p in objective.params]
    for bit in random.Random(0).sample(range(8 * len(content)), 40):
        path.write_bytes(flipped(content, bit))
        with pytest.raises(ValueError, match=r"is no checkpoint of this run; delete it to begin the run again \(.+\)"):
            race_run.resume(path, run)
    assert all(map(torch.equal, objective.params, before))
