"""The compiled library: where it is, whether it is the right one, and which instructions it uses here."""

from __future__ import annotations

import ctypes
import functools
import warnings
from pathlib import Path

from recon import native
from recon.native import LEVELS, SWITCH, LibraryError

_ABI = 5


class Task(ctypes.Structure):
    """What is computed: the struct ``Task`` of native/filter_bank.hpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("operation", "precision", "level")),
        *((name, ctypes.c_int64) for name in ("images", "height", "width", "filters", "size", "channels")),
        *((name, ctypes.c_int64) for name in ("kind", "columns")),
        ("spacing", ctypes.c_double),
        ("kernels", ctypes.c_void_p),
        ("tables", ctypes.c_void_p * 3),
        *((name, ctypes.c_int64) for name in ("layers", "inner")),
        *((name, ctypes.c_double) for name in ("slope", "softness")),
        *((name, ctypes.c_void_p) for name in ("x", "w", "order", "weights", "out", "overhang", "results")),
    )


def level() -> int | None:
    """The level of instructions to use now, an index of :data:`LEVELS`; ``None``: the code in torch.

    The environment variable RECON_KERNELS chooses: ``best`` (default), ``off``, or one of :data:`LEVELS` that this
    machine has.

    Raises
    ------
    ValueError
        it has another value, or the machine lacks these instructions.
    """
    choice = native.choice()
    if choice == "off":
        return None
    library = load()
    if library is None:
        return None
    best = _best()
    if choice == "best":
        return best
    if LEVELS.index(choice) > best:
        raise ValueError(f"{SWITCH} is {choice!r}, but this machine has no more than {LEVELS[best]!r}")
    return LEVELS.index(choice)


def describe() -> str:
    """Which kernels are in use, in a sentence."""
    try:
        if not native.wanted():
            return f"torch ({SWITCH} is off)"
        found = find()
        open_library(found)
        return f"{LEVELS[level() or 0]}, compiled, {found}"
    except ValueError as error:
        return str(error)
    except LibraryError as error:
        return f"torch: {error}"


@functools.cache
def load() -> ctypes.CDLL | None:
    """The library; ``None``, with a warning that says why, where there is none that can be used."""
    try:
        return open_library(find())
    except LibraryError as error:
        warnings.warn(f"filters are computed by the slower code in torch: {error}", RuntimeWarning, stacklevel=2)
        return None


def find(folder: Path | None = None) -> Path:
    """The file of the library, which the installation compiles.

    Raises
    ------
    LibraryError
        there is none.
    """
    return native.find(folder or Path(__file__).parent, "_filter_bank")


def open_library(path: Path) -> ctypes.CDLL:
    """Load the file and check that it has this interface.

    Raises
    ------
    LibraryError
        it cannot be loaded, or is of another version.
    """
    return _declare(native.opened(path, "recon_kernels_abi", 1000 * _ABI + ctypes.sizeof(Task)))


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    task = ctypes.POINTER(Task)
    signatures: dict[str, tuple[type | None, list[object]]] = {
        "abi": (ctypes.c_int64, []),
        "level": (ctypes.c_int64, []),
        "layout": (None, [task, ctypes.c_void_p]),
        "run": (ctypes.c_int64, [task, ctypes.c_int64, ctypes.c_int64]),
        "finish": (None, [task, ctypes.c_void_p]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, f"recon_kernels_{name}")
        function.restype, function.argtypes = result, arguments
    return library


@functools.cache
def _best() -> int:
    library = load()
    return 0 if library is None else int(library.recon_kernels_level())
