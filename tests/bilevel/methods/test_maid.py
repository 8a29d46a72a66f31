"""MAID on a bilevel problem with a known solution and exact loss, and its behaviour when things go wrong."""

from __future__ import annotations

import dataclasses
import gc
import io
import itertools
import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from models.regularizers.fields_of_experts import FieldsOfExperts
from models.regularizers.total_variation import TotalVariation
from recon.bilevel import (
    MAID,
    Accelerations,
    AccuracySchedule,
    BilevelObjective,
    CertifiedLoss,
    Limits,
    LineSearch,
    Progress,
    PublishedMAID,
    Record,
)
from recon.bilevel.methods.certified_descent import CertifiedDescent
from recon.lower_level import FISTA, LBFGS, Energy, Solution
from tests.bilevel.counting import CountingTV
from tests.bilevel.known import KnownQuadratic
from tests.bilevel.methods.variants import variant
from tests.lower_level.problems import Quadratic, exact_minimizer, make, normal, smooth_image

Y, TARGET = normal(2, 1, 3, 4, seed=6), normal(2, 1, 3, 4, seed=7)
COMBINATIONS = list(
    itertools.product(("goal_oriented", "first_order"), ("lbfgs", "gradient", "adagrad"), ("predicted", "schedule"))
)


def quadratic(**options: Any) -> BilevelObjective:
    return BilevelObjective(KnownQuadratic(), TARGET, Y, **options)


def exact_loss(objective: BilevelObjective, theta: Tensor | None = None) -> float:
    regularizer = objective.regularizer
    assert isinstance(regularizer, Quadratic)
    return float(objective.loss.value(regularizer.solve(Y, theta), TARGET).mean())


def solution() -> Tensor:
    """The minimizer of f, by least squares."""
    regularizer = KnownQuadratic()
    a = torch.linalg.solve(torch.eye(12, dtype=torch.float64) + regularizer.h, regularizer.p)
    rest = (TARGET - regularizer.solve(Y)).flatten(1).mean(0)
    return torch.linalg.lstsq(a, rest[:, None]).solution[:, 0]


class Watched:
    """Runs MAID and keeps the hypergradient that an accepted step started from."""

    def __init__(self, optimizer: CertifiedDescent, objective: BilevelObjective) -> None:
        self.optimizer, self.objective, self.records = optimizer, objective, []
        self.promised = 0.0
        accept = optimizer._accept

        def watch(objective: BilevelObjective, direction: Any, move: Tensor, new: Any, accuracy: Any) -> None:
            z = optimizer.progress["z"]
            self.promised = -optimizer.param_groups[0]["line_search"]["armijo"] * float(z @ move)
            accept(objective, direction, move, new, accuracy)

        optimizer._accept = watch  # type: ignore[method-assign]

    def check_step(self) -> Record:
        """One step: the interval holds the exact loss, and an accepted step keeps its promise."""
        before = exact_loss(self.objective)
        theta = self.objective.params[0].detach().clone()
        count = self.objective.evaluations
        record = self.optimizer.step(objective=self.objective)
        after = exact_loss(self.objective)
        slack = 1e-13 * (1 + abs(before))
        assert record.lower - slack <= after <= record.upper + slack
        assert self.objective.evaluations >= count
        assert record.evaluations == self.objective.evaluations
        if record.progress is Progress.ACCEPTED:
            assert self.promised > 0
            assert record.step > 0
            assert after <= before - self.promised + slack
        else:
            assert torch.equal(self.objective.params[0], theta)
            assert record.step == 0
        self.records.append(record)
        return record

    def run(self, steps: int) -> Record:
        for _ in range(steps):
            record = self.check_step()
            if record.finished:
                break
        return record


