"""Steps of L-BFGS, and the loops of projected L-BFGS, by the compiled library: what their modules do with torch."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recon.lower_level.solvers.compiled.library import Shape, contiguous
from recon.native import address

if TYPE_CHECKING:
    from recon.lower_level.solvers.lbfgs import LBFGSState, Search
    from recon.lower_level.solvers.quasi_newton import Pairs


class _Search(ctypes.Structure):
    """``Task`` of lbfgs.cpp."""

    _fields_ = (
        ("shape", Shape),
        ("memory", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("pairs", "gram", "count", "products")),
        *((name, ctypes.c_void_p) for name in ("x", "grad", "first", "direction", "trial")),
        *((name, ctypes.c_void_p) for name in ("step", "norms", "fresh", "evaluations")),
        *((name, ctypes.c_double) for name in ("armijo", "resolution", "shortest", "longest", "curvature", "scale")),
        *((name, ctypes.c_void_p) for name in ("trial_grad", "changes", "value", "trial_value")),
    )


class SearchSteps:
    """Steps of L-BFGS from one state, in place: trials, and what follows of their energies.

    Parameters
    ----------
    kernel : CDLL
        The library.
    state : LBFGSState
        x, its value and its gradient are replaced, all else is changed in place: others must not replace it.
    search : Search
        What is asked of trials.
    scale : float
        Of directions without history, 0 for one over the norm of the gradient, at most 1.
    """

    def __init__(self, kernel: ctypes.CDLL, state: LBFGSState, search: Search, scale: float) -> None:
        self.kernel, self.reference = kernel, ctypes.byref(task := _Search())
        self.task, self.images = task, len(state.x)
        self._x: Tensor | None = None  # where the task is already
        state.value = state.value.double().contiguous()
        rows = state.pairs.shape[1]
        task.shape, task.memory = Shape.of(state.x, rows), rows // 2
        names = ("pairs", "gram", "count", "products", "direction", "step", "norms", "fresh", "evaluations")
        self._kept = {name: getattr(state, name) for name in names}
        for name, tensor in self._kept.items():
            setattr(task, name, address(tensor))
        task.armijo, task.resolution, task.shortest, task.longest, task.curvature = search
        task.scale = scale

    def propose(self, state: LBFGSState, first: Tensor | None) -> Tensor:
        """The trial points, along new directions where ``state.fresh``.

        ``first``: the preconditioned gradient, if there is a preconditioner.
        """
        task = self.task
        if state.x is not self._x:
            state.x, state.grad = state.x.contiguous(), contiguous(state.grad, state.x)
            task.x, task.grad, task.value = address(state.x), address(state.grad), address(state.value)
            self._x = state.x
        trial = torch.empty_like(state.x)
        task.trial = trial.data_ptr()
        first = None if first is None else contiguous(first, state.x)
        task.first = address(first)
        self.kernel.solvers_lbfgs_propose(self.reference)
        return trial

    def accept(self, state: LBFGSState, trial: Tensor, value: Tensor, grad: Tensor, changes: Tensor | None) -> None:
        """Go to the trial where it is good, and keep the pair; ``changes``: of the preconditioned gradient."""
        grad, value, task = contiguous(grad, trial), contiguous(value, state.value), self.task
        task.trial_grad, task.trial_value = grad.data_ptr(), value.data_ptr()
        changes = None if changes is None else contiguous(changes, trial)
        task.changes = address(changes)
        good = self.kernel.solvers_lbfgs_accept(self.reference)
        state.moved = good == self.images
        if state.moved:  # nearly always: nothing is copied
            state.x, state.grad, state.value, self._x = trial, grad, value, trial
        elif good:
            state.go(trial, value, grad)


class _Restricted(ctypes.Structure):
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
        self.task = _Restricted(Shape.of(self.like), memory, *history, None, *found, curvature)

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
