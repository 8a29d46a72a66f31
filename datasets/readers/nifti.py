"""Reader of single slices in NIfTI-1 files (``.nii``, ``.nii.gz``), with the size of their pixels."""

from __future__ import annotations

import gzip
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from datasets.errors import DataError, check_finite, reading
from datasets.readers.limits import check_memory

_HEADER = 348
# Codes of the types of values (nifti1.h); complex ones, colours and 128 bits are not read.
_TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_OTHERS = {1: "bits", 32: "complex values", 128: "colours", 1536: "float128", 1792: "complex values", 2304: "colours"}
# Units of lengths, the lower three bits of xyzt_units: metres, mm, micrometres; 0 is not given and taken as mm.
_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


@dataclass(frozen=True)
class NiftiSlice:
    """A slice as it is stored: second index (j) down, first index (i) to the right."""

    image: Tensor
    """(H, W) float64, scl_slope × stored + scl_inter."""
    pixel_size: tuple[float, float] | None
    """Between rows and between columns in mm; None if the file does not tell."""


def is_nifti(path: Path) -> bool:
    """Whether a file is NIfTI by its name."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def read_nifti(path: str | Path) -> NiftiSlice:
    """Read one slice: a file with one image of two dimensions, or more of which all others are 1.

    Parameters
    ----------
    path
        NIfTI-1 in one file, of either byte order, gzip or not.

    Raises
    ------
    DataError
        no such file; no NIfTI-1, or header and values in two files; a volume or a series; complex values and colours; a
        file that ends too early; values that are not finite.
    """
    path = Path(path)
    with reading(path, "NIfTI"), _opened(path) as file:
        data = file.read(_HEADER)
        order = _byte_order(data, path)
        shape = _shape(struct.unpack(order + "8h", data[40:56]), path)
        code, bits = struct.unpack(order + "hh", data[70:74])
        if code not in _TYPES:
            raise DataError(f"{path}: holds {_OTHERS.get(code, f'values of type {code}')}; valid are real numbers")
        kind = np.dtype(order + _TYPES[code])
        if bits != 8 * kind.itemsize:
            raise DataError(f"{path}: says {bits} bits for each value, but {kind.name} has {8 * kind.itemsize}")
        spacing = struct.unpack(order + "8f", data[76:108])
        start, slope, offset = struct.unpack(order + "fff", data[108:120])
        values = _values(file, start, kind, shape, path).astype(np.float64)
    if slope != 0 and math.isfinite(slope):  # 0: values are as stored
        values = values * slope + (offset if math.isfinite(offset) else math.nan)
    check_finite(values, path)
    return NiftiSlice(torch.from_numpy(values), _pixel_size(spacing, data[123], path))


def _opened(path: Path) -> BinaryIO | gzip.GzipFile:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


def _byte_order(data: bytes, path: Path) -> str:
    """The order of bytes in a header, as ``struct`` calls it."""
    order = next((o for o in "<>" if len(data) == _HEADER and struct.unpack(o + "i", data[:4])[0] == _HEADER), None)
    magic = data[344:348]
    if order is None or magic != b"n+1\0":
        what = "header and values are in two files" if magic == b"ni1\0" else "it has no header of NIfTI-1"
        raise DataError(f"{path}: cannot be read as NIfTI ({what}); valid is NIfTI-1 in one file")
    return order


def _shape(dimensions: tuple[int, ...], path: Path) -> tuple[int, int]:
    """Rows and columns."""
    number, *sizes = dimensions
    if not 2 <= number <= 7 or min(sizes[:number]) < 1:
        raise DataError(f"{path}: has the dimensions {sizes[: max(0, min(number, 7))]}; valid are two positive ones")
    if math.prod(sizes[2:number]) != 1:
        raise DataError(
            f"{path}: is a volume or series of {'x'.join(str(n) for n in sizes[:number])} values; give its slices as "
            "files of their own"
        )
    return sizes[1], sizes[0]


def _values(
    file: BinaryIO | gzip.GzipFile, start: float, kind: np.dtype[np.generic], shape: tuple[int, int], path: Path
) -> np.ndarray:
    length = math.prod(shape) * kind.itemsize
    if not _HEADER <= start <= 2**30 or start != int(start):
        raise DataError(f"{path}: says that {shape[0]}x{shape[1]} values begin at byte {start:g}; that cannot be")
    check_memory(path, "a slice", shape, kind.itemsize)
    file.seek(int(start))
    content = file.read(length)
    if len(content) != length:
        raise DataError(f"{path}: ends after {len(content)} of {length} bytes of values")
    return np.frombuffer(content, kind).reshape(shape)


def _pixel_size(spacing: tuple[float, ...], units: int, path: Path) -> tuple[float, float] | None:
    columns, rows = spacing[1], spacing[2]
    if columns == 0 and rows == 0:
        return None
    if not (0 < columns < math.inf and 0 < rows < math.inf) or units & 7 not in _MM:
        raise DataError(f"{path}: its pixels are {columns:g} and {rows:g} in unit {units & 7}; valid are lengths")
    return rows * _MM[units & 7], columns * _MM[units & 7]
