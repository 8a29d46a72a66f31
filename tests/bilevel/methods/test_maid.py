"""MAID on problems with a known solution and exact loss: where it ends, what it costs, and how it goes on."""

from __future__ import annotations

import dataclasses
import gc
import io
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from recon.bilevel import (
    MAID,
    AccuracySchedule,
    BilevelObjective,
    Progress,
    PublishedMAID,
)
from recon.bilevel.methods.certified_descent import CertifiedDescent
from recon.lower_level import FISTA
from tests.bilevel.counting import CountingTV
from tests.bilevel.known import KnownQuadratic
from tests.bilevel.methods.descents import (
    COMBINATIONS,
    TV_GOAL,
    Watched,
    Y,
    quadratic,
    solution,
    tv_loss,
    tv_objective,
    variant,
)
from tests.lower_level.problems import make


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


def test_make_is_seeded() -> None:
    """The problems of these tests are the same in every run."""
    for p, q in zip(make("foe_l1").parameters(), make("foe_l1").parameters(), strict=True):
        assert torch.equal(p, q)
