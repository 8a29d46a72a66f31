"""Accelerated gradient descent for strongly convex energies."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recon.lower_level.batch import over_image, per_image_dot, per_image_norm
from recon.lower_level.energy import Energy
from recon.lower_level.precision import full_precision
from recon.lower_level.solution import RUNNING, Solution, Status
from recon.lower_level.solvers.solver import Solver
from recon.lower_level.solvers.stopping import Collector, Stopping


class FISTA(Solver):
    """Strongly convex FISTA (Chambolle and Pock 2016, algorithm 5), every image with its own step and stopping.

    With step 1/L, q = mu/L, t_0 = 0, x_{-1} = x_0:

        t+ = (1 - q t^2 + sqrt((1 - q t^2)^2 + 4 t^2)) / 2,   beta = (t - 1)(1 - t+ q) / (t+ (1 - q)),
        v = x + beta (x - x_{-1}),   x+ = v - grad h(v) / L.

    The certificate is evaluated at v, where the gradient is known, and v is returned.

    Parameters
    ----------
    max_iterations: evaluations of one image after which it counts as not converged.
    backtracking: estimate L per image, from ``initial_lipschitz`` upwards, by doubling it while
        h(x+) > h(v) - ||grad h(v)||^2 / (2L). Needs a second evaluation per iteration, which is counted. Used in any
        case where no L is known.
    initial_lipschitz: first guess of L for backtracking; by default 10 mu.
    accelerated: False gives gradient descent with step 1/L, for comparisons.
    """

    def __init__(
        self,
        max_iterations: int = 100_000,
        backtracking: bool = False,
        initial_lipschitz: float | None = None,
        accelerated: bool = True,
    ) -> None:
        if max_iterations < 1:
            raise ValueError(f"max_iterations is {max_iterations}, but must be at least 1")
        if initial_lipschitz is not None and not initial_lipschitz > 0:
            raise ValueError(f"initial_lipschitz is {initial_lipschitz}, but must be positive")
        self.max_iterations, self.backtracking = max_iterations, backtracking
        self.initial_lipschitz, self.accelerated = initial_lipschitz, accelerated

    @full_precision()
    def __call__(self, energy: Energy, x0: Tensor, accuracy: float | Tensor) -> Solution:
        """Minimize h from ``x0`` to certified distance ``accuracy`` (a number, or one per image)."""
        mu = energy.require_strong_convexity()
        stopping, out = Stopping(energy, accuracy, x0), Collector(x0)
        backtracking = self.backtracking or not math.isfinite(energy.smoothness)
        start = energy.smoothness if not backtracking else self.initial_lipschitz or 10 * mu
        v = x0.detach().clone()
        x, t = v, torch.zeros(len(v), dtype=torch.float64, device=v.device)
        lipschitz = torch.full_like(t, max(start, mu))
        while True:
            value, grad = energy.value_and_grad(v)
            out.evaluations[out.active] += 1
            status = stopping.status(energy, v, grad)
            late = out.evaluations[out.active] >= self.max_iterations
            status[late & (status == RUNNING)] = Status.ITERATION_LIMIT
            done = status != RUNNING
            if done.any():
                rest = out.finish(done, status, v, grad, stopping.certificate(energy, v, grad))
                if rest.numel() == 0:
                    return out.solution()
                energy = energy.select(rest)
                stopping.select(rest)
                x, v, t, lipschitz, value, grad = x[rest], v[rest], t[rest], lipschitz[rest], value[rest], grad[rest]
            if backtracking:
                lipschitz, raised = self._backtrack(energy, v, value, grad, lipschitz, out)
                t = torch.where(raised, torch.zeros_like(t), t)
            new = v - grad / over_image(lipschitz, v)
            q = (mu / lipschitz).clamp_max(1 - 1e-12)
            a = 1 - q * t * t
            t_new = (a + torch.sqrt(a * a + 4 * t * t)) / 2
            # momentum for the next point: one more step of the recursion, with x the point before `new`
            t_next = self._next(q, t_new)
            beta = (t_new - 1) * (1 - t_next * q) / (t_next * (1 - q)) if self.accelerated else torch.zeros_like(q)
            v = new + over_image(beta, v) * (new - x)
            x, t = new, t_new

    @staticmethod
    def _next(q: Tensor, t: Tensor) -> Tensor:
        a = 1 - q * t * t
        return (a + torch.sqrt(a * a + 4 * t * t)) / 2

    @staticmethod
    def _backtrack(
        energy: Energy, v: Tensor, value: Tensor, grad: Tensor, lipschitz: Tensor, out: Collector
    ) -> tuple[Tensor, Tensor]:
        """Raise L per image until the descent inequality holds; also returns where it was raised."""
        start, norm2 = lipschitz.clone(), per_image_norm(grad).square()
        for _ in range(100):
            trial = v - grad / over_image(lipschitz, v)
            trial_value, trial_grad = energy.value_and_grad(trial)
            out.evaluations[out.active] += 1
            violated = trial_value > value - norm2 / (2 * lipschitz)
            # where values cannot resolve the decrease, co-coercivity of the gradients decides
            flat = (trial_value - value).abs() <= 1e-6 * value.abs()
            change = grad - trial_grad
            steep = per_image_norm(change).square() > lipschitz * per_image_dot(change, v - trial)
            violated = torch.where(flat, steep, violated) | ~torch.isfinite(trial_value)
            if not violated.any():
                break
            lipschitz = torch.where(violated, 2 * lipschitz, lipschitz)
        return lipschitz, lipschitz > start
