"""Conjugate gradients for a batch of positive definite systems."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recon.lower_level.batch import over_image, per_image_accuracy, per_image_dot, per_image_norm
from recon.lower_level.precision import full_precision
from recon.lower_level.regularizer import HessianMap
from recon.lower_level.solution import RUNNING, LinearSolution, Status
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
    r, p = residual, residual.clone() if inverse is None else inverse(residual)
    rs = per_image_dot(r, r if inverse is None else p)  # <r, P^{-1} r>
    while True:
        bp = hessian(p)
        spent[active] += 1
        curvature = per_image_dot(p, bp)
        step = torch.where(curvature > 0, rs / curvature, torch.zeros_like(rs))
        w = w + over_image(step, w) * p
        r = r - over_image(step, r) * bp
        gaps[active] += rounding * (per_image_norm(w) + 2 * step.abs() * per_image_norm(p)).double()
        square = per_image_dot(r, r)
        # 0.9 leaves room for the gap, and for a recomputed residual that is a little larger
        done = (square.double().sqrt() <= 0.9 * goal) | ~(curvature > 0) | (spent[active] + 1 >= budget)
        if done.any():
            index = active[done]
            result[index], left[index] = w[done], r[done]
            keep = torch.nonzero(~done).flatten()
            if keep.numel() == 0:
                return result, left, gaps, spent
            active, goal, budget, hessian = active[keep], goal[keep], budget[keep], hessian.select(keep)
            w, r, p, rs, square = w[keep], r[keep], p[keep], rs[keep], square[keep]
            inverse = inverse.select(keep) if inverse is not None else None
        z = r if inverse is None else inverse(r)
        new = square if inverse is None else per_image_dot(r, z)
        p = z + over_image(new / rs, r) * p
        rs = new
