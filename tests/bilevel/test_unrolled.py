"""Unrolled gradient descent from the first guess: autograd, costs, intervals, methods that use it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from models import FieldsOfExperts, TotalVariation
from models.training.bilevel import BilevelModule
from recon.bilevel import (
    HOAG,
    MAID,
    Accuracy,
    BilevelObjective,
    Differentiation,
    FixedAccuracy,
    InexactAdam,
    NegativePSNR,
    PublishedMAID,
    UpperLoss,
)
from recon.bilevel.hypergradient import descent_step
from recon.bilevel.methods.method import assign, flat
from recon.lower_level import Regularizer
from tests.lower_level.problems import normal, smooth_image

ANY, FINE = Accuracy(1.0, 1.0), Accuracy(1e-10, 1e-10)


def objective_of(regularizer: Regularizer, steps: int | None, **options: object) -> BilevelObjective:
    target = smooth_image(3, 1, 7, 8)
    y = target + normal(3, 1, 7, 8, seed=9, scale=0.3)
    return BilevelObjective(
        regularizer.double(), target, y, differentiation=Differentiation(unrolled_steps=steps), **options
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [1, 2, 6])
@pytest.mark.parametrize("loss", [None, NegativePSNR()])
@pytest.mark.parametrize(
    "regularizer", [TotalVariation(-3.0, -1.0), FieldsOfExperts(filters=3, size=3)], ids=["TV", "FoE"]
)
def test_against_autograd(regularizer: Regularizer, loss: UpperLoss | None, steps: int) -> None:
    objective = objective_of(regularizer, steps, loss=loss, chunk_size=2)
    with torch.no_grad():
        z = objective.hypergradient(objective.evaluate(ANY), ANY).z
    step = descent_step(objective._energy(slice(0, 3)))
    x = objective.start().x.requires_grad_()
    for _ in range(steps):
        h = (0.5 * (x - objective.y).square()).sum() + objective.regularizer(x).sum()
        x = x - step * torch.autograd.grad(h, x, create_graph=True)[0]
    q = objective.loss.value(x, objective.target)
    value = objective.loss.outer(q, objective.target).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(value, objective.params)])
    torch.testing.assert_close(z, expected, rtol=1e-9, atol=1e-11)
    assert objective.evaluate(ANY).value == pytest.approx(value.item(), rel=1e-12)


@pytest.mark.parametrize("steps", [1, 5, 40])
@pytest.mark.parametrize(
    "regularizer", [TotalVariation(-3.0, -1.0), FieldsOfExperts(filters=3, size=3)], ids=["TV", "FoE"]
)
def test_against_differences_of_what_is_evaluated(regularizer: Regularizer, steps: int) -> None:
    objective = objective_of(regularizer, steps)
    theta, h = flat(objective.params), 1e-5
    with torch.no_grad():
        z = objective.hypergradient(objective.evaluate(ANY), ANY).z
        differences = []
        for i in range(min(len(theta), 6)):
            values = []
            for sign in (1, -1):
                moved = theta.clone()
                moved[i] += sign * h
                assign(objective.params, moved)
                values.append(objective.evaluate(ANY).value)
            differences.append((values[0] - values[1]) / (2 * h))
        assign(objective.params, theta)
    torch.testing.assert_close(z[: len(differences)], torch.tensor(differences).double(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("smoothness", [0.3, 1.0, 1.5, 2.0, 700.0])
def test_the_step_is_a_power_of_two(smoothness: float) -> None:
    energy = SimpleNamespace(smoothness=smoothness)
    step = descent_step(energy)  # type: ignore[arg-type]
    assert 0.5 / smoothness < step <= 1 / smoothness
    assert math.log2(step) == round(math.log2(step))


def test_costs_and_intervals() -> None:
    objective, exact = objective_of(TotalVariation(-3.0, -1.0), 4), objective_of(TotalVariation(-3.0, -1.0), None)
    with torch.no_grad():
        at = objective.evaluate(FINE)
        assert objective.evaluations == 5  # steps, and the certificate
        objective.hypergradient(at, FINE)
        assert objective.evaluations == 5 + 4 + 3
        f = exact.evaluate(FINE).value
        many = objective_of(TotalVariation(-3.0, -1.0), 2000)
        reached = many.evaluate(ANY)
        z = many.hypergradient(reached, ANY).z
        implicit = exact.hypergradient(exact.evaluate(FINE), FINE).z
    assert at.lower <= f <= at.upper
    assert math.isinf(float(at.adjoint.residual.max()))
    assert reached.value == pytest.approx(f, rel=1e-9)
    torch.testing.assert_close(z, implicit, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", [HOAG, FixedAccuracy, InexactAdam])
def test_methods_descend_with_it(method: type[HOAG]) -> None:
    objective = objective_of(TotalVariation(-3.0, -1.0), 8)
    with torch.no_grad():
        before = objective.evaluate(ANY).value
    optimizer = method(objective.params)
    for _ in range(8):
        record = optimizer.step(objective=objective)
    assert record.loss < before
    assert record.lower <= record.loss <= record.upper


@pytest.mark.parametrize("method", [MAID, PublishedMAID])
def test_methods_that_need_certificates_refuse(method: type[MAID]) -> None:
    objective = objective_of(TotalVariation(-3.0, -1.0), 8)
    with pytest.raises(ValueError, match="MAID accepts steps by certificates, which no accuracy shortens"):
        method(objective.params).step(objective=objective)


def test_the_module_hands_it_on() -> None:
    module = BilevelModule(TotalVariation(-3.0, -1.0).double(), differentiation=Differentiation(unrolled_steps=3))
    assert module._objective(smooth_image(1, 1, 6, 6), smooth_image(1, 1, 6, 6)).unrolled_steps == 3
