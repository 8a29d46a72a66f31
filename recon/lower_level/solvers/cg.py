"""Conjugate gradients for a batch of positive definite systems."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recon.lower_level.batch import PerImage, over_image, per_image_accuracy, per_image_dot, per_image_norm
from recon.lower_level.precision import full_precision
from recon.lower_level.regularizer import HessianMap
from recon.lower_level.solution import RUNNING, LinearSolution, Status
from recon.lower_level.solvers.compiled.conjugate import ConjugateSteps
from recon.lower_level.solvers.compiled.library import usable
from recon.lower_level.solvers.preconditioner import Preconditioner


@full_precision()
def conjugate_gradients(
    hessian: HessianMap,
    b: Tensor,
    w0: Tensor,
    accuracy: float | Tensor,
    max_iterations: int = 10_000,
    residual: Tensor | None = None,
    rounding: float = math.inf,
    preconditioner: Preconditioner | None = None,
) -> LinearSolution:
    """Solve B w = b to ||Bw - b|| <= ``accuracy`` per image, from ``w0``; images leave when done.

    The recurred residual says when to look. It is restarted from a true one where the gap between both may be too
    large; if a restart does not reduce the residual any more, the image is at the floor of its precision.

    Parameters
    ----------
    hessian : HessianMap
        w -> B w, positive definite, for the batch.
    b, w0 : Tensor
        Right-hand sides, and where to start.
    accuracy : float or Tensor
        Absolute; a number, or one per image.
    max_iterations : int
        Products with B of one image after which it counts as not converged.
    residual : Tensor, optional
        b - B w0, if the caller knows it already.
    rounding : float
        u ||B|| with the unit roundoff u, infinite where ||B|| is not known: what is computed of a residual is wrong by
        ``rounding`` ||w||, which is added to its norm.
    preconditioner : Preconditioner, optional
        Applies P^{-1} with P about B: it changes the directions; residuals and accuracies stay those of Bw - b in the
        Euclidean norm.

    Returns
    -------
    LinearSolution
        w, its residuals and bounds of them, and why the iteration stopped.

    Raises
    ------
    ValueError
        An accuracy is not positive.
    """
    goal, w = per_image_accuracy(accuracy, b), w0.detach().clone()
    evaluations = torch.full_like(goal, int(residual is None), dtype=torch.int64)
    residual = b - hessian(w) if residual is None else residual.clone()
    return _restarted(hessian, b, w, residual, goal, evaluations, max_iterations, rounding, preconditioner)


def _restarted(
    hessian: HessianMap,
    b: Tensor,
    w: Tensor,
    residual: Tensor,
    goal: Tensor,
    evaluations: Tensor,
    max_iterations: int,
    rounding: float,
    preconditioner: Preconditioner | None,
) -> LinearSolution:
    """Cycles of conjugate gradients; all tensors are changed in place.

    By how much the recurred residual can differ from the true one is bounded, to first order, by ``rounding`` times the
    sum over the iterations of ||w|| + 2||step|| (Greenbaum 1997). Where that gap is below a hundredth of the accuracy,
    it is added to the norm of the residual; elsewhere the residual is recomputed, and an image whose true residual is
    still too large restarts.
    """
    noise = rounding if rounding < math.inf else 0.0
    status, previous = torch.full_like(evaluations, RUNNING), torch.full_like(goal, torch.inf)
    drift = noise * per_image_norm(w)
    while True:
        norm = per_image_norm(residual) + drift
        status[(status == RUNNING) & (norm <= goal)] = Status.CONVERGED
        status[(status == RUNNING) & ~torch.isfinite(norm)] = Status.NOT_FINITE
        status[(status == RUNNING) & (evaluations >= max_iterations)] = Status.ITERATION_LIMIT
        status[(status == RUNNING) & (norm > 0.5 * previous)] = Status.PRECISION_FLOOR
        active = torch.nonzero(status == RUNNING).flatten()
        if active.numel() == 0:
            return LinearSolution(w, residual, norm, status, evaluations, drift)
        previous = norm
        part = hessian if len(active) == len(b) else hessian.select(active)
        inverse = preconditioner.select(active) if preconditioner is not None else None
        budget = max_iterations - evaluations[active]
        room = torch.maximum(goal - drift, 0.1 * goal)
        w[active], residual[active], gap, spent = _cycle(
            part, residual[active], w[active], room[active], budget, rounding, inverse
        )
        evaluations[active] += spent
        drift[active] += gap
        doubtful = ~(gap <= 0.01 * goal[active])
        if doubtful.any():
            index = active[doubtful]
            rows = torch.nonzero(doubtful).flatten()
            residual[index] = b[index] - (part if len(index) == len(active) else part.select(rows))(w[index])
            evaluations[index] += 1
            drift[index] = noise * per_image_norm(w[index])


def _cycle(
    hessian: HessianMap,
    residual: Tensor,
    w: Tensor,
    goal: Tensor,
    budget: Tensor,
    rounding: float,
    inverse: Preconditioner | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Conjugate gradients until the recurred residual of every image is below 0.9 of its goal, or stagnates.

    Returns w, its recurred residual, the bound of the gap to the true one, and the products spent per image.
    """
    result, left = w.clone(), residual.clone()
    gaps, spent = torch.zeros_like(goal), torch.zeros(len(w), dtype=torch.int64, device=w.device)
    active = torch.arange(len(w), device=w.device)
    cycle = Cycle(w, residual, goal, budget, rounding, None if inverse is None else inverse(residual))
    while True:
        done = cycle.advance(hessian(cycle.p))
        if done is not None and done.any():
            index = active[done]
            result[index], left[index] = cycle.w[done], cycle.r[done]
            gaps[index], spent[index] = cycle.gaps[done], cycle.spent[done]
            keep = torch.nonzero(~done).flatten()
            if keep.numel() == 0:
                return result, left, gaps, spent
            active, hessian = active[keep], hessian.select(keep)
            cycle.select(keep)
            inverse = inverse.select(keep) if inverse is not None else None
        cycle.turn(None if inverse is None else inverse(cycle.r))


