"""The loop to a budget: where it ends, what it calls, and that a resumed run is an uninterrupted one."""

from __future__ import annotations

import io
import math

import pytest
import torch

from recon.bilevel import MAID, CertifiedLoss, DivergedError, FixedAccuracy, Progress, Record, Training
from recon.bilevel.methods.run import MOST_IDLE
from tests.bilevel.methods.test_method import SignDescent, objective_of, theta


def test_the_iteration_that_reaches_the_budget_is_the_last_one() -> None:
    objective, seen = objective_of(), []
    training = Training(objective, MAID(objective.params))
    assert training.descend(60, after=seen.append) == "budget spent"
    assert training.records == seen
    assert seen[-1].evaluations >= 60 > seen[-2].evaluations
    assert training.seconds > 0
    assert training.descend(60) == "budget spent"
    assert len(training.records) == len(seen)


def test_iterations_can_be_limited() -> None:
    objective = objective_of()
    training = Training(objective, SignDescent(objective.params, lr=0.1))
    assert training.descend(iterations=3) == "iteration limit"
    assert [r.iteration for r in training.records] == [1, 2, 3]


def test_it_ends_where_the_method_does() -> None:
    objective = objective_of()
    training = Training(objective, MAID(objective.params, tolerance=0.1))
    assert training.descend() == training.records[-1].progress.value == "converged"


def test_it_ends_where_nothing_happens() -> None:
    class Idle(SignDescent):
        def _begin(self, objective: object) -> None:
            pass

        def _iterate(self, objective: object) -> Record:
            return Record(1, CertifiedLoss(1.0, 1.0, 1.0), 0, 0, 0, 0, 1, 0.0, 0, Progress.LINE_SEARCH_FAILED)

    objective = objective_of()
    training = Training(objective, Idle(objective.params, lr=1.0))
    assert training.descend(1000) == "line search failed"
    assert len(training.records) == MOST_IDLE


def test_divergence_is_for_the_caller() -> None:
    objective = objective_of()
    training = Training(objective, FixedAccuracy(objective.params, lr=1e9, adaptive=False))
    before = theta(objective)
    with pytest.raises(DivergedError):
        training.descend(100)
    assert torch.equal(theta(objective), before)
    assert training.records == []


def test_a_run_that_is_loaded_goes_on_bit_for_bit() -> None:
    whole, part, rest = objective_of(), objective_of(), objective_of()
    expected = Training(whole, MAID(whole.params))
    expected.descend(150)
    file = io.BytesIO()
    first = Training(part, MAID(part.params))
    first.descend(50)
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = Training(rest, MAID(rest.params))
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.seconds == first.seconds
    resumed.descend(150)
    assert resumed.records == expected.records
    assert math.isfinite(resumed.records[-1].loss)
    assert torch.equal(theta(rest), theta(whole))
