"""L-BFGS for a batch of strongly convex energies; every image has its own history, step and stopping."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recon.lower_level.batch import over_image, per_image_dot
from recon.lower_level.energy import Energy
from recon.lower_level.precision import full_precision
from recon.lower_level.solution import RUNNING, Solution, Status
from recon.lower_level.solvers.preconditioner import Preconditioner
from recon.lower_level.solvers.quasi_newton import InverseHessian
from recon.lower_level.solvers.solver import Solver
from recon.lower_level.solvers.stopping import Collector, Stopping

SMALLEST_STEP = 1e-8


class LBFGS(Solver):
    r"""Limited-memory BFGS with Armijo backtracking (Nocedal and Wright 2006, algorithm 7.5).

    A trial step a along d is accepted if h(x + ad) <= h(x) + c a <grad h(x), d>, or, where h cannot resolve the
    decrease any more, if the slope at the trial is at most (1 - 2c) \|<grad h(x), d>\| (the approximate Wolfe test of
    Hager and Zhang 2005): near the minimizer gradients stay accurate long after values have stopped changing.

    Parameters
    ----------
    memory: number of (step, change of gradient) pairs per image.
    max_iterations: evaluations of one image after which it counts as not converged.
    armijo: c.
    certified: refuse energies without a known modulus of strong convexity; otherwise ``accuracy`` bounds the gradient.
    precondition: start from :meth:`Energy.preconditioner` instead of a multiple of the identity where there is one.
        It changes the directions; what is certified stays the same.
    """

    def __init__(
        self,
        memory: int = 10,
        max_iterations: int = 10_000,
        armijo: float = 1e-4,
        certified: bool = True,
        precondition: bool = True,
    ) -> None:
        if memory < 1 or max_iterations < 1:
            raise ValueError(f"memory ({memory}) and max_iterations ({max_iterations}) must be at least 1")
        if not 0 < armijo < 0.5:
            raise ValueError(f"armijo is {armijo}, but must lie in (0, 1/2)")
        self.memory, self.max_iterations, self.armijo, self.certified = memory, max_iterations, armijo, certified
        self.precondition = precondition

    @full_precision()
    def __call__(self, energy: Energy, x0: Tensor, accuracy: float | Tensor) -> Solution:
        """Minimize h from ``x0`` to certified distance ``accuracy`` (a number, or one per image)."""
        stopping = Stopping(energy, accuracy, x0, self.certified)
        out = Collector(x0)
        x = x0.detach().clone()
        value, grad = energy.value_and_grad(x)
        out.evaluations += 1
        history = InverseHessian(x.flatten(1), self.memory)
        fresh = torch.ones(len(x), dtype=torch.bool, device=x.device)  # images that need a new direction
        resolution = 1e-6 if x.dtype == torch.float32 else 1e-12  # of values of h, whose sums are in double precision
        direction, step = torch.zeros_like(x), torch.ones(len(x), dtype=torch.float64, device=x.device)
        inverse = energy.preconditioner(x) if self.precondition else None
        for iteration in range(self.max_iterations + 1):
            status = stopping.status(energy, x, grad)
            status[(step < SMALLEST_STEP) & (status == RUNNING)] = Status.PRECISION_FLOOR
            if iteration == self.max_iterations:
                status[status == RUNNING] = Status.ITERATION_LIMIT
            done = status != RUNNING
            if done.any():
                rest = out.finish(done, status, x, grad, stopping.certificate(energy, x, grad))
                if rest.numel() == 0:
                    break
                energy = energy.select(rest)
                stopping.select(rest)
                history.select(rest)
                x, value, grad = x[rest], value[rest], grad[rest]
                direction, step, fresh = direction[rest], step[rest], fresh[rest]
                inverse = inverse.select(rest) if inverse is not None else None
            if fresh.any():
                if inverse is None:
                    new = -history.apply(grad.flatten(1), self._initial_scale(energy, grad)).view_as(x)
                else:
                    first, one = inverse(grad).flatten(1), torch.ones_like(step)
                    new = -history.apply(grad.flatten(1), one, first).view_as(x)
                direction = torch.where(over_image(fresh, x), new, direction)
            trial = torch.addcmul(x, over_image(step, x), direction)
            trial_value, trial_grad = energy.value_and_grad(trial)
            out.evaluations[out.active] += 1
            before, after = per_image_dot(grad, direction), per_image_dot(trial_grad, direction)
            fresh = self._accepted(value, trial_value, step, before, after, resolution)
            self._remember(history, fresh, trial - x, trial_grad - grad, inverse)
            here = over_image(fresh, x)
            x, grad = torch.where(here, trial, x), torch.where(here, trial_grad, grad)
            value = torch.where(fresh, trial_value, value)
            # a rejected step is shortened to where the slope would vanish if it were linear, within [0.1, 0.5]
            secant = torch.nan_to_num(before / (before - after), nan=0.1).clamp(0.1, 0.5)
            step = torch.where(fresh, torch.ones_like(step), step * secant)
        return out.solution()

    @staticmethod
    def _initial_scale(energy: Energy, grad: Tensor) -> Tensor:
        if math.isfinite(energy.smoothness):
            return grad.new_full((len(grad),), 1 / energy.smoothness)
        return 1 / grad.flatten(1).norm(dim=1).clamp_min(1.0)

    def _accepted(
        self, old: Tensor, new: Tensor, step: Tensor, before: Tensor, after: Tensor, resolution: float
    ) -> Tensor:
        decrease = new <= old + self.armijo * step * before
        flat = (new - old).abs() <= resolution * old.abs()
        return (decrease | (flat & (after <= (2 * self.armijo - 1) * before))) & torch.isfinite(after)

    @staticmethod
    def _remember(
        history: InverseHessian, accepted: Tensor, s: Tensor, y: Tensor, inverse: Preconditioner | None
    ) -> None:
        z = None if inverse is None else inverse(y).flatten(1)
        s, y = s.flatten(1), y.flatten(1)
        sy = per_image_dot(s, y)
        useful = accepted & (sy > 1e-10 * s.norm(dim=1) * y.norm(dim=1))
        rows = torch.nonzero(useful).flatten()
        if len(rows) == len(s):
            history.update(rows, s, y, z)
        else:
            history.update(rows, s[rows], y[rows], None if z is None else z[rows])
