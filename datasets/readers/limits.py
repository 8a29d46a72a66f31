"""Arrays from files of strangers: sizes that files declare are compared with a limit before anything is read.

All readers of this package call :func:`check_memory`; see :mod:`recon.limits` for the limit.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from datasets.errors import DataError, reading
from recon.limits import excess, memory_limit, size

_ZIP = b"PK\x03\x04"
_BLOCK = 1 << 20


def check_memory(path: str | Path, what: str, shape: Sequence[int], itemsize: int = 8) -> None:
    """Check that an array that a file declares may be read; values take 8 bytes at least: readers compute in float64.

    Raises
    ------
    DataError
        it would take more than :func:`recon.limits.memory_limit`.
    """
    wrong = excess(float(math.prod(int(n) for n in shape)) * max(itemsize, 8))
    if wrong:
        raise DataError(f"{path}: {what} of shape {tuple(int(n) for n in shape)} {wrong}")


def load_array(path: str | Path) -> np.ndarray:
    """The array of a ``.npy`` file, whatever its suffix.

    Raises
    ------
    DataError
        no such file, another kind of file, truncated, Python objects, or larger than the limit.
    """
    path = Path(path)
    # NumPy lets errors of many kinds through for headers that are none
    with reading(path, "a NumPy array"):
        with path.open("rb") as file:
            _check_npy(file, path.stat().st_size, "an array", path)
        return np.asarray(np.load(path, allow_pickle=False))


def load_arrays(path: str | Path, name: str) -> dict[str, np.ndarray]:
    """The arrays of a ``.npz`` file, or of a ``.npy`` file the one, called ``name``.

    Raises
    ------
    DataError
        as :func:`load_array`; the limit is for all arrays together.
    """
    path = Path(path)
    with reading(path, "NumPy data"):
        with path.open("rb") as file:
            if file.read(len(_ZIP)) != _ZIP:
                return {name: load_array(path)}
        with zipfile.ZipFile(path) as archive:
            total = 0
            for member in archive.infolist():
                with archive.open(member) as opened:
                    total += _check_npy(opened, member.file_size, member.filename, path)
            if wrong := excess(total):
                raise DataError(f"{path}: unpacked, it {wrong}")
        with np.load(path, allow_pickle=False) as loaded:
            return {key: loaded[key] for key in loaded.files}


def inflated_size(data: bytes, raw: bool = False) -> int:
    """How many bytes a stream of zlib (of deflate, if ``raw``) holds, or the first number beyond the limit.

    Nothing is kept: a bomb costs time, at most that of the limit, and no memory.

    Raises
    ------
    zlib.error
        it is no such stream.
    """
    stream = zlib.decompressobj(-zlib.MAX_WBITS if raw else zlib.MAX_WBITS)
    total, limit, view = 0, memory_limit(), memoryview(data)
    for start in range(0, len(view), _BLOCK):
        rest: bytes | memoryview = view[start : start + _BLOCK]
        while rest and not stream.eof:
            total += len(stream.decompress(rest, _BLOCK))
            rest = stream.unconsumed_tail
            if total > limit:
                return total
        if stream.eof:
            break
    return total


def _check_npy(file: IO[bytes], length: int, what: str, path: Path) -> int:
    """Compare what a header declares with what is there, and with the limit; returns the bytes of the array.

    Raises
    ------
    DataError
        for objects and more than the limit, and ``ValueError`` or what NumPy raises for other files.
    """
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    start = file.tell()
    version = np.lib.format.read_magic(file)
    if version not in readers:
        raise ValueError(f"{what} is of version {version} of the format; valid are 1.0 and 2.0")
    shape, _, dtype = readers[version](file)
    if dtype.hasobject:
        raise DataError(f"{path}: {what} holds Python objects; valid are numbers")
    if any(n < 0 for n in shape):
        raise ValueError(f"{what} declares the shape {shape}")
    declared, there = math.prod(shape) * dtype.itemsize, length - (file.tell() - start)
    if declared > there:
        raise ValueError(f"{what} of shape {shape} takes {size(declared)}, but the file has {size(there)}")
    check_memory(path, what, shape, dtype.itemsize)
    return int(declared)
