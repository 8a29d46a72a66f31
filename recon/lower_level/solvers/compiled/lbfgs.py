"""Steps of L-BFGS by the compiled library: what :mod:`recon.lower_level.solvers.lbfgs` does with torch."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recon.lower_level.solvers.compiled.library import Shape, contiguous
from recon.native import address

if TYPE_CHECKING:
    from recon.lower_level.solvers.lbfgs import LBFGSState, Search


class _Task(ctypes.Structure):
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


class Steps:
    """Steps of L-BFGS from one state, in place: trials, and what follows of their energies.

    Parameters
    ----------
    kernel : CDLL
        The library.
    state : LBFGSState
        x, its value and its gradient are replaced, all else is changed in place: others must not replace it.
    search : Search
        What is asked of trials.
    """

    def __init__(self, kernel: ctypes.CDLL, state: LBFGSState, search: Search) -> None:
        self.kernel, self.reference = kernel, ctypes.byref(task := _Task())
        self.task = task
        state.grad, state.value = contiguous(state.grad, state.x), state.value.double().contiguous()
        rows = state.pairs.shape[1]
        task.shape, task.memory = Shape.of(state.x, rows), rows // 2
        names = ("pairs", "gram", "count", "products", "direction", "step", "norms", "fresh", "evaluations")
        self._kept = {name: getattr(state, name) for name in names}
        for name, tensor in self._kept.items():
            setattr(task, name, address(tensor))
        task.armijo, task.resolution, task.shortest, task.longest, task.curvature = search

    def propose(self, state: LBFGSState, scale: float, first: Tensor | None) -> Tensor:
        """The trial points, along new directions where ``state.fresh``.

        ``scale``: of directions without history, 0 for one over the norm of the gradient, at most 1; ``first``: the
        preconditioned gradient, if there is a preconditioner.
        """
        state.x, state.grad = state.x.contiguous(), state.grad.contiguous()
        trial, first, task = torch.empty_like(state.x), None if first is None else contiguous(first, state.x), self.task
        task.x, task.grad, task.trial = address(state.x), address(state.grad), address(trial)
        task.scale, task.first = scale, address(first)
        self.kernel.solvers_lbfgs_propose(self.reference)
        return trial

    def accept(self, state: LBFGSState, trial: Tensor, value: Tensor, grad: Tensor, changes: Tensor | None) -> None:
        """Go to the trial where it is good, and keep the pair; ``changes``: of the preconditioned gradient."""
        grad, value, task = contiguous(grad, trial), contiguous(value, state.value), self.task
        changes = None if changes is None else contiguous(changes, trial)
        task.trial_grad, task.changes = address(grad), address(changes)
        task.value, task.trial_value = address(state.value), address(value)
        good = self.kernel.solvers_lbfgs_accept(self.reference)
        state.moved = good == len(trial)
        if state.moved:  # nearly always: nothing is copied
            state.x, state.grad, state.value = trial, grad, value
        elif good:
            state.go(trial, value, grad)
