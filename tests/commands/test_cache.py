from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recon.commands.main import main
from recon.operators.tomography import cache as matrix_cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RECON_CACHE_GB", "0.5")
    return tmp_path / "cache"


def test_list_and_clear(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "list"]) == 0
    assert "0 B of at most 500 MB" in " ".join(capsys.readouterr().out.split())
    for name, count in (("a", 1000), ("b", 3000)):
        matrix_cache.store(name, {"description": f"scan {name}"}, {"values": np.zeros(count, np.float32)})
    other = cache / "notes.txt"
    other.write_text("not ours")
    assert main(["cache", "list"]) == 0
    shown = capsys.readouterr().out
    assert "scan a" in shown
    assert "scan b" in shown
    assert "12.1 kB" in shown
    size = sum(path.stat().st_size for path in cache.glob("*.matrix"))
    assert main(["cache", "clear"]) == 0
    assert f"{size / 1000:.3g} kB freed" in " ".join(capsys.readouterr().out.split())
    assert [path.name for path in cache.iterdir()] == ["notes.txt"]


def test_a_damaged_file_is_listed_as_such(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache.mkdir()
    (cache / "x.matrix").write_bytes(b"junk")
    assert main(["cache", "list"]) == 0
    assert "damaged" in capsys.readouterr().out


def test_bad_limit_and_bad_action(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "delete"]) == 2
    monkeypatch.setenv("RECON_CACHE_GB", "much")
    assert main(["cache", "list"]) == 1
    assert "RECON_CACHE_GB must be a number of gigabytes, got 'much'" in capsys.readouterr().err
