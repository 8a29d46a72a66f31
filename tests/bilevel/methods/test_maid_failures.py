"""MAID when things go wrong: searches that fail, interruptions, floors of single precision, energies without bounds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.regularizers.fields_of_experts import FieldsOfExperts
from models.regularizers.total_variation import TotalVariation
from recon.bilevel import (
    MAID,
    BilevelObjective,
    Progress,
    PublishedMAID,
)
from recon.lower_level import FISTA, LBFGS, Energy, Solution
from tests.bilevel.methods.descents import (
    Watched,
    exact_loss,
    quadratic,
    tv_loss,
    tv_objective,
    variant,
)
from tests.lower_level.problems import normal


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
