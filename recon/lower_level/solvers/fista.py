"""Accelerated gradient descent for strongly convex energies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recon.errors import at_least, positive
from recon.lower_level.batch import over_image, per_image_dot, per_image_norm
from recon.lower_level.energy import Energy
from recon.lower_level.solvers.compiled.descent import descend
from recon.lower_level.solvers.compiled.library import usable
from recon.lower_level.solvers.iterate import State, SteppedSolver


@dataclass
class FISTAState(State):
    """v as ``x``, the point ``previous`` before it, t as ``momentum``, and L per image."""

    previous: Tensor
    momentum: Tensor
    lipschitz: Tensor


class FISTA(SteppedSolver[FISTAState]):
    """Strongly convex FISTA (Chambolle and Pock 2016, algorithm 5), every image with its own step and stopping.

    With step 1/L, q = mu/L, t_0 = 0, x_{-1} = x_0:

        t+ = (1 - q t^2 + sqrt((1 - q t^2)^2 + 4 t^2)) / 2,   beta = (t - 1)(1 - t+ q) / (t+ (1 - q)),
        v = x + beta (x - x_{-1}),   x+ = v - grad h(v) / L.

    The certificate is evaluated at v, where the gradient is known, and v is returned.

    Parameters
    ----------
    max_iterations : int
        Evaluations of one image after which it counts as not converged.
    backtracking : bool
        Estimate L per image, from ``initial_lipschitz`` upwards, by doubling it while
        h(x+) > h(v) - ||grad h(v)||^2 / (2L). Needs a second evaluation per iteration, which is counted: an iteration
        that has begun is finished, beyond ``max_iterations``, too. Used in any case where no L is known.
    initial_lipschitz : float, optional
        First guess of L for backtracking; by default 10 mu.
    accelerated : bool
        False gives gradient descent with step 1/L, for comparisons.

    Raises
    ------
    ValueError
        ``max_iterations`` is less than 1, or ``initial_lipschitz`` is not positive.
    """

    state = FISTAState

    def __init__(
        self,
        max_iterations: int = 100_000,
        backtracking: bool = False,
        initial_lipschitz: float | None = None,
        accelerated: bool = True,
    ) -> None:
        at_least(1, max_iterations=max_iterations)
        positive(initial_lipschitz=initial_lipschitz)
        self.max_iterations, self.backtracking = max_iterations, backtracking
        self.initial_lipschitz, self.accelerated = initial_lipschitz, accelerated

    def init(self, energy: Energy, x0: Tensor) -> FISTAState:
        """x_0, with a step that the smoothness allows, or a first guess of it."""
        mu = energy.require_strong_convexity()
        start = self.initial_lipschitz or 10 * mu if self._backtracks(energy) else energy.smoothness
        x = x0.clone(memory_format=torch.contiguous_format)
        value, grad = energy.value_and_grad(x)
        spent, momentum = torch.ones(len(x), dtype=torch.int64, device=x.device), torch.zeros_like(value)
        return FISTAState(x, value, grad, spent, x.clone(), momentum, torch.full_like(momentum, max(start, mu)))

    def step(self, energy: Energy, state: FISTAState) -> None:
        """One gradient step from v = ``state.x``, and the next v."""
        if self._backtracks(energy):
            raised = self._backtrack(energy, state)
            state.momentum = torch.where(raised, torch.zeros_like(state.momentum), state.momentum)
        if (kernel := usable(state.x)) is not None:
            state.x = descend(kernel, state, energy.strong_convexity, self.accelerated)
        else:
            self._descend(energy, state)
        state.value, state.grad = energy.value_and_grad(state.x)
        state.evaluations = state.evaluations + 1

    def _descend(self, energy: Energy, state: FISTAState) -> None:
        new = state.x - state.grad / over_image(state.lipschitz, state.x)
        q = (energy.strong_convexity / state.lipschitz).clamp_max(1 - 1e-12)
        t = self._next(q, state.momentum)
        # momentum for the next point: one more step of the recursion, with x the point before `new`
        t_next = self._next(q, t)
        beta = (t - 1) * (1 - t_next * q) / (t_next * (1 - q)) if self.accelerated else torch.zeros_like(q)
        state.x = new + over_image(beta, new) * (new - state.previous)
        state.previous, state.momentum = new, t

    def _backtracks(self, energy: Energy) -> bool:
        return self.backtracking or not math.isfinite(energy.smoothness)

    @staticmethod
    def _next(q: Tensor, t: Tensor) -> Tensor:
        a = 1 - q * t * t
        return (a + torch.sqrt(a * a + 4 * t * t)) / 2

    @staticmethod
    def _backtrack(energy: Energy, state: FISTAState) -> Tensor:
        """Raise L per image until the descent inequality holds; returns where it was raised."""
        v, value, grad, start = state.x, state.value, state.grad, state.lipschitz
        norm2 = per_image_norm(grad).square()
        for _ in range(100):
            trial = v - grad / over_image(state.lipschitz, v)
            trial_value, trial_grad = energy.value_and_grad(trial)
            state.evaluations = state.evaluations + 1
            violated = trial_value > value - norm2 / (2 * state.lipschitz)
            # where values cannot resolve the decrease, co-coercivity of the gradients decides
            flat = (trial_value - value).abs() <= 1e-6 * value.abs()
            change = grad - trial_grad
            steep = per_image_norm(change).square() > state.lipschitz * per_image_dot(change, v - trial)
            violated = torch.where(flat, steep, violated) | ~torch.isfinite(trial_value)
            if not violated.any():
                break
            state.lipschitz = torch.where(violated, 2 * state.lipschitz, state.lipschitz)
        return state.lipschitz > start
