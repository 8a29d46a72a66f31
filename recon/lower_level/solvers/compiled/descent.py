"""Steps of accelerated gradient descent, and norms, by the compiled library."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recon.lower_level.solvers.compiled.library import Shape, contiguous
from recon.native import address

if TYPE_CHECKING:
    from recon.lower_level.solvers.fista import FISTAState


class _Descent(ctypes.Structure):
    """``Task`` of descent.cpp."""

    _fields_ = (
        ("shape", Shape),
        *((name, ctypes.c_void_p) for name in ("x", "grad", "next", "before", "momentum", "lipschitz")),
        ("modulus", ctypes.c_double),
        ("accelerated", ctypes.c_int64),
    )


class _Norms(ctypes.Structure):
    """``Norms`` of descent.cpp."""

    _fields_ = (("shape", Shape), *((name, ctypes.c_void_p) for name in ("a", "b", "norms")))


def descend(kernel: ctypes.CDLL, state: FISTAState, modulus: float, accelerated: bool) -> Tensor:
    """The v that follows; ``previous`` and ``momentum`` of the state are changed in place."""
    x = state.x.contiguous()
    grad, following = contiguous(state.grad, x), torch.empty_like(x)
    pointers = map(address, (x, grad, following, state.previous, state.momentum, state.lipschitz))
    kernel.solvers_descend(ctypes.byref(_Descent(Shape.of(x), *pointers, modulus, accelerated)))
    return following


def norms(kernel: ctypes.CDLL, a: Tensor, b: Tensor) -> Tensor:
    """Euclidean norms of two tensors of images, ``(images, 2)``, float64."""
    found, a = torch.empty(a.shape[0], 2, dtype=torch.float64), a.contiguous()
    b = contiguous(b, a)
    kernel.solvers_norms(ctypes.byref(_Norms(Shape.of(a), address(a), address(b), address(found))))
    return found
