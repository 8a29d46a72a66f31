"""HOAG and constant accuracies against loops written by hand, schedules, the adaptive rule, resuming, bad options."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from models import TotalVariation
from recon.bilevel import HOAG, Accuracy, BilevelObjective, DivergedError, FixedAccuracy, Progress
from tests.bilevel.counting import CountingTV
from tests.bilevel.known import KnownQuadratic
from tests.lower_level.problems import normal, smooth_image

FINE = {"solution_accuracy": 1e-10, "adjoint_accuracy": 1e-10}


def objective_of(regularizer: TotalVariation | None = None) -> BilevelObjective:
    target = smooth_image(2, 1, 6, 7)
    regularizer = regularizer if regularizer is not None else TotalVariation(-3.0, -3.0)
    return BilevelObjective(regularizer.double(), target, target + normal(2, 1, 6, 7, seed=9, scale=0.3))


def values_of(objective: BilevelObjective) -> list[float]:
    return [float(p.detach()) for p in objective.params]


def watch(objective: BilevelObjective) -> list[Accuracy]:
    """The accuracies that are asked for from now on."""
    seen: list[Accuracy] = []
    evaluate = objective.evaluate

    def spy(accuracy: Accuracy, *args: Any, **options: Any) -> Any:
        seen.append(accuracy)
        return evaluate(accuracy, *args, **options)

    objective.evaluate = spy  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("quadratic", [1.0, 1 / 4, 1 / 9, 1 / 16]),
        ("cubic", [1.0, 1 / 8, 1 / 27, 1 / 64]),
        ("exponential", [1.0, 0.7, 0.49, 0.343]),
        ("constant", [1.0] * 4),
    ],
)
def test_accuracies_follow_their_schedule(schedule: str, expected: list[float]) -> None:
    objective = objective_of()
    seen = watch(objective)
    method = HOAG(objective.params, schedule, 1e-3, solution_accuracy=0.5, adjoint_accuracy=0.2, decay=0.7)
    records = [method.step(objective=objective) for _ in range(3)]
    assert [a.solution for a in seen] == pytest.approx([0.5 * e for e in expected])
    assert [a.adjoint for a in seen] == pytest.approx([0.2 * e for e in expected])
    for record, factor in zip(records, expected[1:], strict=True):
        assert record.epsilon <= 0.5 * factor
        assert record.delta <= 0.2 * factor
        assert record.lower <= record.loss <= record.upper


def test_a_constant_accuracy_is_gradient_descent() -> None:
    """Against gradients of the exact loss by differences, where the accuracy is tiny."""
    objective = objective_of()
    params = objective.params
    method = FixedAccuracy(params, lr=0.3, adaptive=False, **FINE)
    for _ in range(3):
        before = values_of(objective)
        gradient = []
        for p in params:
            values = []
            for shift in (1e-4, -1e-4):
                p.data += shift
                values.append(objective.evaluate(Accuracy(1e-10, 1.0), None, False).value)
                p.data -= shift
            gradient.append((values[0] - values[1]) / 2e-4)
        record = method.step(objective=objective)
        assert record.progress is Progress.ACCEPTED
        assert record.step == 0.3
        assert values_of(objective) == pytest.approx([b - 0.3 * g for b, g in zip(before, gradient, strict=True)])


@pytest.mark.parametrize("schedule", ["quadratic", "cubic", "exponential"])
def test_hoag_leads_to_the_minimizer(schedule: str) -> None:
    regularizer = KnownQuadratic()
    objective = BilevelObjective(regularizer, normal(6, 1, 3, 4, seed=7), normal(6, 1, 3, 4, seed=6))
    fine = Accuracy(1e-11, 1e-11)

    def gradient() -> float:
        return float(objective.hypergradient(objective.evaluate(fine), fine).z.norm())

    before = gradient()
    method = HOAG(objective.params, schedule, lr=1e-2)
    for _ in range(300):
        method.step(objective=objective)
    assert gradient() < 1e-2 * before


def test_the_adaptive_rule() -> None:
    """Steps grow while the loss falls as predicted, and steps that raise it are put back at half the accuracy."""
    objective = objective_of()
    start = values_of(objective)
    method = HOAG(objective.params, "constant", lr=1e-3, **FINE)
    first = method.step(objective=objective)
    assert first.progress is Progress.ACCEPTED
    assert method.param_groups[0]["lr"] == pytest.approx(1e-3 / 0.95)
    assert values_of(objective) != start
    far = objective_of()
    method = HOAG(far.params, "quadratic", lr=1e3, solution_accuracy=1e-2, adjoint_accuracy=1e-2)
    seen = watch(far)
    rejected = method.step(objective=far)
    assert rejected.progress is Progress.REJECTED
    assert not rejected.finished
    assert values_of(far) == start
    assert method.param_groups[0]["lr"] == 500.0
    method.step(objective=far)
    # the second point is tried again, at half its accuracy
    assert [a.solution for a in seen] == pytest.approx([1e-2, 1e-2 / 4, 1e-2 / 8])


def test_without_the_rule_divergence_is_an_error_and_parameters_are_put_back() -> None:
    objective = objective_of()
    before = values_of(objective)
    method = FixedAccuracy(objective.params, lr=1e9, adaptive=False)
    with pytest.raises(DivergedError, match="smaller lr"):
        method.step(objective=objective)
    assert values_of(objective) == before


def test_energies_that_are_not_finite_at_the_start_are_refused() -> None:
    objective = objective_of(TotalVariation(800.0, -3.0))
    with pytest.raises(DivergedError, match="start from other parameters"):
        HOAG(objective.params).step(objective=objective)


def test_a_checkpoint_continues_bit_identically() -> None:
    whole, half = objective_of(), objective_of()
    method = HOAG(whole.params, lr=0.1)
    expected = [method.step(objective=whole) for _ in range(6)]
    method = HOAG(half.params, lr=0.1)
    for _ in range(3):
        method.step(objective=half)
    state, counter = copy.deepcopy(method.state_dict()), half.state_dict()
    rest = objective_of(copy.deepcopy(half.regularizer))  # type: ignore[arg-type]
    rest.load_state_dict(counter)
    method = HOAG(rest.params, lr=0.1)
    method.load_state_dict(state)
    assert [method.step(objective=rest) for _ in range(3)] == expected[3:]
    assert values_of(rest) == values_of(whole)


def test_evaluations_equal_a_count_by_hand() -> None:
    regularizer = CountingTV(-3.0, -3.0)
    objective = objective_of(regularizer)
    regularizer.count = 0  # without the look at its contract
    method = HOAG(objective.params, lr=50.0)
    records = [method.step(objective=objective) for _ in range(8)]
    assert {Progress.ACCEPTED, Progress.REJECTED} == {r.progress for r in records}
    assert objective.evaluations == pytest.approx(regularizer.count / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "linear"}, "schedule is 'linear', but must be one of quadratic, cubic"),
        ({"lr": 0.0}, "lr is 0.0, but must be positive"),
        ({"solution_accuracy": math.nan}, "solution_accuracy is nan"),
        ({"adjoint_accuracy": math.inf}, "adjoint_accuracy is inf"),
        ({"decay": 1.0}, "decay is 1.0, but must be between 0 and 1"),
    ],
)
def test_bad_options_are_refused_with_their_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HOAG([torch.zeros(1)], **options)
    with pytest.raises(ValueError, match="one group"):
        HOAG([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(2)]}])  # type: ignore[list-item]
