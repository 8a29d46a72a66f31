"""Steps of conjugate gradients by the compiled library: what :mod:`recon.lower_level.solvers.cg` does with torch."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recon.lower_level.solvers.compiled.library import Shape, contiguous
from recon.native import address

if TYPE_CHECKING:
    from recon.lower_level.solvers.cg import Cycle


class _Conjugate(ctypes.Structure):
    """``Task`` of conjugate.cpp."""

    _fields_ = (
        ("shape", Shape),
        *((name, ctypes.c_void_p) for name in ("product", "z", "w", "r", "p", "rz", "square", "gaps")),
        ("rounding", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("goal", "spent", "budget", "done")),
    )


class ConjugateSteps:
    """Steps of a cycle, whose tensors are changed in place: others must not replace them.

    Parameters
    ----------
    kernel : CDLL
        The library.
    cycle : Cycle
        Where the images are.
    """

    def __init__(self, kernel: ctypes.CDLL, cycle: Cycle) -> None:
        self.kernel, self.like, self.task = kernel, cycle.w, _Conjugate(rounding=cycle.rounding)
        self.reference = ctypes.byref(self.task)
        self.task.shape = Shape.of(cycle.w)
        names = ("w", "r", "p", "rz", "square", "gaps", "goal", "spent", "budget")
        self._kept = {name: getattr(cycle, name) for name in names}
        for name, tensor in self._kept.items():
            setattr(self.task, name, address(tensor))
        self.done = torch.zeros(len(cycle.w), dtype=torch.bool)
        self.task.done = address(self.done)

    def advance(self, product: Tensor) -> Tensor | None:
        """What :meth:`Cycle.advance` returns."""
        product = contiguous(product, self.like)
        self.task.product = address(product)
        return self.done.clone() if self.kernel.solvers_cg_advance(self.reference) else None

    def turn(self, z: Tensor | None) -> None:
        """See :meth:`Cycle.turn`."""
        z = None if z is None else contiguous(z, self.like)
        self.task.z = address(z)
        self.kernel.solvers_cg_turn(self.reference)
