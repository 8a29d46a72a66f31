"""Energies: is the certified distance at least the true one, and the residual of adjoint equations the true one?"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from benchmarks.certified.checks import Check, check_converged, check_errors
from benchmarks.certified.newton import minimize
from benchmarks.certified.operators import Rng
from benchmarks.certified.problems import Problem
from benchmarks.certified.terms import UNIT, Array, Energy, extended, norm
from models.saddle_points.icnn_saddle import PrimalDual
from recon.lower_level import FISTA, LBFGS, NotStronglyConvexError, ProjectedLBFGS, Solver, Status
from recon.lower_level import Energy as Certified


def starts(rng: Rng, problem: Problem, minimizer: Array) -> Tensor:
    """Zero, something random, the true image, or what is nearly the minimizer."""
    like, noise = problem.truth, torch.from_numpy(rng.normal(size=problem.truth.shape))
    kind = rng.integers(5)
    if kind == 0:
        return torch.zeros_like(like)
    if kind == 1:
        size = float(like.abs().max()) or 1.0
        return (noise * size * 10.0 ** rng.uniform(-2, 3)).to(like)
    if kind == 2:
        return like.clone()
    near = torch.from_numpy(minimizer.astype(np.float64).reshape(like.shape))
    return (near * (1 + 10.0 ** rng.uniform(-17, -3) * noise)).to(like)


def accuracies(rng: Rng, size: Array) -> Tensor:
    """From coarse to far below what any precision allows, relative to the size of the images."""
    top = np.maximum(np.asarray(size, dtype=np.float64), 1e-290)
    return torch.from_numpy(top * 10.0 ** rng.uniform(-17, 0.5, len(top)))


def random_solver(rng: Rng, kind: str = "") -> Solver:
    """A solver with random options; now and then it may not come far."""
    limit = int(rng.choice([5, 50, 2000], p=[0.1, 0.2, 0.7]))
    if kind == "nonnegative":
        return ProjectedLBFGS(max_iterations=limit, precondition=bool(rng.integers(2)))
    if kind == "primal_dual":
        return PrimalDual(max_iterations=3 * limit)
    which = rng.integers(5)
    if which <= 1:
        return LBFGS(max_iterations=limit, precondition=bool(rng.integers(2)))
    if which == 4:
        return FISTA(max_iterations=min(limit, 300), accelerated=False)
    return FISTA(max_iterations=limit, backtracking=which == 3)


def check_energy(
    rng: Rng, problem: Problem, solver: Solver, nonnegative: bool = False, adjoint: bool = True
) -> Iterable[Check]:
    """Solve, and compare with the reference: errors, statuses, and the residual of the adjoint equations."""
    exact, batch = problem.energy(), len(problem.y)
    at = minimize(exact, np.zeros((batch, problem.measured.matrix.shape[1])), nonnegative)
    x0 = starts(rng, problem, at.x)
    size = norm(extended(problem.truth))
    goal = accuracies(rng, np.where(at.accuracy < 1e-3 * size, norm(at.x), size))
    try:
        energy = problem.certified()
        solution = solver(energy, x0, goal)
    except NotStronglyConvexError:
        return
    x = extended(solution.x).reshape(batch, -1)
    if not bool((at.accuracy <= 1e-3 * norm(x - at.x)).all()):
        at = at.better(minimize(exact, np.where(np.isfinite(x), x, 0), nonnegative))
    note = f"{type(solver).__name__} {problem.regular.name} mu={problem.mu:.3g}"
    yield from check_errors(
        solution.error, solution.rounding, solution.grade, norm(x - at.x), at.accuracy, f"{note} asked {goal.min():.3g}"
    )
    yield from check_converged(solution.status, goal, solution.error, note)
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
    goal = (float(b.double().norm()) or 1.0) * 10.0 ** rng.uniform(-17, -1)
    solved = energy.solve_adjoint(at, b, start, goal, int(rng.choice([3, 300])))
    x, w = extended(at).reshape(len(at), -1), extended(solved.w).reshape(len(at), -1)
    product = exact.product(x, w)
    residual = norm(extended(b).reshape(len(at), -1) - product)
    # the product is exact to UNIT of the terms that it adds up
    own = 64 * UNIT * (norm(product) + norm(w) * np.linalg.norm(exact.dense(x), axis=(1, 2)))
    claimed = solved.residual_norm  # of the Hessian as it is computed; what intervals and omega add where they use it:
    variation = problem.regular.regularizer.hessian_variation(solved.w)
    if variation is not None:
        more = energy.adjoint_rounding(at, solved.w, claimed, variation.lipschitz)
        claimed = claimed + torch.where(torch.isfinite(more), more, 0.0)
    for i in (solved.status != Status.NOT_FINITE).nonzero().flatten().tolist():  # which claims nothing
        yield Check("adjoint", float(claimed[i]), float(residual[i]), float(own[i]), f"{note} image {i}")
    yield from check_converged(
        solved.status, torch.full_like(solved.residual_norm, goal), solved.residual_norm, f"{note} adjoint"
    )
