"""One-step (Jacobian-free) and truncated hypergradients against unrolled gradient descent by autograd."""

from __future__ import annotations

import math

import pytest
import torch

from models import TotalVariation
from models.training.bilevel import BilevelModule
from recon.bilevel import HOAG, MAID, Accuracy, BilevelObjective, Differentiation, PublishedMAID
from tests.bilevel.known import KnownQuadratic
from tests.lower_level.problems import normal, smooth_image

FINE = Accuracy(1e-11, 1e-11)


def objective_of(steps: int | None) -> BilevelObjective:
    regularizer = KnownQuadratic()
    return BilevelObjective(
        regularizer,
        normal(4, 1, 3, 4, seed=7),
        normal(4, 1, 3, 4, seed=6),
        differentiation=Differentiation(adjoint_steps=steps),
    )  # the energy is 1/2 ||x - y||^2 + 1/2 <x, H x> - <x, P theta>


def gradient_of(steps: int | None) -> torch.Tensor:
    objective = objective_of(steps)
    with torch.no_grad():
        return objective.hypergradient(objective.evaluate(FINE), FINE).z


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_against_unrolled_gradient_descent(steps: int) -> None:
    objective = objective_of(steps)
    regularizer = objective.regularizer
    assert isinstance(regularizer, KnownQuadratic)
    with torch.no_grad():
        x = objective.evaluate(FINE).x.flatten(1)
    smoothness = objective._energy(slice(0, 4)).smoothness
    theta = regularizer.theta.detach().clone().requires_grad_()
    for _ in range(steps):
        x = x - (x - objective.y.flatten(1) + x @ regularizer.h - regularizer.p @ theta) / smoothness
    (0.5 * (x - objective.target.flatten(1)).square().sum(1).mean()).backward()
    assert theta.grad is not None
    torch.testing.assert_close(gradient_of(steps), theta.grad, rtol=1e-8, atol=1e-10)


def test_many_steps_solve_the_adjoint_equations() -> None:
    exact = gradient_of(None)
    errors = [float((gradient_of(steps) - exact).norm()) for steps in (1, 4, 16, 400)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-8 * float(exact.norm()) < 0.1 * errors[0]


@pytest.mark.parametrize("method", [MAID, HOAG])
def test_methods_descend_with_it_and_count_what_it_costs(method: type[MAID] | type[HOAG]) -> None:
    target = smooth_image(2, 1, 6, 7)
    y = target + normal(2, 1, 6, 7, seed=9, scale=0.3)
    objective = BilevelObjective(
        TotalVariation(-3.0, -1.0).double(), target, y, differentiation=Differentiation(adjoint_steps=5)
    )
    with torch.no_grad():
        at = objective.evaluate(Accuracy(1e-6, 1e-6))
        before, spent = at.value, objective.evaluations
        objective.hypergradient(at, FINE)
    assert objective.evaluations == spent + 4
    assert math.isinf(float(at.adjoint.residual.max()))
    optimizer = method(objective.params)
    for _ in range(10):
        record = optimizer.step(objective=objective)
    assert record.upper < before


def test_published_maid_goes_on_with_biased_gradients() -> None:
    """Adjoint residuals are unknown then: only the errors of the minimizers say whether accuracy is out of reach."""
    target = smooth_image(2, 1, 6, 7)
    objective = BilevelObjective(
        TotalVariation(-3.0, -1.0).double(),
        target,
        target + normal(2, 1, 6, 7, seed=9, scale=0.3),
        differentiation=Differentiation(adjoint_steps=1),
    )
    optimizer = PublishedMAID(objective.params)
    records = [optimizer.step(objective=objective) for _ in range(10)]
    assert records[-1].upper < records[0].lower


def test_bad_numbers_of_steps() -> None:
    with pytest.raises(ValueError, match="adjoint_steps is 0, but must be at least 1"):
        objective_of(0)
    with pytest.raises(ValueError, match="adjoint_steps is -1, but must be at least 1"):
        BilevelModule(TotalVariation(), differentiation=Differentiation(adjoint_steps=-1))
    with pytest.raises(ValueError, match="unrolled_steps is 0, but must be at least 1"):
        BilevelModule(TotalVariation(), differentiation=Differentiation(unrolled_steps=0))
    with pytest.raises(ValueError, match="adjoint_steps and unrolled_steps exclude each other"):
        BilevelModule(TotalVariation(), differentiation=Differentiation(adjoint_steps=1, unrolled_steps=1))