@pytest.mark.parametrize(("certificate", "direction", "accuracy"), COMBINATIONS)
def test_certified_descent_to_the_minimizer_from_every_accuracy(
    certificate: str, direction: str, accuracy: str
) -> None:
    slow = (certificate, accuracy) == ("first_order", "schedule")
    for start in (100.0, 1e-5) if slow else (100.0, 1.0, 1e-2, 1e-5):
        objective = quadratic()
        optimizer = variant(
            objective.params,
            accuracy,
            certificate,
            direction,
            solution_accuracy=start,
            adjoint_accuracy=start,
            tolerance=2e-5,
            lr=1.0 if direction == "gradient" else 0.3,
        )
        record = Watched(optimizer, objective).run(400)
        assert record.progress is Progress.CONVERGED, record
        assert record.gradient_norm <= 2e-5
        torch.testing.assert_close(objective.params[0].detach(), solution(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("descent_check", [False, True])
def test_published_maid(descent_check: bool) -> None:
    for start in (100.0, 1.0, 1e-2, 1e-5):
        objective = quadratic(solver=FISTA())
        optimizer = PublishedMAID(
            objective.params,
            lr=1.0,
            solution_accuracy=start,
            adjoint_accuracy=start,
            schedule=AccuracySchedule(descent_check=descent_check),
            tolerance=2e-5,
        )
        watched = Watched(optimizer, objective)
        record = watched.run(400)
        assert record.progress is Progress.CONVERGED, record
        torch.testing.assert_close(objective.params[0].detach(), solution(), rtol=0, atol=1e-4)
        for each in watched.records[:-1]:
            assert math.isfinite(each.omega) == descent_check


def test_descent_check_refines_until_the_hypergradient_is_a_descent_direction() -> None:
    objective = quadratic()
    optimizer = PublishedMAID(
        objective.params,
        lr=1e-3,
        solution_accuracy=100,
        adjoint_accuracy=100,
        schedule=AccuracySchedule(descent_check=True),
    )
    record = optimizer.step(objective=objective)
    options = optimizer.param_groups[0]
    assert record.progress is Progress.ACCEPTED
    assert 0 < record.omega < math.inf
    assert options["solution_accuracy"] < 50
    z = optimizer.progress["z"]
    assert float(z.norm()) > 0


def test_accelerated_maid_needs_fewer_evaluations() -> None:
    """On a regularizer with real curvature: TV, to the same certified loss."""
    counts = {}
    for name, method in (("accelerated", MAID), ("published", PublishedMAID)):
        objective = tv_objective(solver=FISTA() if name == "published" else None)
        optimizer = method(objective.params)
        for _ in range(150):
            record = optimizer.step(objective=objective)
            if record.upper <= TV_GOAL:
                break
        assert record.upper <= TV_GOAL
        counts[name] = objective.evaluations
    assert counts["accelerated"] <= 0.5 * counts["published"]


def tv_objective(dtype: torch.dtype = torch.float64, **options: Any) -> BilevelObjective:
    target = 0.5 + 0.3 * smooth_image(3, 1, 9, 10, seed=3)
    y = target + normal(3, 1, 9, 10, scale=0.15)
    regularizer = options.pop("regularizer", None) or TotalVariation(-4.0, -3.0).to(dtype)
    return BilevelObjective(regularizer, target.to(dtype), y.to(dtype), **options)


def tv_loss(objective: BilevelObjective) -> float:
    energy = Energy(objective.y, objective.regularizer)
    return float(objective.loss.value(exact_minimizer(energy, objective.y.clone()), objective.target).mean())


TV_GOAL = 0.31  # the smallest loss is 0.3037, the first one 2.6


@pytest.mark.parametrize("method", [MAID, PublishedMAID])
def test_intervals_and_descent_for_total_variation(method: type[MAID | PublishedMAID]) -> None:
    objective = tv_objective()
    optimizer = method(objective.params)
    before = tv_loss(objective)
    for _ in range(12):
        record = optimizer.step(objective=objective)
        after = tv_loss(objective)
        assert record.lower <= after <= record.upper
        if record.progress is Progress.ACCEPTED:
            assert after < before
        before = after


def test_no_starting_accuracy_changes_the_result_for_total_variation() -> None:
    ends = []
    for start in (100.0, 1.0, 1e-2, 1e-5):
        objective = tv_objective()
        optimizer = MAID(objective.params, solution_accuracy=start, adjoint_accuracy=start, tolerance=1e-7)
        for _ in range(100):
            if optimizer.step(objective=objective).finished:
                break
        ends.append(torch.stack([p.detach() for p in objective.params]))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("certificate", "direction", "accuracy"), COMBINATIONS)
def test_a_checkpoint_continues_bit_identically(certificate: str, direction: str, accuracy: str) -> None:
    def fresh() -> tuple[BilevelObjective, CertifiedDescent]:
        objective = tv_objective(chunk_size=2)
        return objective, variant(objective.params, accuracy, certificate, direction)

    objective, optimizer = fresh()
    for _ in range(4):
        optimizer.step(objective=objective)
    file = io.BytesIO()
    torch.save(
        {
            "optimizer": optimizer.state_dict(),
            "objective": objective.state_dict(),
            "regularizer": objective.regularizer.state_dict(),
        },
        file,
    )
    expected = [optimizer.step(objective=objective) for _ in range(4)]
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed, other = fresh()
    resumed.regularizer.load_state_dict(state["regularizer"])
    resumed.load_state_dict(state["objective"])
    other.load_state_dict(state["optimizer"])
    records = [other.step(objective=resumed) for _ in range(4)]
    assert [dataclasses.astuple(r) for r in records] == [dataclasses.astuple(r) for r in expected]
    for p, q in zip(objective.params, resumed.params, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("accuracy", ["predicted", "schedule"])
def test_parameters_are_restored_after_a_failed_search(accuracy: str) -> None:
    """A solver that cannot do anything: no trial can be certified."""
    objective = quadratic(solver=FISTA(max_iterations=1))
    with torch.no_grad():
        objective.params[0].copy_(normal(3, seed=2))
    theta = objective.params[0].detach().clone()
    optimizer = variant(objective.params, accuracy)
    for _ in range(3):
        record = optimizer.step(objective=objective)
        assert record.progress is Progress.LINE_SEARCH_FAILED
        assert not record.finished
        assert torch.equal(objective.params[0], theta)
        assert record.lower <= exact_loss(objective) <= record.upper
        assert record.trials >= 1


class Interrupting:
    """A solver that is interrupted at its n-th call."""

    def __init__(self, at: int) -> None:
        self.calls, self.at = 0, at

    def __call__(self, energy: Energy, x: Tensor, accuracy: float | Tensor) -> Solution:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return LBFGS()(energy, x, accuracy)


@pytest.mark.parametrize("accuracy", ["predicted", "schedule"])
@pytest.mark.parametrize("at", [1, 2, 3, 5, 8])
def test_parameters_are_restored_after_an_exception(at: int, accuracy: str) -> None:
    solver = Interrupting(at)
    objective = quadratic(solver=solver)
    optimizer = variant(objective.params, accuracy)
    watched = Watched(optimizer, objective)
    interrupted = 0
    for _ in range(12):
        theta = objective.params[0].detach().clone()
        try:
            watched.check_step()
        except KeyboardInterrupt:
            interrupted += 1
            assert torch.equal(objective.params[0], theta)
    assert interrupted == 1
    assert exact_loss(objective) < 0.999 * exact_loss(quadratic())  # it went on


@pytest.mark.parametrize(
    "method", [MAID, PublishedMAID, partial(PublishedMAID, schedule=AccuracySchedule(descent_check=True))]
)
def test_evaluations_equal_a_count_by_hand(method: Callable[..., CertifiedDescent]) -> None:
    regularizer = CountingTV(-4.0, -3.0).double()
    objective = tv_objective(regularizer=regularizer, chunk_size=2)
    regularizer.count = 0  # without the look at its contract
    optimizer = method(objective.params)
    last = 0.0
    for _ in range(6):
        record = optimizer.step(objective=objective)
        assert record.evaluations == objective.evaluations
        assert record.evaluations > last
        assert record.evaluations * 3 == pytest.approx(regularizer.count)
        last = record.evaluations


@pytest.mark.parametrize(
    "options", [{}, {"accuracy": "schedule"}, {"certificate": "first_order"}, {"direction": "gradient"}]
)
def test_single_precision_ends_at_its_floor(options: dict[str, str]) -> None:
    objective, exact = tv_objective(torch.float32), tv_objective()
    optimizer = variant(objective.params, **options)
    for _ in range(80):
        record = optimizer.step(objective=objective)
        if record.finished:
            break
    with torch.no_grad():
        for p, q in zip(exact.params, objective.params, strict=True):
            p.copy_(q)
    assert record.lower - 1e-7 <= tv_loss(exact) <= record.upper + 1e-7
    if options.get("direction") != "gradient":
        assert record.progress in (Progress.PRECISION_FLOOR, Progress.CONVERGED)
        assert objective.evaluations < 20_000


@pytest.mark.parametrize("method", [MAID, PublishedMAID])
def test_energies_that_are_not_finite_are_refused_by_name(method: type[MAID | PublishedMAID]) -> None:
    objective = tv_objective(regularizer=TotalVariation(2000.0, -3.0).double())
    with pytest.raises(ValueError, match="energy of image 0 is NaN or infinite at the initial parameters"):
        method(objective.params).step(objective=objective)


def test_steps_that_make_the_energy_infinite_are_rejected() -> None:
    objective = tv_objective(torch.float32)
    optimizer = MAID(objective.params, lr=1e4)
    for _ in range(5):
        record = optimizer.step(objective=objective)
        assert math.isfinite(record.loss)
        assert all(bool(torch.isfinite(p)) for p in objective.params)
    assert record.loss < 0.5


def test_the_solution_is_recognized() -> None:
    """No gradient at all: converged at once, whatever the tolerance is."""
    regularizer = KnownQuadratic()
    objective = BilevelObjective(regularizer, regularizer.solve(Y), Y)
    record = MAID(objective.params, solution_accuracy=1e-6, adjoint_accuracy=1e-6, tolerance=1e-4).step(
        objective=objective
    )
    assert record.progress is Progress.CONVERGED
    assert record.finished
    assert float(objective.params[0].detach().abs().max()) == 0


def test_memory_does_not_grow_with_the_iterations() -> None:
    objective = tv_objective(chunk_size=1)
    optimizer = MAID(objective.params, memory=5)

    def live() -> int:
        gc.collect()
        return sum(t.numel() for t in gc.get_objects() if type(t) is Tensor)

    sizes = []
    for _ in range(4):
        for _ in range(5):
            optimizer.step(objective=objective)
        sizes.append(live())
    assert max(sizes[1:]) <= sizes[0] + 10, sizes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"certificate": "third_order"}, "certificate is 'third_order', but must be one of goal_oriented, first_order"),
        ({"direction": "newton"}, "direction is 'newton', but must be one of lbfgs, gradient, adagrad"),
        ({"lr": 0.0}, "lr is 0.0, but must be positive"),
        ({"lr": math.inf}, "lr is inf"),
        ({"solution_accuracy": -1.0}, "solution_accuracy is -1.0"),
        ({"adjoint_accuracy": math.nan}, "adjoint_accuracy is nan"),
        ({"memory": 0}, "memory is 0"),
        ({"tolerance": -1.0}, "tolerance is -1.0, but must be at least 0"),
        ({"tolerance": math.nan}, "tolerance is nan"),
    ],
)
def test_bad_options_are_refused_with_their_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MAID([torch.nn.Parameter(torch.zeros(2))], **options)
    if next(iter(options)) in ("lr", "tolerance"):
        with pytest.raises(ValueError, match=message):
            PublishedMAID([torch.nn.Parameter(torch.zeros(2))], **options)


