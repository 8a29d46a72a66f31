"""The compiled library of the solvers: where it is, and for what."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from recon import native

FOLDER, LIBRARY, VERSION = Path(__file__).parent, "_solvers", 2
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


class Shape(ctypes.Structure):
    """``Shape`` of passes.hpp."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("precision", "images", "pixels", "threads"))

    @classmethod
    def of(cls, x: Tensor, vectors: int = 1) -> Shape:
        """Of images ``(images, ...)`` of which so many vectors are read; results do not depend on the threads."""
        images, entries = x.shape[0], x.numel()
        threads = max(1, min(torch.get_num_threads(), entries * vectors // SHARE))
        return cls(PRECISIONS[x.dtype], images, entries // max(1, images), threads)


def contiguous(vectors: Tensor, like: Tensor) -> Tensor:
    """As the library takes them.

    Raises
    ------
    ValueError
        They do not have the shape of the images ``like``.
    """
    if vectors.shape != like.shape:
        raise ValueError(f"tensors of shape {tuple(vectors.shape)} belong to images {tuple(like.shape)}")
    return (vectors if vectors.dtype == like.dtype else vectors.to(like.dtype)).contiguous()


def describe() -> str:
    """What does the steps of solvers, in a sentence."""
    return native.describe(FOLDER, LIBRARY, VERSION)
