"""Energies: is the certified distance at least the true one, and the residual of adjoint equations the true one?"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.certified import problems
from benchmarks.certified.newton import Array, Energy, extended, minimize, norm
from benchmarks.certified.problems import Fitted, Measured, Problem, Regular, Rng
from models.icnn_saddle import PrimalDual
from recon.lower_level import FISTA, LBFGS, NotStronglyConvexError, ProjectedLBFGS, Solver, Status
from recon.lower_level import Energy as Certified


@dataclass(frozen=True)
class Check:
    """One claim: ``claimed`` >= ``true`` - ``own`` (the error of the reference), or not.

    margin: claimed / (true - own) - 1, infinite where the reference cannot say; negative: refuted.
    """

    what: str
    claimed: float
    true: float
    own: float
    note: str = ""
    counts: bool = True

    @property
    def margin(self) -> float:
        """How much larger than the truth the claim is."""
        least = self.true - self.own
        if math.isnan(self.claimed):
            return -1.0
        if not least > 0:
            return math.inf
        return self.claimed / least - 1

    @property
    def refuted(self) -> bool:
        """Whether the truth is larger than what was claimed, by more than the reference may be wrong."""
        return self.counts and self.margin < 0


def random_problem(
    rng: Rng, measured: Measured, make: Any, dtype: torch.dtype, batch: int, scale: float = 1.0, kl: bool = False
) -> Problem:
    """Data of random images, with noise, and mu such that the energy is strongly convex."""
    image, n = measured.image, math.prod(measured.image)
    truth = rng.normal(size=(batch, *image)) if rng.random() < 0.3 else rng.random((batch, *image))
    if kl:
        truth = np.abs(truth)
    truth = truth * scale
    clean = (measured.matrix @ truth.reshape(batch, n).T).T.astype(np.float64)
    shape = tuple(measured.operator.range_shape or image)
    if kl:
        peak, background = 10.0 ** rng.uniform(-1, 4), 10.0 ** rng.uniform(-2, 2)
        clean = clean * (peak / max(float(np.abs(clean).max()), 1e-300))
        near = rng.random() < 0.5  # most counts are those of the background
        y = rng.poisson(np.maximum(clean * (0.01 if near else 1), 0) + background).astype(float)
        if rng.random() < 0.3:
            y = np.full_like(y, background) * (1 + 1e-3 * rng.normal(size=y.shape))
    else:
        noise = 10.0 ** rng.uniform(-4, 0) * (np.abs(clean).mean() + 1e-300)
        y = clean + noise * rng.normal(size=clean.shape)
        if rng.random() < 0.1:
            y = y + 10.0 ** rng.uniform(1, 4) * scale  # data far from all A x
    data = torch.from_numpy(y.reshape(batch, *shape)).to(dtype)
    fitted: Fitted
    fitted = problems.counts(background, data) if kl else problems.squared(rng, shape, data)
    regular: Regular = make(rng, image, dtype, **({"scale": scale} if scale != 1 else {}))
    low, high = measured.singular_values
    needed = regular.concavity - low**2 * fitted.bounds[0]
    mu = 0.0
    if needed >= -1e-6 * high**2 * fitted.bounds[0] or rng.random() < 0.3:
        mu = max(needed, 0.0) * 1.02 + 10.0 ** rng.uniform(-4, 0) * max(high**2 * min(fitted.bounds[1], 1e8), 1e-6)
    return Problem(measured, regular, fitted, data, torch.from_numpy(truth).to(dtype), float(mu))


def certified(problem: Problem) -> Certified:
    """The energy of the project."""
    regularizer, operator = problem.regular.regularizer, problem.measured.operator
    return Certified(problem.y, regularizer, operator, problem.fitted.fidelity, problem.mu)


def starts(rng: Rng, problem: Problem, reference: Array) -> Tensor:
    """Zero, something random, the true image, or what is nearly the minimizer."""
    shape, like = (len(problem.y), *problem.measured.image), problem.truth
    kind = rng.integers(5)
    near = torch.from_numpy(reference.astype(np.float64).reshape(shape))
    if kind == 0:
        return torch.zeros_like(like)
    if kind == 1:
        size = float(like.abs().max()) or 1.0
        return (torch.from_numpy(rng.normal(size=shape)) * size * 10.0 ** rng.uniform(-2, 3)).to(like)
    if kind == 2:
        return like.clone()
    moved = near * (1 + 10.0 ** rng.uniform(-17, -3) * torch.from_numpy(rng.normal(size=shape)))
    return moved.to(like)


def accuracies(rng: Rng, batch: int, size: Array, coarse: float = 1.0) -> Tensor:
    """From coarse to far below what any precision allows, relative to the size of the images."""
    top = np.maximum(np.asarray(size, dtype=np.float64), 1e-290)
    return torch.from_numpy(coarse * top * 10.0 ** rng.uniform(-17, 0.5, batch))


def solver_for(rng: Rng, kind: str) -> tuple[str, Solver]:
    """A solver with random options."""
    limit = int(rng.choice([5, 50, 2000], p=[0.1, 0.2, 0.7]))
    if kind == "nonnegative":
        return "ProjectedLBFGS", ProjectedLBFGS(max_iterations=limit, precondition=bool(rng.integers(2)))
    if kind == "primal_dual":
        return "PrimalDual", PrimalDual(max_iterations=10 * limit)
    which = rng.integers(5)
    if which <= 1:
        return "LBFGS", LBFGS(max_iterations=limit, precondition=bool(rng.integers(2)))
    if which == 4:
        return "gradient descent", FISTA(max_iterations=min(limit, 300), accelerated=False)
    return "FISTA", FISTA(max_iterations=limit, backtracking=which == 3)


def check_energy(
    rng: Rng, problem: Problem, solver: tuple[str, Solver], nonnegative: bool = False, adjoint: bool = True
) -> Iterable[Check]:
    """Solve, and compare with the reference: errors, statuses, and the residual of the adjoint equations."""
    exact = problem.energy()
    batch = len(problem.y)
    found = minimize(exact, np.zeros((batch, problem.measured.matrix.shape[1])), nonnegative)
    x0 = starts(rng, problem, found.x)
    size = norm(extended(problem.truth).reshape(batch, -1))
    goal = accuracies(rng, batch, np.where(found.accuracy < 1e-3 * size, norm(found.x), size))
    try:
        energy = certified(problem)
        solution = solver[1](energy, x0, goal)
    except NotStronglyConvexError:
        return
    x = extended(solution.x).reshape(batch, -1)
    if not bool((found.accuracy <= 1e-3 * norm(x - found.x)).all()):
        again = minimize(exact, x, nonnegative)
        better = (again.accuracy < found.accuracy)[:, None]
        found = type(found)(
            np.where(better, again.x, found.x),
            np.minimum(again.accuracy, found.accuracy),
            np.where(better[:, :, None], again.hessian, found.hessian),
        )
    distance = norm(x - found.x)
    note = f"{solver[0]} {problem.regular.name} mu={problem.mu:.3g}"
    for i in range(batch):
        status, error = int(solution.status[i]), float(solution.error[i])
        label = f"{note} image {i} {Status(status).name} asked {float(goal[i]):.3g}"
        yield Check("error", error, float(distance[i]), float(found.accuracy[i]), label)
        if status == Status.CONVERGED:
            yield Check("converged", float(goal[i]), error, 0.0, label)
    if adjoint and not nonnegative:
        yield from check_adjoint(rng, problem, energy, exact, solution.x, note)


def check_adjoint(
    rng: Rng, problem: Problem, energy: Certified, exact: Energy, at: Tensor, note: str
) -> Iterable[Check]:
    """The residual of conjugate gradients at any x, which need not be a minimizer."""
    if not bool(torch.isfinite(at).all()):
        return
    b = at - problem.truth
    start = torch.zeros_like(b) if rng.integers(2) else b.clone()
    top = float(b.double().norm()) or 1.0
    limit = int(rng.choice([3, 300]))
    solved = energy.solve_adjoint(at, b, start, top * 10.0 ** rng.uniform(-17, -1), limit)
    flat, w = extended(at).reshape(len(at), -1), extended(solved.w).reshape(len(at), -1)
    product = exact.product(flat, w)
    residual = norm(extended(b).reshape(len(at), -1) - product)
    # the product is exact to 2^-64 of the terms that it adds up
    own = 64 * 2.0**-64 * (norm(product) + norm(w) * np.linalg.norm(exact.dense(flat), axis=(1, 2)))
    for i in range(len(at)):
        label = f"{note} image {i} adjoint {Status(int(solved.status[i])).name}"
        yield Check("adjoint", float(solved.residual_norm[i]), float(residual[i]), float(own[i]), label)
