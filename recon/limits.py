"""How much memory a file may ask for: what it declares is compared with a limit before anything is read.

A file of some kilobytes can declare, or be unpacked to, any number of gigabytes. The limit is half of the memory that
is free, or what :func:`set_memory_limit`, ``--max-memory`` of the programs, or the environment variable
RECON_MAX_MEMORY say, e.g. ``4`` or ``4GB``, ``500MB``.
"""

from __future__ import annotations

import math
import os
import re
import zipfile
from pathlib import Path

#: of the free memory that one file may ask for
SHARE = 0.5
VARIABLE = "RECON_MAX_MEMORY"
_UNITS = {"": 1e9, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_given: float | None = None


def set_memory_limit(limit: float | None) -> None:
    """Set the limit in bytes; None is the default.

    Raises
    ------
    ValueError
        it is not positive.
    """
    global _given
    if limit is not None and not limit > 0:
        raise ValueError(f"the limit of memory is {limit} bytes, but must be positive")
    _given = limit


def parse_memory(text: str, name: str = "--max-memory") -> float:
    """Bytes of ``4`` (GB), ``4GB``, ``500MB``.

    Raises
    ------
    ValueError
        it is no such amount, or not positive; the message gives ``name``.
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([kKmMgGtT]?[bB]?)\s*", text)
    try:
        value = float(match[1]) if match else 0.0
    except ValueError:
        value = 0.0
    unit = match[2].upper() if match else ""
    if not 0 < value < math.inf or (unit not in _UNITS and unit + "B" not in _UNITS):
        raise ValueError(f"{name} is {text!r}; valid are amounts of memory such as 4, 4GB (the same) and 500MB")
    return value * _UNITS.get(unit, _UNITS.get(unit + "B", 1.0))


def memory_limit() -> float:
    """The limit in bytes; infinite where the system does not tell what is free.

    Raises
    ------
    ValueError
        RECON_MAX_MEMORY is no amount of memory.
    """
    if _given is not None:
        return _given
    if text := os.environ.get(VARIABLE):
        return parse_memory(text, VARIABLE)
    from recon.operators.tomography.matrix.memory import available_memory  # torch takes seconds to import

    return SHARE * available_memory()


def excess(needed: float) -> str | None:
    """What is wrong with ``needed`` bytes, in words; None if they are within the limit."""
    limit = memory_limit()
    if needed <= limit:
        return None
    own = _given is not None or os.environ.get(VARIABLE)
    rule = "the limit is" if own else "half of the free memory is"
    return f"would take {size(needed)}, but {rule} {size(limit)}; if that is right, raise --max-memory"


def archive_excess(path: Path) -> str | None:
    """As :func:`excess`, of all that a zip archive declares to hold; None for files of other kinds."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return excess(float(sum(info.file_size for info in archive.infolist())))


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.9995 * factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} bytes"
