"""The inequalities by which upper-level methods accept, refine and stop, on both sides of where they are equalities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch

from recon.bilevel import (
    HOAG,
    Accuracy,
    AccuracySchedule,
    BilevelObjective,
    CertifiedLoss,
    Evaluation,
    Limits,
    LineSearch,
    Progress,
)
from recon.bilevel.evaluation import Adjoint
from recon.bilevel.hypergradient import Hypergradient
from recon.bilevel.methods.certified_descent import CertifiedDescent
from recon.lower_level import Status
from recon.lower_level.grade import Grade
from tests.bilevel.methods.descents import variant


class Parabola:
    """f(theta) = theta^2 / 2 with intervals, hypergradients and omegas as the test wants them."""

    unrolled_steps = None

    def __init__(self, theta: float, below: float = 0.0, above: float = 0.0) -> None:
        self.theta = torch.nn.Parameter(torch.tensor([theta], dtype=torch.float64))
        self.below, self.above, self.evaluations = below, above, 0.0
        self.y, self.params = torch.zeros(1), [self.theta]
        self.omega: Callable[[Accuracy], float] = lambda accuracy: accuracy.solution
        self.z: list[float] = []
        self.status = Status.CONVERGED
        self.margins: list[float] = []

    def evaluate(self, accuracy: Accuracy, start: Evaluation | None, second: bool = True, **_: Any) -> Evaluation:
        value, one = 0.5 * float(self.theta) ** 2, torch.ones(1, dtype=torch.float64)
        image, status = torch.zeros(1, 1, 1, 1), torch.full((1,), int(self.status))
        small = 1e-300 * one
        adjoint = Adjoint(image, small, small)
        certified = CertifiedLoss(value, value - self.below, value + self.above, grade=int(Grade.PROVED))
        return Evaluation(image, adjoint, small, small, one, one, one, status, certified)

    def refine(self, evaluation: Evaluation, accuracy: Accuracy, second: bool = True) -> Evaluation:
        return self.evaluate(accuracy, evaluation)

    def hypergradient(self, evaluation: Evaluation, accuracy: Accuracy, bound: bool = False) -> Hypergradient:
        z = self.z.pop(0) if self.z else float(self.theta)
        error = self.omega(accuracy)
        return Hypergradient(torch.tensor([z], dtype=torch.float64), error, 0.0, Grade.PROVED, evaluation)

    def accuracy_for(self, evaluation: Evaluation, margin: float, second: bool = True) -> Accuracy:
        self.margins.append(margin)
        return Accuracy(margin, margin)

    cheapest_accuracy = accuracy_for


def run(problem: Parabola, accuracy: str = "predicted", **options: Any) -> tuple[CertifiedDescent, Any]:
    search = LineSearch(**({"armijo": 0.4} | options.pop("line_search", {})))
    defaults = {"direction": "gradient", "certificate": "first_order", "lr": 1.0, "line_search": search}
    maid = variant([problem.theta], accuracy, **(defaults | options))
    return maid, maid.step(objective=cast(BilevelObjective, problem))


@pytest.mark.parametrize("accuracy", ["predicted", "schedule"])
@pytest.mark.parametrize(
    ("below", "above", "accepted"),
    [
        (0.0, 0.0, True),
        (0.049, 0.05, True),
        (0.051, 0.05, False),
        (0.099, 0.0, True),
        (0.101, 0.0, False),
        (0.0, 0.099, True),
        (0.0, 0.101, False),
    ],
)
def test_maid_accepts_where_the_exact_loss_must_have_decreased(
    accuracy: str, below: float, above: float, accepted: bool
) -> None:
    """From theta = 1 to 0: U(theta+) = above, L(theta) = 1/2 - below, armijo a <z, d> = 0.4."""
    _, record = run(Parabola(1.0, below, above), accuracy=accuracy)
    assert (record.trials == 1 and record.step == 1.0) is accepted


@pytest.mark.parametrize(("armijo", "accepted"), [(0.499, True), (0.501, False)])
@pytest.mark.parametrize("accuracy", ["predicted", "schedule"])
def test_the_decrease_that_is_asked_for_is_that_of_the_step(armijo: float, accuracy: str, accepted: bool) -> None:
    _, record = run(Parabola(1.0), accuracy=accuracy, line_search={"armijo": armijo})
    assert (record.step == 1.0) is accepted
    _, record = run(Parabola(2.0), accuracy=accuracy, line_search={"armijo": armijo}, lr=0.5)  # 2 -> 1: 1.5 of 2
    assert record.step == 0.5


def test_intervals_may_take_the_share_slack_of_the_promised_decrease() -> None:
    problem = Parabola(2.0)
    run(problem, limits=Limits(slack=0.5), lr=0.5)
    assert problem.margins[0] == pytest.approx(0.5 * 0.5 * 0.5 * 4.0)


@pytest.mark.parametrize(("eta", "omega"), [(0.2, 1.0), (0.49, 1.0), (0.51, 0.5), (0.74, 0.5), (0.76, 0.25)])
def test_the_descent_check_refines_until_omega_is_small(eta: float, omega: float) -> None:
    """omega <= (1 - eta) ||z|| with ||z|| = 2: the accuracy is halved, from one, until it holds."""
    _, record = run(Parabola(2.0), accuracy="schedule", schedule=AccuracySchedule(descent_check=True, eta=eta), lr=0.5)
    assert record.omega == omega


@pytest.mark.parametrize(
    ("found", "tolerance", "ends"),
    [
        ([0.099, 0.1, 0.1], 0.1, True),  # settled at once
        ([0.101], 0.1, False),
        ([0.05, 0.09, 0.11], 0.1, False),  # moves by more than a tenth of the tolerance, and then beyond it
        ([0.095, 0.1009], 0.1, False),  # settled, but too large
        ([0.05, 0.0595], 0.1, True),
        ([0.05, 0.0605, 0.2], 0.1, False),
    ],
)
def test_maid_ends_where_the_hypergradient_is_small_and_settled(
    found: list[float], tolerance: float, ends: bool
) -> None:
    problem = Parabola(0.3)
    problem.z = list(found)
    _, record = run(problem, tolerance=tolerance, lr=0.5)
    assert (record.progress == Progress.CONVERGED) is ends


@pytest.mark.parametrize(("z", "ends"), [(0.099, True), (0.101, False)])
def test_at_the_floor_of_precision_the_hypergradient_need_not_settle(z: float, ends: bool) -> None:
    problem = Parabola(0.3)
    problem.z, problem.status = [z], Status.PRECISION_FLOOR
    _, record = run(problem, tolerance=0.1, lr=0.5)
    assert (record.progress == Progress.CONVERGED) is ends


def test_steps_grow_only_after_success_and_shrink_as_asked() -> None:
    maid, record = run(Parabola(1.0), lr=1.0, line_search={"growth": 1.5}, accuracy="schedule")
    assert maid.param_groups[0]["lr"] == 1.5
    assert maid.param_groups[0]["solution_accuracy"] == pytest.approx(1.05)
    # 1.9 overshoots, half of it does not
    _, record = run(Parabola(1.0), lr=1.9, accuracy="schedule", line_search={"shrink": 0.5})
    assert (record.trials, record.step) == (2, 0.95)


# --- HOAG ------------------------------------------------------------------------------------------------------------


def hoag(theta: float, lr: float, accuracy: float, schedule: str = "quadratic") -> tuple[HOAG, Any]:
    problem = Parabola(theta)
    method = HOAG([problem.theta], schedule, lr, accuracy, accuracy)
    return method, method.step(objective=cast(BilevelObjective, problem))


@pytest.mark.parametrize(("accuracy", "grows"), [(0.1818, False), (0.1819, True)])
def test_hoag_grows_its_step_where_the_loss_falls_as_it_must(accuracy: float, grows: bool) -> None:
    """C epsilon_2 + (C + 1) epsilon_1 D - L D^2 for D = 1/2, L = 2: 0.6875 epsilon - 0.5 against -0.375."""
    method, record = hoag(1.0, 0.5, accuracy)
    assert record.progress == Progress.ACCEPTED
    assert method.param_groups[0]["lr"] == pytest.approx(0.5 / 0.95 if grows else 0.5)


@pytest.mark.parametrize(("lr", "accepted"), [(2.095, True), (2.096, False)])
def test_hoag_puts_back_what_raises_the_loss_by_a_fifth(lr: float, accepted: bool) -> None:
    """(lr - 1)^2 against 1.2."""
    method, record = hoag(1.0, lr, 1e-6)
    assert (record.progress == Progress.ACCEPTED) is accepted
    assert method.param_groups[0]["lr"] == pytest.approx(lr if accepted else lr / 2)


def test_schedules_of_hoag() -> None:
    for schedule, second in (("quadratic", 4.0), ("cubic", 8.0), ("exponential", 1 / 0.9), ("constant", 1.0)):
        method, _ = hoag(1.0, 0.5, 0.1, schedule)
        found = method._accuracy()
        assert (found.solution, found.adjoint) == pytest.approx((0.1 / second, 0.1 / second))
