"""The compiled library of the solvers: where it is, and for what."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from recon import native

FOLDER, LIBRARY, VERSION = Path(__file__).parent, "_solvers", 1
#: pixels, times the vectors that are read, from which on another thread is worth being started
SHARE = 1 << 20
#: types of images, with the bytes of a number
PRECISIONS = {torch.float32: 4, torch.float64: 8}


def usable(x: Tensor) -> ctypes.CDLL | None:
    """The library for images like x, if it is there, wanted, and x on the CPU in single or double precision."""
    if x.device.type != "cpu" or x.dtype not in PRECISIONS or not native.wanted():
        return None
    return _library()


@functools.cache
def _library() -> ctypes.CDLL | None:
    return native.library(FOLDER, LIBRARY, VERSION)


def threads(entries: int) -> int:
    """How many are worth it for so many numbers; results do not depend on it."""
    return max(1, min(torch.get_num_threads(), entries // SHARE))


def describe() -> str:
    """What does the steps of solvers, in a sentence."""
    return native.describe(FOLDER, LIBRARY, VERSION)