@pytest.mark.parametrize(
    ("group", "options", "message"),
    [
        (LineSearch, {"armijo": 1.0}, "line_search.armijo is 1.0, but must be between 0 and 1"),
        (LineSearch, {"shrink": 1.0}, "line_search.shrink is 1.0"),
        (LineSearch, {"growth": 0.9}, "line_search.growth is 0.9, but must be at least 1"),
        (LineSearch, {"trials": 0}, "line_search.trials is 0"),
        (Limits, {"slack": 0.0}, "limits.slack is 0.0"),
        (Limits, {"largest_growth": 0.5}, "limits.largest_growth is 0.5"),
        (AccuracySchedule, {"shrink": 0.0}, "schedule.shrink is 0.0"),
        (AccuracySchedule, {"growth": 0.5}, "schedule.growth is 0.5"),
        (AccuracySchedule, {"eta": 1.5}, "schedule.eta is 1.5"),
        (Accelerations, {"certificate": "third_order"}, "certificate is 'third_order'"),
        (Accelerations, {"direction": "newton"}, "direction is 'newton'"),
        (Accelerations, {"largest_growth": 0.5}, "largest_growth is 0.5"),
        (Accelerations, {"memory": 0}, "memory is 0"),
    ],
)
def test_bad_options_of_a_group_are_refused_with_their_value(
    group: type, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        group(**options)


def test_options_that_a_method_has_no_use_for_are_refused() -> None:
    params = [torch.nn.Parameter(torch.zeros(2))]
    with pytest.raises(TypeError, match="schedule"):
        MAID(params, schedule=AccuracySchedule())  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="limits"):
        PublishedMAID(params, limits=Limits())  # type: ignore[call-arg]


