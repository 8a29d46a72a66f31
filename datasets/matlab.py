"""What MATLAB files (version 5 to 7.2) declare, read without unpacking anything into memory."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

from datasets.errors import DataError
from datasets.limits import inflated_size
from recon.limits import excess

_HEADER, _COMPRESSED = 128, 15
# what an element of an array of structures takes at least, as an object of Python
_OBJECT = 64


def check_mat(path: Path) -> None:
    """Compare what the variables of a MATLAB file take, unpacked, with the limit.

    Twice their bytes: as stored, and as numbers in float64. Structures and cells may declare more elements than there
    are bytes; at the top level these are counted as objects. Files of other kinds pass, for the reader to refuse.

    Raises:
        DataError: no such file; it would take more than :func:`recon.limits.memory_limit`.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    content = memoryview(path.read_bytes())
    order = {b"IM": "<", b"MI": ">"}.get(bytes(content[126:_HEADER]))
    if order is None:
        return
    total, place = 0, _HEADER
    while place + 8 <= len(content):
        kind, length = struct.unpack_from(f"{order}II", content, place)
        part = content[place + 8 : place + 8 + length]
        try:
            total += inflated_size(part) if kind == _COMPRESSED else len(part)
        except zlib.error:
            return  # whose reader says what is wrong
        if wrong := excess(2 * total):
            raise DataError(f"{path}: unpacked, it {wrong}")
        place += 8 + length
    if wrong := excess(_OBJECT * _objects(path)):
        raise DataError(f"{path}: its structures and cells are so many that it {wrong}")


def _objects(path: Path) -> int:
    """The elements of all structures and cells at the top level; 0 if the file cannot be read."""
    import scipy.io

    try:
        listed = scipy.io.whosmat(str(path))
    except Exception:  # damaged files end in errors of many kinds
        return 0
    return sum(math.prod(map(int, shape)) for _, shape, kind in listed if kind in ("struct", "cell", "object"))
