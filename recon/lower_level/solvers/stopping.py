"""When the iteration of one image may stop, and what is certified then."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from recon.lower_level.batch import per_image_norm
from recon.lower_level.energy import Energy
from recon.lower_level.grade import Grade, grade_bounds
from recon.lower_level.solution import RUNNING, Solution, Status

# Evaluations without progress near the rounding error after which an image is at its floor. FISTA's gradients ripple
# with a period of about sqrt(L / mu) evaluations, which stays below this wherever single precision is of use.
PATIENCE = 100


class Stopping:
    r"""Per-image stopping by the certificate \|\|x - x^\|\| <= (\|\|grad h(x)\|\| + rounding) / mu.

    An image is CONVERGED when the certificate is below ``accuracy``; it is at the PRECISION_FLOOR when the computed
    gradient is no larger than its own rounding error, which no further iteration can improve, or within a thousand
    times this and has not fallen by a tenth in ``PATIENCE`` evaluations: the model of the rounding error knows the
    energy, not how an operator computes.
    With ``certified=False`` the accuracy is asked of \|\|grad h\|\| itself, and the reported error is infinite unless
    the energy is known to be strongly convex. It is also infinite where the adjoint is not the exact transpose
    (:attr:`recon.operators.LinearOperator.adjoint_exact`): what is computed is no gradient then.
    """

    def __init__(self, energy: Energy, accuracy: float | Tensor, x0: Tensor, certified: bool = True) -> None:
        energy.check_start(x0)
        batch, accuracy = len(x0), torch.as_tensor(accuracy, dtype=torch.float64)
        if accuracy.numel() not in (1, batch) or accuracy.ndim > 1:
            raise ValueError(f"needs one accuracy, or one for each of {batch} images, got {tuple(accuracy.shape)}")
        if not bool((accuracy > 0).all()):
            raise ValueError(f"the accuracy asked for is {float(accuracy.min()):g}, but must be positive")
        modulus = energy.require_strong_convexity() if certified else energy.strong_convexity
        self.mu = modulus if modulus > 0 else math.nan
        self.accuracy = accuracy.to(energy.y.device).expand(batch).clone()
        self.scale = self.mu if certified else 1.0
        self.best = torch.full_like(self.accuracy, math.inf)
        self.stale = torch.zeros_like(self.accuracy)

    def certificate(self, energy: Energy, x: Tensor, grad: Tensor) -> Certificate:
        """The certified distance of x to the minimizer."""
        return certificate(energy, x, per_image_norm(grad), self.mu)

    def status(self, energy: Energy, x: Tensor, grad: Tensor) -> Tensor:
        """Status of every image still running, ``RUNNING`` where it has to go on."""
        norm = per_image_norm(grad)
        rounding = energy.rounding(x, norm)
        status = torch.full_like(norm, RUNNING, dtype=torch.int64)
        better = norm <= 0.9 * self.best
        self.best = torch.where(better, norm, self.best)
        self.stale = torch.where(better, 0.0, self.stale + 1)
        status[norm <= rounding] = Status.PRECISION_FLOOR
        status[(self.stale >= PATIENCE) & (norm <= 1000 * rounding)] = Status.PRECISION_FLOOR
        status[norm + rounding <= self.scale * self.accuracy] = Status.CONVERGED
        status[~torch.isfinite(norm)] = Status.NOT_FINITE
        return status

    def select(self, index: Tensor) -> None:
        """Keep the images ``index`` only."""
        self.accuracy, self.best, self.stale = self.accuracy[index], self.best[index], self.stale[index]


class Certificate(NamedTuple):
    """error, its modelled part, and its grade, per image: see :class:`recon.lower_level.Solution`."""

    error: Tensor
    rounding: Tensor
    grade: Tensor


def certificate(energy: Energy, x: Tensor, norm: Tensor, modulus: float) -> Certificate:
    """(norm + rounding) / modulus for the norms of what is left of the gradient; infinite without an exact adjoint."""
    rounding = energy.rounding(x, norm) / modulus
    error = norm / modulus + rounding
    known = torch.isfinite(error) & energy.operator.adjoint_exact
    error, rounding = (torch.where(known, v, torch.inf) for v in (error, rounding))
    return Certificate(error, rounding, grade_bounds(error, rounding, energy.working_dtype(x.dtype), energy.basis))


def merged(active: Tensor, running: tuple[Tensor, ...], ended: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Tensors of the whole batch from those of the images ``active`` and, of all others, from ``ended``."""
    if len(active) == len(ended[0]):
        return running
    whole = tuple(tensor.clone() for tensor in ended)
    for mine, new in zip(whole, running, strict=True):
        mine[active] = new
    return whole


class Collector:
    """Gathers the images of a batch as they finish, each at its own time."""

    def __init__(self, x: Tensor) -> None:
        batch, device = x.shape[0], x.device
        self.x, self.gradient = x.detach().clone(), torch.full_like(x, math.nan)
        self.error = torch.full((batch,), math.inf, dtype=torch.float64, device=device)
        self.rounding = self.error.clone()
        self.grade = torch.full((batch,), int(Grade.ESTIMATED), dtype=torch.int64, device=device)
        self.status = torch.full((batch,), RUNNING, dtype=torch.int64, device=device)
        self.evaluations = torch.zeros(batch, dtype=torch.int64, device=device)
        self.active = torch.arange(batch, device=device)

    def finish(
        self, done: Tensor, status: Tensor, x: Tensor, gradient: Tensor, evaluations: Tensor, found: Certificate
    ) -> Tensor:
        """Store the images where ``done`` holds; returns the positions of those that go on."""
        index = self.active[done]
        self.x[index], self.gradient[index], self.evaluations[index] = x[done], gradient[done], evaluations[done]
        self.status[index], self.error[index] = status[done], found.error[done]
        self.rounding[index], self.grade[index] = found.rounding[done], found.grade[done]
        rest = torch.nonzero(~done).flatten()
        self.active = self.active[rest]
        return rest

    def solution(self) -> Solution:
        """The collected batch."""
        return Solution(self.x, self.gradient, self.error, self.status, self.evaluations, self.rounding, self.grade)
