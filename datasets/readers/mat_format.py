"""MATLAB files (version 5 to 7.2) are checked before scipy reads them: for their size, and for their structure.

The format is that of MathWorks, "MAT-File Format", R2019b, chapter 1. scipy trusts the tags that it finds: files with
wrong ones end the whole process, with a segmentation fault, and not in an error.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets.errors import DataError
from datasets.readers.limits import inflated_size
from recon.limits import excess

_HEADER, _MATRIX, _COMPRESSED = 128, 14, 15
# bytes of a value by the type of an element: (u)int8, 16, 32, single, double, (u)int64, UTF-8, 16, 32
_SIZES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8, 16: 1, 17: 2, 18: 4}
_CELL, _STRUCTURE, _OBJECT, _TEXT, _SPARSE, _LAST_NUMERIC, _FUNCTION, _OPAQUE = 1, 2, 3, 4, 5, 15, 16, 17
_NAMES, _WHOLE = (1, 2, 16), (5, 6)
_DEEPEST = 30
# what an element of an array of structures or cells takes at least, as an object of Python
_BYTES_OF_AN_OBJECT = 64


def check_mat(path: Path) -> None:
    """Compare what the variables of a file take, unpacked, with the limit, and check that its elements fit together.

    Twice their bytes count: as stored, and as numbers in float64. Structures and cells may declare more elements than
    there are bytes, and count as so many objects. Files of other kinds pass, for the reader to refuse.

    Raises
    ------
    DataError
        no such file; it would take more than :func:`recon.limits.memory_limit`; damaged elements.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    content = path.read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(content[126:_HEADER])
    if order is None:
        if 0 in content[:4]:
            return  # perhaps of version 4
        raise DataError(f"{path}: cannot be read as a MATLAB file of version 5 to 7.2, it may be truncated or corrupt")
    if struct.unpack_from(f"{order}H", content, 124)[0] != 0x0100:
        return  # version 7.3 is HDF5
    try:
        objects = _variables(content, order, path)
    except (ValueError, IndexError, struct.error, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read as a MATLAB file, it may be truncated or corrupt ({error})") from error
    if wrong := excess(_BYTES_OF_AN_OBJECT * objects):
        raise DataError(f"{path}: its structures and cells are so many that it {wrong}")


def _variables(content: bytes, order: str, path: Path) -> int:
    """The number of objects in all variables."""
    total, objects, place = 0, 0, _HEADER
    while place < len(content):
        kind, length = struct.unpack_from(f"{order}II", content, place)
        part = content[place + 8 : place + 8 + length]
        if len(part) < length:
            raise ValueError("the last variable is cut off")
        total += inflated_size(part) if kind == _COMPRESSED else length
        if wrong := excess(2 * total):
            raise DataError(f"{path}: unpacked, it {wrong}")
        unpacked = zlib.decompress(part) if kind == _COMPRESSED else content[place : place + 8 + length]
        for element in _elements(unpacked, order):
            objects += _objects(element, order)
        place += 8 + length
    return objects


@dataclass(frozen=True)
class _Element:
    kind: int
    data: bytes

    def values(self, kinds: tuple[int, ...], what: str) -> bytes:
        """The data, of one of the kinds; raises ``ValueError`` otherwise."""
        if self.kind not in kinds or len(self.data) % _SIZES[self.kind]:
            raise ValueError(f"{what} of the type {self.kind} with {len(self.data)} bytes")
        return self.data


def _elements(data: bytes, order: str) -> Iterator[_Element]:
    """The elements one after another, each aligned to 8 bytes; small ones are in their own tags."""
    place = 0
    while place < len(data):
        kind, length = struct.unpack_from(f"{order}II", data, place)
        if kind >> 16:
            kind, length = kind & 0xFFFF, kind >> 16
            if length > 4 or place + 8 > len(data):
                raise ValueError(f"a small element of {length} bytes")
            yield _Element(kind, data[place + 4 : place + 4 + length])
            place += 8
            continue
        if place + 8 + length > len(data):
            raise ValueError(f"an element of {length} bytes is cut off")
        yield _Element(kind, data[place + 8 : place + 8 + length])
        place += 8 + length + -length % 8


def _objects(element: _Element, order: str, depth: int = 0) -> int:
    """Check an array with all inside of it; returns how many elements its structures and cells have."""
    if element.kind != _MATRIX or depth > _DEEPEST:
        raise ValueError(f"an element of the type {element.kind} where an array should be, {depth} levels deep")
    if not element.data:
        return 0  # an empty array may be written without anything
    parts = _elements(element.data, order)
    flags = _next(parts).values((6,), "flags")
    if len(flags) != 8:
        raise ValueError(f"flags of {len(flags)} bytes")
    word = struct.unpack_from(f"{order}I", flags)[0]
    cls, is_complex = word & 0xFF, bool(word & 0x800)
    if cls == _OPAQUE:  # strings and tables of new versions: without dimensions, and with two more names
        for what in ("a name", "the name of a system", "the name of a class"):
            _next(parts).values(_NAMES, what)
        return sum(_objects(part, order, depth + 1) for part in parts)
    shape = _next(parts).values(_WHOLE, "dimensions")
    _next(parts).values(_NAMES, "a name")
    sizes = struct.unpack(f"{order}{len(shape) // 4}i", shape)
    if not 2 <= len(sizes) <= 32 or min(sizes) < 0:
        raise ValueError(f"an array of the dimensions {sizes}")
    count = math.prod(sizes)
    if cls in (_CELL, _STRUCTURE, _OBJECT):
        fields = 1 if cls == _CELL else _fields(parts, order, cls == _OBJECT)
        inside = list(parts)
        if len(inside) != count * fields:
            raise ValueError(f"{len(inside)} members for {count} elements of {fields} fields")
        return count + sum(_objects(part, order, depth + 1) for part in inside)
    if cls == _FUNCTION:
        return sum(_objects(part, order, depth + 1) for part in parts)
    if cls == _SPARSE or cls <= _LAST_NUMERIC:
        inside = list(parts)
        wanted = (3 if cls == _SPARSE else 1) + is_complex  # rows and columns; real and imaginary parts
        if len(inside) != wanted:
            raise ValueError(f"{len(inside)} parts of an array instead of {wanted}")
        for part in inside:
            if cls == _SPARSE and part.kind in _SIZES:
                continue  # logical values are bytes, whatever their type says
            values = part.values(tuple(_SIZES), "numbers")
            if cls != _TEXT and len(values) != count * _SIZES[part.kind]:
                raise ValueError(f"{len(values) // _SIZES[part.kind]} numbers for an array of the dimensions {sizes}")
        return 0
    raise ValueError(f"an array of the class {cls}; valid are numbers, text, cells and structures")


def _fields(parts: Iterator[_Element], order: str, is_object: bool) -> int:
    """The number of fields of a structure, whose names have one length."""
    if is_object:
        _next(parts).values(_NAMES, "the name of a class")
    (length,) = struct.unpack(f"{order}i", _next(parts).values(_WHOLE, "the length of names"))
    names = _next(parts).values(_NAMES, "names of fields")
    if length < 1 or len(names) % length:
        raise ValueError(f"names of fields of {length} characters in {len(names)} bytes")
    return len(names) // length


def _next(parts: Iterator[_Element]) -> _Element:
    part = next(parts, None)
    if part is None:
        raise ValueError("an array ends too early")
    return part