def test_several_groups_of_parameters_are_refused() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))]}, {"params": [torch.nn.Parameter(torch.zeros(1))]}]
    with pytest.raises(ValueError, match="one group of parameters, got 2"):
        MAID(groups)  # type: ignore[arg-type]


def test_published_maid_has_none_of_the_accelerations() -> None:
    options = PublishedMAID([torch.nn.Parameter(torch.zeros(2))]).param_groups[0]["accelerations"]
    assert (options["certificate"], options["direction"]) == ("first_order", "gradient")
    assert options["largest_growth"] == math.inf


@pytest.mark.parametrize("progress", list(Progress))
def test_finished(progress: Progress) -> None:
    record = Record(1, CertifiedLoss(0.0, 0.0, 0.0), 0.0, 0.0, 0.0, 0.0, 1, 1.0, 0.0, progress)
    assert record.finished == (progress in (Progress.CONVERGED, Progress.PRECISION_FLOOR))


def test_make_is_seeded() -> None:
    """The problems of these tests are the same in every run."""
    for p, q in zip(make("foe_l1").parameters(), make("foe_l1").parameters(), strict=True):
        assert torch.equal(p, q)


def test_trials_where_nothing_is_certified_are_rejected() -> None:
    """Student-t is not convex: a long step can lose the strong convexity of the energy."""
    regularizer = FieldsOfExperts(2, 3, "student_t", log_weight=-1, log_width=-1).double()
    target, y = normal(2, 1, 6, 6, seed=1), normal(2, 1, 6, 6, seed=2)
    objective = BilevelObjective(regularizer, target, y)
    method = MAID(objective.params, lr=30.0)
    before = regularizer.convexity()
    assert 1 + before > 0
    record = method.step(objective=objective)
    assert record.trials > 1
    assert record.progress is Progress.ACCEPTED
    assert 1 + regularizer.convexity() > 0
