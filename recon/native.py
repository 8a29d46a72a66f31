"""Libraries of compiled kernels: built when the package is installed, where there is a compiler, and used if there.

A kernel is C++ with a C interface and without headers of torch or Python, so that one build serves every version of
both. `pyproject.toml` lists it under ``ext-modules`` as optional: without a compiler the package installs, too, and
torch does the work then. ``RECON_KERNELS=off`` in the environment does the same.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from torch import Tensor

from recon.errors import one_of

#: names of the levels of instructions, slowest first
LEVELS = ("baseline", "avx2", "avx512")
#: what the environment may say: everything but ``off`` lets kernels choose their instructions, or chooses for them
SWITCH, CHOICES = "RECON_KERNELS", ("best", "off", *LEVELS)


class LibraryError(RuntimeError):
    """There is no library that can be used: why, and what to do."""


def choice() -> str:
    """What the environment says, ``best`` if nothing.

    Raises
    ------
    ValueError
        It is none of :data:`CHOICES`.
    """
    found = os.environ.get(SWITCH, "best")
    one_of(CHOICES, **{SWITCH: found})
    return found


def wanted() -> bool:
    """Whether kernels are to be used; raises as :func:`choice`."""
    return choice() != "off"


@cache
def library(folder: Path, name: str, version: int) -> ctypes.CDLL | None:
    """The library ``name`` in a folder; ``None``, with a warning that says why, where none can be used.

    Parameters
    ----------
    folder : Path
        Where the installation has put it.
    name : str
        As ``ext-modules`` has it, e.g. ``_total_variation``.
    version : int
        Of its interface: what its function ``NAME_version()`` must return, without the underscore in front.
    """
    try:
        return opened(find(folder, name), f"{name.lstrip('_')}_version", version)
    except LibraryError as error:
        warnings.warn(f"torch does the work of {name}, which is slower: {error}", RuntimeWarning, stacklevel=2)
        return None


def describe(folder: Path, name: str, version: int) -> str:
    """In a sentence what does the work of the library ``name``; arguments are those of :func:`library`."""
    try:
        if not wanted():
            return f"torch ({SWITCH} is off)"
        opened(path := find(folder, name), f"{name.lstrip('_')}_version", version)
        return f"compiled, {path}"
    except ValueError as error:
        return str(error)
    except LibraryError as error:
        return f"torch: {error}"


def address(tensor: Tensor | None) -> int | None:
    """Where the numbers of a contiguous tensor on the CPU begin; None is the null pointer.

    Raises
    ------
    ValueError
        The tensor is elsewhere, or not contiguous.
    """
    if tensor is None:
        return None
    if not (tensor.is_cpu and tensor.is_contiguous()):
        raise ValueError("kernels take contiguous tensors on the CPU")
    return tensor.data_ptr()


def find(folder: Path, name: str) -> Path:
    """The file of the library ``name`` in a folder.

    Raises
    ------
    LibraryError
        There is none.
    """
    for suffix in EXTENSION_SUFFIXES:
        if (path := folder / f"{name}{suffix}").is_file():
            return path
    raise LibraryError(
        f"no compiled library {name} is in {folder}: `pip install` with a C++17 compiler (GCC or clang) makes it; "
        f"{SWITCH}=off silences this"
    )


def opened(path: Path, function: str, version: int) -> ctypes.CDLL:
    """The library of a file, whose ``function()`` says of which version its interface is.

    Raises
    ------
    LibraryError
        It cannot be loaded, or is of another version.
    """
    try:
        found = ctypes.CDLL(str(path))
        asked = getattr(found, function)
        asked.restype = ctypes.c_int64
        built = int(asked())
    except (OSError, AttributeError) as error:
        raise LibraryError(f"{path} cannot be loaded ({error}); install again") from error
    if built != version:
        raise LibraryError(f"{path} has the interface {built}, but {version} is needed; install again")
    return found
