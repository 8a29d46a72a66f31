"""Mini-batches of inexact hypergradients."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from models import TotalVariation
from recon.bilevel import Accuracy, BilevelObjective, InexactAdam, InexactSGD
from tests.bilevel.counting import CountingTV
from tests.bilevel.known import KnownQuadratic
from tests.lower_level.problems import normal, smooth_image

FINE = {"solution_accuracy": 1e-10, "adjoint_accuracy": 1e-10}


def objective_of(regularizer: TotalVariation | None = None, count: int = 5) -> BilevelObjective:
    target = smooth_image(count, 1, 6, 7)
    regularizer = regularizer if regularizer is not None else TotalVariation(-3.0, -3.0)
    return BilevelObjective(regularizer.double(), target, target + normal(count, 1, 6, 7, seed=9, scale=0.3))


def test_one_batch_is_adam_on_the_exact_hypergradient() -> None:
    mine, theirs = objective_of(), objective_of()
    method = InexactAdam(mine.params, lr=0.05, batch_size=5, **FINE)
    adam = torch.optim.Adam(theirs.params, lr=0.05, betas=(0.9, 0.99))
    for _ in range(4):
        record = method.step(objective=mine)
        fine = Accuracy(1e-10, 1e-10)
        gradient = theirs.hypergradient(theirs.evaluate(fine), fine)
        for p, z in zip(theirs.params, gradient.z, strict=True):
            p.grad = z.view_as(p)
        adam.step()
        assert record.loss == pytest.approx(gradient.evaluation.value, rel=1e-8)
        assert record.lower <= gradient.evaluation.upper
        assert record.upper >= gradient.evaluation.lower
        assert record.gradient_norm == pytest.approx(float(gradient.z.norm()), rel=1e-6)
    for p, q in zip(mine.params, theirs.params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)


def test_sgd_is_gradient_descent_with_momentum_by_hand() -> None:
    """One batch, exact hypergradients: m = 0.5 m + z, theta = theta - lr (k+1)^-q m."""
    mine, theirs = objective_of(), objective_of()
    method = InexactSGD(mine.params, lr=0.05, batch_size=5, lr_decay=0.6, accuracy_decay=0.0, momentum=0.5, **FINE)
    momentum = torch.zeros(2, dtype=torch.float64)
    for k in range(4):
        fine = Accuracy(1e-10, 1e-10)
        gradient = theirs.hypergradient(theirs.evaluate(fine), fine)
        momentum = 0.5 * momentum + gradient.z
        for p, m in zip(theirs.params, momentum, strict=True):
            p.data -= 0.05 * (k + 1) ** -0.6 * m
        record = method.step(objective=mine)
        assert record.step == pytest.approx(0.05 * (k + 1) ** -0.6)
        assert record.loss == pytest.approx(gradient.evaluation.value, rel=1e-8)
    for p, q in zip(mine.params, theirs.params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)


def test_sgd_in_mini_batches_leads_to_the_minimizer_and_resumes_bit_identically() -> None:
    def problem() -> BilevelObjective:
        return BilevelObjective(KnownQuadratic(), normal(6, 1, 3, 4, seed=7), normal(6, 1, 3, 4, seed=6))

    def method_of(objective: BilevelObjective) -> InexactSGD:
        return InexactSGD(objective.params, lr=0.2, batch_size=3, lr_decay=0.9, momentum=0.3)

    whole, half = problem(), problem()
    fine = Accuracy(1e-10, 1e-10)

    def gradient() -> float:
        return float(whole.hypergradient(whole.evaluate(fine), fine).z.norm())

    before, method = gradient(), method_of(whole)
    for _ in range(150):
        method.step(objective=whole)
    assert gradient() < 0.02 * before
    first = method_of(half)
    for _ in range(40):
        first.step(objective=half)
    second = method_of(half)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(110):
        second.step(objective=half)
    for p, q in zip(whole.params, half.params, strict=True):
        assert torch.equal(p, q)
    with pytest.raises(ValueError, match=r"momentum is 1\.0, but must be at least 0 and less than 1"):
        InexactSGD(whole.params, momentum=1.0)
    with pytest.raises(ValueError, match=r"lr is -1\.0, but must be positive"):
        InexactSGD(whole.params, lr=-1.0)


def test_mini_batches_lead_to_the_minimizer() -> None:
    """Of a least-squares problem: the exact gradient of the whole nearly vanishes, although no batch knows it."""
    regularizer = KnownQuadratic()
    objective = BilevelObjective(regularizer, normal(6, 1, 3, 4, seed=7), normal(6, 1, 3, 4, seed=6))
    fine = Accuracy(1e-10, 1e-10)

    def gradient() -> float:
        return float(objective.hypergradient(objective.evaluate(fine), fine).z.norm())

    before = gradient()
    method = InexactAdam(
        objective.params, lr=0.2, lr_decay=0.9, batch_size=3, solution_accuracy=1e-3, adjoint_accuracy=1e-3
    )
    for _ in range(150):
        method.step(objective=objective)
    assert gradient() < 0.02 * before


def test_a_pass_sees_every_image_once_in_an_order_of_its_own() -> None:
    objective, seen = objective_of(), []
    take = objective.subset

    def subset(index: torch.Tensor) -> BilevelObjective:
        seen.append(index.tolist())
        return take(index)

    objective.subset = subset  # type: ignore[method-assign]
    method = InexactAdam(objective.params, batch_size=2)
    records = [method.step(objective=objective) for _ in range(3)]
    assert [len(b) for b in seen] == [2, 2, 1] * 3
    passes = [[i for batch in seen[3 * k : 3 * k + 3] for i in batch] for k in range(3)]
    assert all(sorted(p) == list(range(5)) for p in passes)
    assert len({tuple(p) for p in passes}) > 1
    assert [r.iteration for r in records] == [1, 2, 3]
    assert [r.trials for r in records] == [3, 3, 3]


def test_steps_and_accuracies_decrease() -> None:
    objective = objective_of()
    method = InexactAdam(objective.params, lr=0.02, lr_decay=0.5, accuracy_decay=1.0, batch_size=2)
    records = [method.step(objective=objective) for _ in range(4)]
    for k, record in enumerate(records):
        assert record.step == pytest.approx(0.02 / math.sqrt(k + 1))
        assert record.epsilon <= 0.1 / (k + 1)
        assert record.delta <= 0.1 / (k + 1)
    assert records[0].epsilon > records[3].epsilon


def test_accuracies_follow_the_noise_of_mini_batches() -> None:
    """eps_i = delta_i = (tau / 2) (s / sqrt(b)) ||grad g_i|| / rms ||z_i||, by hand after the first pass."""
    objective, share = objective_of(), 0.5
    asked: list[Accuracy] = []
    subset = objective.subset

    def watched(index: torch.Tensor) -> BilevelObjective:
        part = subset(index)
        evaluate = part.evaluate

        def noted(accuracy: Accuracy, *args: Any, **options: Any) -> Any:
            asked.append(accuracy)
            return evaluate(accuracy, *args, **options)

        part.evaluate = noted  # type: ignore[method-assign]
        return part

    objective.subset = watched  # type: ignore[method-assign]
    method = InexactAdam(
        objective.params, batch_size=5, noise_share=share, lr_decay=0.5, solution_accuracy=0.03, accuracy_decay=9
    )
    theta = [p.detach().clone() for p in objective.params]
    method.step(objective=objective)
    assert asked[0] == Accuracy(0.03, 0.1)
    x = method.progress["x"].clone()
    after = [p.detach().clone() for p in objective.params]
    for p, value in zip(objective.params, theta, strict=True):
        p.data.copy_(value)
    rows = []
    for i in range(5):
        one = objective_of().subset(torch.tensor([i]))
        for p, value in zip(one.params, theta, strict=True):
            p.data.copy_(value)
        rows.append(one.hypergradient(one.evaluate(Accuracy(1e-9, 1e-9)), Accuracy(1e-9, 1e-9)).z)
    z = torch.stack(rows)
    spread = float(((z - z.mean(0)).square().sum() / 4).sqrt() / z.square().sum(1).mean().sqrt())
    for p, value in zip(objective.params, after, strict=True):
        p.data.copy_(value)
    method.step(objective=objective)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(1))  # that of the second pass
    slope = (x - objective.target).flatten(1).norm(dim=1)[order]
    expected = 0.5 * share * spread / 5**0.5 * slope * 2**-0.25  # lr falls like the root of the passes
    assert isinstance(asked[1].solution, torch.Tensor)
    torch.testing.assert_close(asked[1].solution, expected, rtol=0.1, atol=0)
    torch.testing.assert_close(asked[1].adjoint, asked[1].solution)
    at = objective.subset(order).evaluate(asked[1], None, False)
    assert bool((at.error <= asked[1].solution).all())


@pytest.mark.parametrize("batch", [1, 3])
def test_errors_by_noise_stay_below_the_noise(batch: int) -> None:
    """The exact gradient at the end against the spread of those of the images, which is what errors were held to."""
    objective = BilevelObjective(KnownQuadratic(), normal(6, 1, 3, 4, seed=7), normal(6, 1, 3, 4, seed=6))
    share, fine = 0.25, Accuracy(1e-10, 1e-10)
    method = InexactAdam(objective.params, lr=0.2, lr_decay=0.9, batch_size=batch, noise_share=share)
    for _ in range(60):
        record = method.step(objective=objective)
    gradient = objective.hypergradient(objective.evaluate(fine), fine)
    rows = objective.image_gradients(gradient.evaluation)
    spread = float(((rows - rows.mean(0)).square().sum() / 5).sqrt())
    noise = spread / batch**0.5 * (record.step / 0.2) ** 0.5
    assert float(gradient.z.norm()) < 2 * share * noise


def test_every_evaluation_is_counted() -> None:
    regularizer = CountingTV(-3.0, -3.0)
    objective = objective_of(regularizer)
    regularizer.count = 0  # without the look at its contract
    method = InexactAdam(objective.params, batch_size=2)
    for _ in range(2):
        record = method.step(objective=objective)
        assert record.evaluations * 5 == pytest.approx(regularizer.count)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_checkpoint_continues_bit_identically(share: float) -> None:
    whole = objective_of()
    options: dict[str, Any] = {"batch_size": 2, "lr_decay": 0.5, "accuracy_decay": 0.5, "noise_share": share, "seed": 3}
    method = InexactAdam(whole.params, **options)
    for _ in range(2):
        method.step(objective=whole)
    saved = copy.deepcopy((method.state_dict(), whole.state_dict(), whole.regularizer.state_dict()))
    expected = [method.step(objective=whole) for _ in range(2)]
    again = objective_of()
    resumed = InexactAdam(again.params, **options)
    again.regularizer.load_state_dict(saved[2])
    again.load_state_dict(saved[1])
    resumed.load_state_dict(saved[0])
    assert [resumed.step(objective=again) for _ in range(2)] == expected
    assert all(torch.equal(p, q) for p, q in zip(again.params, whole.params, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr is 0"),
        ({"lr": math.inf}, "lr is inf"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"solution_accuracy": 0.0}, "solution_accuracy is 0"),
        ({"adjoint_accuracy": math.nan}, "adjoint_accuracy is nan"),
        ({"lr_decay": -1.0}, "lr_decay is -1"),
        ({"accuracy_decay": math.inf}, "accuracy_decay is inf"),
        ({"noise_share": -0.5}, "noise_share is -0.5"),
    ],
)
def test_bad_options_are_refused_with_their_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InexactAdam(objective_of().params, **options)


def test_a_hypergradient_that_is_not_finite_ends_with_advice() -> None:
    objective = objective_of()
    objective.params[0].data.fill_(800.0)
    with pytest.raises(ValueError, match="smaller lr"):
        InexactAdam(objective.params).step(objective=objective)
