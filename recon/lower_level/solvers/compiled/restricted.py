"""The two loops of projected L-BFGS by the compiled library: what :class:`Pairs` does with torch."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recon.lower_level.solvers.compiled.library import Shape
from recon.native import address

if TYPE_CHECKING:
    from recon.lower_level.solvers.quasi_newton import Pairs


class _Task(ctypes.Structure):
    """``Task`` of restricted.cpp."""

    _fields_ = (
        ("shape", Shape),
        ("memory", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("s", "y", "count", "free", "q", "rho", "a", "newest", "sy", "yy")),
        ("curvature", ctypes.c_double),
    )


class CompiledLoops:
    """See :class:`recon.lower_level.solvers.quasi_newton.Loops`.

    Parameters
    ----------
    kernel : CDLL
        The library.
    pairs, free
        As there.
    curvature : float
        The share of the lengths of a pair that its product must exceed.
    """

    def __init__(self, kernel: ctypes.CDLL, pairs: Pairs, free: Tensor, curvature: float) -> None:
        images, memory = pairs.s.shape[:2]
        self.newest = torch.full((images,), -1)
        self.sy, self.yy = (torch.zeros(images, dtype=torch.float64) for _ in range(2))
        self.kernel, self.like = kernel, pairs.s[:, 0]
        self._kept = (free.contiguous(), torch.zeros(2, images, memory, dtype=torch.float64))
        rho, a = self._kept[1]
        history = map(address, (pairs.s, pairs.y, pairs.count, self._kept[0]))
        found = map(address, (rho, a, self.newest, self.sy, self.yy))
        self.task = _Task(Shape.of(self.like), memory, *history, None, *found, curvature)

    def down(self, q: Tensor) -> Tensor:
        """The first loop, from the newest pair to the oldest."""
        return self._run(self.kernel.solvers_restricted_down, q)

    def up(self, r: Tensor) -> Tensor:
        """The second loop, from the oldest pair to the newest."""
        return self._run(self.kernel.solvers_restricted_up, r)

    def _run(self, function: ctypes._NamedFuncPointer, q: Tensor) -> Tensor:
        q = q.to(self.like.dtype).clone(memory_format=torch.contiguous_format)
        self.task.q = address(q)
        function(ctypes.byref(self.task))
        return q
