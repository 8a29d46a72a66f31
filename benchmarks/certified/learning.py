"""Learning problems: do the intervals hold the exact loss, and is the hypergradient as near as omega says?"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks.certified import formulas
from benchmarks.certified.energies import Check
from benchmarks.certified.newton import LD, Array, Minimum, derivative, extended, minimize, norm, solve_linear
from benchmarks.certified.problems import Problem, Rng
from recon.bilevel import BilevelObjective
from recon.bilevel.loss import NegativePSNR, SquaredError, UpperLoss
from recon.bilevel.objective import Accuracy, Evaluation
from recon.lower_level import FISTA, LBFGS, NotStronglyConvexError


class Loss:
    """q(x) = 1/2 ||M (x - x*)||^2 and g = q or -PSNR, as formulas."""

    def __init__(self, project: UpperLoss, inner: Array, target: Array, psnr_range: float = 0.0) -> None:
        self.project, self.inner, self.target, self.range = project, inner.astype(LD), target, psnr_range

    def slope(self, x: Array) -> Array:
        """The gradient of q."""
        return self.inner * (x - self.target)

    def value(self, x: Array) -> Array:
        """g per image."""
        q = (self.inner * (x - self.target) ** 2).sum(1) / 2
        return 10 * np.log10(2 * q / (self.inner.sum() * LD(self.range) ** 2)) if self.range else q

    def weight(self, x: Array) -> Array:
        """dg/dq."""
        q = (self.inner * (x - self.target) ** 2).sum(1) / 2
        return 10 / np.log(LD(10)) / q if self.range else 1 + 0 * q

    def uncertainty(self, at: Minimum) -> float:
        """How far the mean of :meth:`value` can be from the truth."""
        moved = norm(self.slope(at.x)) * at.accuracy + at.accuracy**2
        return float((self.weight(at.x) * moved).mean() + 64 * 2.0**-64 * np.abs(self.value(at.x)).mean())


def random_loss(rng: Rng, problem: Problem) -> Loss:
    """Squared errors with or without a margin, or PSNR."""
    _, height, width = image = problem.measured.image
    margin = int(rng.integers(2)) if min(height, width) > 3 else 0
    inner = np.zeros(image)
    inner[:, margin : height - margin, margin : width - margin] = 1
    target = extended(problem.truth).reshape(len(problem.truth), -1)
    if rng.random() < 0.3:
        spread = float(rng.choice([1.0, 255.0]))
        return Loss(NegativePSNR(margin, spread), inner.reshape(1, -1), target, spread)
    return Loss(SquaredError(margin), inner.reshape(1, -1), target)


def hypergradient(problem: Problem, loss: Loss, at: Minimum) -> tuple[Array, float]:
    """grad f, by implicit differentiation in extended precision, and an estimate of its error."""
    theta = formulas.as_parameters(problem.regular.regularizer)
    w, error = solve_linear(problem.energy(), at, loss.slope(at.x))
    weighted = loss.weight(at.x)[:, None] * w / len(w)

    def paired(flat: Array) -> Any:
        return (problem.regular.build(formulas.like(theta, flat)).grad(at.x) * weighted).sum()

    gradient, own = derivative(paired, formulas.flattened(theta))
    relative = (at.accuracy / norm(at.x) + error / np.maximum(norm(w), LD(1e-300))).max()
    size = float(np.sqrt((gradient**2).sum()))
    return -gradient, own + 1e3 * float(relative) * size


def check_learning(rng: Rng, problem: Problem) -> Iterable[Check]:
    """Evaluate an objective at random accuracies, warm-started or not, with a hypergradient and its bound."""
    loss = random_loss(rng, problem)
    solver = FISTA() if rng.random() < 0.3 else LBFGS()
    objective = BilevelObjective(
        problem.regular.regularizer,
        problem.truth,
        problem.y,
        problem.measured.operator,
        problem.fitted.fidelity,
        problem.mu,
        loss.project,
        solver,
        chunk_size=int(rng.integers(1, len(problem.y) + 1)),
        max_adjoint_iterations=500,
    )
    scale = float(problem.truth.double().norm()) or 1.0
    try:
        modulus = objective._modulus()
    except NotStronglyConvexError:
        return
    accuracy = scale * 10.0 ** rng.uniform(-15, 0)
    evaluation = None
    if rng.integers(2):
        evaluation = objective.evaluate(Accuracy(30 * accuracy, 30 * modulus * accuracy), None, bool(rng.integers(2)))
    goal = Accuracy(accuracy, modulus * accuracy * 10.0 ** rng.uniform(-2, 2))
    evaluation = objective.evaluate(goal, evaluation, bool(rng.random() < 0.8))
    at = minimize(problem.energy(), extended(evaluation.x).reshape(len(problem.y), -1))
    name = f"{problem.regular.name} mu={problem.mu:.3g} {type(loss.project).__name__} asked {accuracy:.3g}"
    yield from check_interval(evaluation, loss, at, name)
    if problem.fitted.fidelity.quadratic or rng.integers(2):
        yield from check_omega(objective, evaluation, goal, problem, loss, at, name)


def check_interval(evaluation: Evaluation, loss: Loss, at: Minimum, note: str) -> Iterable[Check]:
    """f in [lower, upper], and the distances of the images."""
    distance = norm(extended(evaluation.x).reshape(len(at.x), -1) - at.x)
    for i in range(len(at.x)):
        yield Check("error", float(evaluation.error[i]), float(distance[i]), float(at.accuracy[i]), note)
    exact, own = loss.value(at.x).mean(), loss.uncertainty(at)
    if not math.isfinite(own):
        return
    value = LD(evaluation.value)
    yield Check("below", float(value - LD(evaluation.lower)), float(value - exact), own, note)
    yield Check("above", float(LD(evaluation.upper) - value), float(exact - value), own, note)


def check_omega(
    objective: Any,
    evaluation: Evaluation,
    goal: Accuracy,
    problem: Problem,
    loss: Loss,
    at: Minimum,
    note: str,
) -> Iterable[Check]:
    """||z - grad f|| <= omega; bounds that are called estimates do not count as refuted."""
    found = objective.hypergradient(evaluation, goal, bound=True)
    exact, own = hypergradient(problem, loss, at)
    true = float(np.sqrt(((extended(found.z) - exact) ** 2).sum()))
    note = f"{note} |z| {float(found.z.norm()):.3g}{'' if found.certified else ' not certified'}"
    yield Check("omega", found.error, true, own, note, counts=found.certified)
