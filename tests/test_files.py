"""Files are whole or absent, and hold finite numbers only."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from recon.files import NotFiniteError, write_files
from recon.plotting.figures import comparison_figure
from recon.plotting.panels import Panel


def test_kinds_by_suffix(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((4, 6))
    picture = np.stack([values, 2 * values - 0.5, values], -1)
    files = {tmp_path / "a.npy": values, tmp_path / "new" / "a.tif": values, tmp_path / "a.png": picture}
    write_files({**files, tmp_path / "a.json": {"x": 1.5, "y": [None, "ü"]}, tmp_path / "a.txt": b"text"})
    assert (np.load(tmp_path / "a.npy") == values).all()
    assert (tifffile.imread(tmp_path / "new" / "a.tif") == values.astype(np.float32)).all()
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    assert np.abs(pixels / 255 - picture.clip(0, 1)).max() <= 0.5 / 255 + 1e-12
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1.5, "y": [None, "ü"]}
    assert (tmp_path / "a.txt").read_bytes() == b"text"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("suffix", [".npy", ".tif", ".png"])
def test_arrays_that_are_not_finite(tmp_path: Path, suffix: str, bad: float) -> None:
    values = np.ones((3, 4))
    values[1, 2] = bad
    with pytest.raises(NotFiniteError, match=rf"a\{suffix}: not written: 1 of 12 values are NaN or infinite"):
        write_files({tmp_path / "first.txt": b"", tmp_path / f"a{suffix}": values})
    assert not list(tmp_path.iterdir())


def test_complex_arrays_that_are_not_finite(tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match=r"k\.npy"):
        write_files({tmp_path / "k.npy": np.array([1 + 1j, complex(0, math.nan)])})


def test_numbers_beyond_float32(tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match=r"a\.tif: not written, its values reach 1e\+39, more than float32 holds"):
        write_files({tmp_path / "a.tif": np.array([[0.0, -1e39]])})


def test_reports_name_the_entry(tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match=r"r\.json: not written, images\[1\]\.error is inf"):
        write_files({tmp_path / "r.json": {"images": [{"error": 0.5}, {"error": math.inf}]}})
    assert not list(tmp_path.iterdir())


def test_pictures_of_nothing_finite() -> None:
    image = torch.zeros(1, 8, 8)
    image[0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="picture of TV: not written: 1 of 64 values"):
        comparison_figure([[Panel("TV", image)]]).savefig(io.BytesIO())
