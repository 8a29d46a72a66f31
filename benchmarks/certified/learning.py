"""Learning problems: do the intervals hold the exact loss, and is the hypergradient as near as omega says?"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.certified import formulas
from benchmarks.certified.checks import Check, check_errors
from benchmarks.certified.newton import Minimum, derivative, minimize_near, solve_linear
from benchmarks.certified.operators import Rng
from benchmarks.certified.problems import Problem
from benchmarks.certified.terms import LD, UNIT, Array, Energy, extended, norm
from recon.bilevel import MAID, BilevelObjective, Differentiation, PublishedMAID
from recon.bilevel.evaluation import Accuracy, Evaluation
from recon.bilevel.loss import NegativePSNR, SquaredError, UpperLoss
from recon.lower_level import FISTA, LBFGS, NotStronglyConvexError
from recon.lower_level.grade import Grade


class Loss:
    """q(x) = 1/2 ||M (x - x*)||^2 and g = q or -PSNR, as formulas; M is a mask."""

    def __init__(self, project: UpperLoss, inner: Array, target: Array, psnr_range: float = 0.0) -> None:
        self.project, self.inner, self.target, self.range = project, inner.astype(LD), target, psnr_range

    def slope(self, x: Array) -> Array:
        """The gradient of q."""
        return self.inner * (x - self.target)

    def value(self, x: Array) -> Array:
        """g per image."""
        q = (self.slope(x) ** 2).sum(1) / 2
        return 10 * np.log10(2 * q / (self.inner.sum() * LD(self.range) ** 2)) if self.range else q

    def weight(self, x: Array) -> Array:
        """dg/dq."""
        q = (self.slope(x) ** 2).sum(1) / 2
        return 10 / np.log(LD(10)) / q if self.range else 1 + 0 * q

    def uncertainty(self, at: Minimum) -> float:
        """How far the mean of :meth:`value` can be from the truth."""
        moved = norm(self.slope(at.x)) * at.accuracy + at.accuracy**2
        return float((self.weight(at.x) * moved).mean() + 64 * UNIT * np.abs(self.value(at.x)).mean())


@dataclass(frozen=True)
class Learned:
    """An objective of the project with its trained ``model``, and the lower level as a formula of the parameters.

    unknowns: of the lower level; images come first.
    """

    objective: BilevelObjective
    model: torch.nn.Module
    loss: Loss
    build: Callable[[formulas.Parameters], Energy]
    unknowns: int
    note: str

    def reference(self, evaluation: Evaluation) -> Minimum:
        """The minimizers at the current parameters."""
        return minimize_near(
            self.build(formulas.as_parameters(self.model)), extended(evaluation.x.flatten(1))[:, : self.unknowns]
        )

    def hypergradient(self, at: Minimum) -> tuple[Array, float]:
        """grad f, by implicit differentiation in extended precision, and an estimate of its error."""
        theta = formulas.as_parameters(self.model)
        w, error = solve_linear(self.build(theta), at, self.loss.slope(at.x))
        weighted = self.loss.weight(at.x)[:, None] * w / len(w)

        def paired(flat: Array) -> Any:
            return (self.build(formulas.like(theta, flat)).grad(at.x) * weighted).sum()

        gradient, own = derivative(paired, formulas.flattened(theta))
        relative = (at.accuracy / norm(at.x) + error / np.maximum(norm(w), LD(1e-300))).max()
        return -gradient, own + 1e3 * float(relative) * float(norm(gradient[None])[0])


def check_evaluation(learned: Learned, evaluation: Evaluation, at: Minimum) -> Iterable[Check]:
    """The distances of the images, and f in [lower, upper]."""
    n = math.prod(learned.objective.target.shape[1:])
    distance = norm(extended(evaluation.x.flatten(1))[:, :n] - at.x[:, :n])
    rounding, grade = evaluation.error_rounding, evaluation.grade
    yield from check_errors(evaluation.error, rounding, grade, distance, at.accuracy, learned.note)
    exact, own = learned.loss.value(at.x).mean(), learned.loss.uncertainty(at)
    if not math.isfinite(own):
        return
    word, value = Grade(grade).word, LD(evaluation.value)
    below, above = float(value - LD(evaluation.lower)), float(LD(evaluation.upper) - value)
    yield Check("below", below, float(value - exact), own, learned.note, word)
    yield Check("above", above, float(exact - value), own, learned.note, word)
    unit = float(np.finfo(np.float64).eps) * abs(evaluation.value)  # of the ends of the interval
    if math.isfinite(above):
        yield Check("rounding", max(below, above), evaluation.rounding, unit, f"{learned.note} interval")


def check_omega(learned: Learned, evaluation: Evaluation, goal: Accuracy, at: Minimum) -> Iterable[Check]:
    """||z - grad f|| <= omega; bounds that are called estimates do not count as refuted."""
    found = learned.objective.hypergradient(evaluation, goal, bound=True)
    exact, own = learned.hypergradient(at)
    true = float(norm((extended(found.z) - exact)[None])[0])
    note = f"{learned.note} |z| {float(found.z.norm()):.3g}"
    yield Check("omega", found.error, true, own, note, found.grade.word, counts=found.certified)
    yield Check("rounding", found.error, found.rounding, 0.0, f"{note} omega", counts=math.isfinite(found.error))


def random_loss(rng: Rng, target: Array, image: tuple[int, ...], unknowns: int) -> Loss:
    """Squared errors with or without a margin, or PSNR; ``target``: flat images."""
    margin = int(rng.integers(2)) if min(image[1:]) > 3 else 0
    inner = np.zeros(image)
    inner[:, margin : image[1] - margin, margin : image[2] - margin] = 1
    missing = unknowns - inner.size
    padded = np.pad(inner.reshape(1, -1), ((0, 0), (0, missing))), np.pad(target, ((0, 0), (0, missing)))
    if rng.random() < 0.3:
        spread = float(rng.choice([1.0, 255.0]))
        return Loss(NegativePSNR(margin, spread), *padded, spread)
    return Loss(SquaredError(margin), *padded)


def make_learned(rng: Rng, problem: Problem) -> Learned:
    """The objective of a problem, with random options."""
    n = problem.measured.matrix.shape[1]
    loss = random_loss(rng, extended(problem.truth.flatten(1)), problem.measured.image, n)
    objective = BilevelObjective(
        problem.regular.regularizer,
        problem.truth,
        problem.y,
        problem.measured.operator,
        problem.fitted.fidelity,
        problem.mu,
        loss.project,
        FISTA() if rng.random() < 0.3 else LBFGS(),
        chunk_size=int(rng.integers(1, len(problem.y) + 1)),
        differentiation=Differentiation(max_adjoint_iterations=500),
    )
    note = f"{problem.regular.name} mu={problem.mu:.3g} {type(loss.project).__name__}"
    return Learned(objective, problem.regular.regularizer, loss, problem.energy, n, note)


def random_goal(rng: Rng, learned: Learned) -> Accuracy:
    """Of minimizers and adjoints, from coarse to out of reach. Raises where there is no strong convexity."""
    size = float(learned.objective.target.double().norm()) or 1.0
    accuracy = size * 10.0 ** rng.uniform(-15, 0)
    return Accuracy(accuracy, learned.objective._modulus() * accuracy * 10.0 ** rng.uniform(-2, 2))


def check_learning(rng: Rng, learned: Learned, bounded: bool = True) -> Iterable[Check]:
    """Evaluate an objective at random accuracies, warm-started or not, with a hypergradient and its bound."""
    try:
        goal = random_goal(rng, learned)
    except NotStronglyConvexError:
        return
    evaluation = None
    if rng.integers(2):
        evaluation = learned.objective.evaluate(goal.scaled(30), None, bool(rng.integers(2)))
    evaluation = learned.objective.evaluate(goal, evaluation, bool(rng.random() < 0.8))
    at = learned.reference(evaluation)
    yield from check_evaluation(learned, evaluation, at)
    if bounded:
        yield from check_omega(learned, evaluation, goal, at)


def check_resumed(rng: Rng, make: Callable[[Rng], Learned]) -> Iterable[Check]:
    """A run of MAID that is saved, loaded into new objects and goes on: what it says of its loss in the end.

    ``make`` builds the same objective every time it is called with the same random numbers.
    """
    method = MAID if rng.integers(2) else PublishedMAID
    seed, start = int(rng.integers(2**31)), 10.0 ** rng.uniform(-6, 0)

    def made() -> tuple[Learned, MAID, float]:
        learned = make(np.random.default_rng(seed))
        accuracy = start * float(learned.objective.target.double().norm())
        run = method(learned.objective.params, lr=lr, solution_accuracy=accuracy, adjoint_accuracy=accuracy)
        return learned, run, accuracy

    lr = 10.0 ** rng.uniform(-3, 0)
    learned, run, _ = made()
    try:
        random_goal(rng, learned)
    except NotStronglyConvexError:
        return
    for _ in range(int(rng.integers(1, 4))):
        run.step(objective=learned.objective)
    file = io.BytesIO()
    torch.save([learned.model.state_dict(), run.state_dict(), learned.objective.state_dict()], file)
    file.seek(0)
    learned, run, accuracy = made()
    states = torch.load(file, weights_only=False)
    with torch.no_grad():
        for p in learned.model.parameters():
            p.add_(0.3)  # what a new object has
    learned.model.load_state_dict(states[0])
    run.load_state_dict(states[1])
    learned.objective.load_state_dict(states[2])
    yield from check_evaluation(learned, run.evaluation, learned.reference(run.evaluation))
    for _ in range(int(rng.integers(0, 4))):
        run.step(objective=learned.objective)
    at = learned.reference(run.evaluation)
    yield from check_evaluation(learned, run.evaluation, at)
    yield from check_omega(learned, run.evaluation, Accuracy(accuracy, accuracy), at)
