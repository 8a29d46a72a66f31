"""Slices in NIfTI-1: values, order of the axes, pixel sizes, and what is refused; nibabel agrees."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.readers.nifti import read_nifti
from datasets.readers.pictures import DataError

_CODES = {"uint8": 2, "int16": 4, "int32": 8, "float32": 16, "float64": 64, "uint16": 512, "complex64": 32}


def write_nifti(
    path: Path,
    image: np.ndarray,
    spacing: tuple[float, float] = (0.0, 0.0),
    order: str = "<",
    scaling: tuple[float, float] = (0.0, 0.0),
    **changes: Any,
) -> Path:
    """An image (rows, columns), the columns along the first axis of NIfTI; ``spacing`` of rows and columns."""
    header = bytearray(348)
    rows, columns = image.shape
    values = {
        "size": ("i", 0, (348,)),
        "dim": ("8h", 40, (2, columns, rows, 1, 1, 1, 1, 1)),
        "type": ("hh", 70, (_CODES[image.dtype.name], 8 * image.dtype.itemsize)),
        "pixdim": ("8f", 76, (1.0, spacing[1], spacing[0], 1.0, 0.0, 0.0, 0.0, 0.0)),
        "start": ("f", 108, (352.0,)),
        "scaling": ("ff", 112, scaling),
        "units": ("B", 123, (2,)),
        "magic": ("4s", 344, (b"n+1\0",)),
    }
    for name, (kind, place, given) in values.items():
        struct.pack_into(order + kind, header, place, *changes.get(name, given))
    content = bytes(header) + b"\0" * 4 + image.astype(image.dtype.newbyteorder(order)).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def _image(kind: str = "int16") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (5, 7)).astype(kind)


@pytest.mark.parametrize("kind", ["uint8", "int16", "int32", "float32", "float64", "uint16"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_values_and_pixels(tmp_path: Path, kind: str, order: str) -> None:
    image = _image(kind)
    for name in ("a.nii", "a.nii.gz"):
        found = read_nifti(write_nifti(tmp_path / name, image, (0.5, 1.25), order))
        np.testing.assert_array_equal(found.image.numpy(), image)
        assert found.pixel_size == (0.5, 1.25)
        scaled = read_nifti(write_nifti(tmp_path / name, image, order=order, scaling=(0.5, -3.0)))
        np.testing.assert_array_equal(scaled.image.numpy(), 0.5 * image.astype(np.float64) - 3)
        assert scaled.pixel_size is None


def test_units_of_pixels(tmp_path: Path) -> None:
    for unit, factor in ((0, 1.0), (1, 1000.0), (2, 1.0), (3, 0.001), (10, 1.0)):  # 10: mm, and seconds
        found = read_nifti(write_nifti(tmp_path / "a.nii", _image(), (0.5, 2.0), units=(unit,)))
        assert found.pixel_size == pytest.approx((0.5 * factor, 2.0 * factor))


def test_nibabel_agrees(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    image = _image()
    nibabel.save(nibabel.Nifti1Image(image.T, np.diag([1.25, 0.5, 3.0, 1.0])), tmp_path / "a.nii.gz")
    found = read_nifti(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(found.image.numpy(), image)
    assert found.pixel_size == (0.5, 1.25)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": (3, 7, 5, 4, 1, 1, 1, 1)}, "is a volume or series of 7x5x4 values"),
        ({"dim": (4, 7, 5, 1, 9, 1, 1, 1)}, "is a volume or series of 7x5x1x9 values"),
        ({"dim": (1, 7, 5, 1, 1, 1, 1, 1)}, "valid are two positive ones"),
        ({"dim": (2, 7, -5, 1, 1, 1, 1, 1)}, "valid are two positive ones"),
        ({"dim": (2, 7, 50, 1, 1, 1, 1, 1)}, "ends after 70 of 700 bytes"),
        ({"type": (32, 64)}, "holds complex values; valid are real numbers"),
        ({"type": (128, 24)}, "holds colours; valid are real numbers"),
        ({"type": (4, 8)}, "says 8 bits"),
        ({"magic": (b"ni1\0",)}, "header and values are in two files"),
        ({"magic": (b"n+2\0",)}, "no header of NIfTI-1"),
        ({"size": (540,)}, "no header of NIfTI-1"),
        ({"start": (float("nan"),)}, "that cannot be"),
        ({"scaling": (2.0, float("inf"))}, "NaN or infinite"),
        ({"pixdim": (1.0, -1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)}, "valid are lengths"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_nifti(tmp_path / "a.nii", _image(), **changes)
    with pytest.raises(DataError, match=rf"a\.nii: .*{message}"):
        read_nifti(tmp_path / "a.nii")


def test_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_nifti(tmp_path / "none.nii")
    (tmp_path / "a.nii").write_bytes(b"12")
    (tmp_path / "a.nii.gz").write_bytes(write_nifti(tmp_path / "b.nii.gz", _image()).read_bytes()[:60])
    for name in ("a.nii", "a.nii.gz"):
        with pytest.raises(DataError, match="cannot be read as NIfTI"):
            read_nifti(tmp_path / name)
