"""What is noticed in the data is on the screen and in the report of ``recon reconstruct``, whatever the method."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.modules.sinograms import SinogramDataModule
from datasets.scans.reading import read_sinogram
from datasets.scans.scan import Scan
from tests.commands.reconstruct.slices import run

NOTICED = "scan.npz: something was noticed"


@pytest.fixture
def scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small scan whose reader notices something."""
    pytest.importorskip("astra", reason="needs the extra ct")

    def noticing(path: Path, **options: Any) -> Scan:
        return replace(read_sinogram(path, **options), warnings=(NOTICED,))

    monkeypatch.setattr("recon.commands.reconstruct.tasks.ct_data.read_sinogram", noticing)
    monkeypatch.setattr("datasets.modules.sinograms.read_sinogram", noticing)
    values = np.random.default_rng(0).random((8, 12))
    np.savez(tmp_path / "scan.npz", sinogram=values, angles_degrees=np.arange(8) * 22.5, detector_spacing=10.0)
    return tmp_path / "scan.npz"


@pytest.mark.parametrize("method", [("fbp",), ("tv", "--weight", "0.1")])
def test_warnings_of_readers(scan: Path, method: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    _, _, report = run(scan, "--method", *method)
    assert report["warnings"] == [NOTICED]
    assert f"warning: {NOTICED}" in capsys.readouterr().err


def test_warnings_of_readers_in_prediction(scan: Path) -> None:
    with pytest.warns(UserWarning, match=NOTICED):
        SinogramDataModule(scan, size=8)