class Cycle(PerImage):
    """Images on their way by conjugate gradients: w, the recurred residual r and the direction p, all of them copies.

    Parameters
    ----------
    w, r : Tensor
        Where to start, and the residual there.
    goal, budget : Tensor
        What the residual may be, and the products that may be spent, per image.
    rounding : float
        See :func:`conjugate_gradients`.
    z : Tensor, optional
        The preconditioned residual, if there is a preconditioner.

    Attributes
    ----------
    gaps, spent : Tensor
        Bounds of how far r is from the true residual, and products spent, per image.
    """

    def __init__(self, w: Tensor, r: Tensor, goal: Tensor, budget: Tensor, rounding: float, z: Tensor | None) -> None:
        self.w, self.r, self.p = (v.clone(memory_format=torch.contiguous_format) for v in (w, r, r if z is None else z))
        self.goal, self.budget, self.rounding = goal, budget, rounding
        self.rz = per_image_dot(self.r, self.p)  # <r, P^{-1} r>
        self.square, self.gaps, self.spent = self.rz.clone(), torch.zeros_like(goal), torch.zeros_like(budget)
        self._steps: ConjugateSteps | None = None

    def select(self, index: Tensor) -> None:
        super().select(index)
        self._steps = None

    def _compiled(self) -> ConjugateSteps | None:
        if self._steps is None and (kernel := usable(self.w)) is not None:
            self._steps = ConjugateSteps(kernel, self)
        return self._steps

    def advance(self, product: Tensor) -> Tensor | None:
        """A step along p, for ``product`` Bp; returns which images are done, or None if none is."""
        if (steps := self._compiled()) is not None:
            return steps.advance(product)
        w, r, p = self.w, self.r, self.p
        curvature = per_image_dot(p, product)
        step = torch.where(curvature > 0, self.rz / curvature, torch.zeros_like(self.rz))
        self.w = w = w + over_image(step, w) * p
        self.r = r = r - over_image(step, r) * product
        self.gaps = self.gaps + self.rounding * (per_image_norm(w) + 2 * step.abs() * per_image_norm(p))
        self.square, self.spent = per_image_dot(r, r), self.spent + 1
        # 0.9 leaves room for the gap, and for a recomputed residual that is a little larger
        small = self.square.sqrt() <= 0.9 * self.goal
        return small | ~(curvature > 0) | (self.spent + 1 >= self.budget)

    def turn(self, z: Tensor | None) -> None:
        """The next p; ``z``: the preconditioned residual, if there is a preconditioner."""
        if (steps := self._compiled()) is not None:
            steps.turn(z)
            return
        new = self.square if z is None else per_image_dot(self.r, z)
        self.p = (self.r if z is None else z) + over_image(new / self.rz, self.p) * self.p
        self.rz = new
