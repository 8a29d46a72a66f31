"""Denoising score matching: value and gradient against a formula and differences, and how Adam uses them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from models import ConvexRidge, NoiseConditioned
from recon.bilevel import BilevelObjective, ScoreMatchingAdam, ScoreMatchingObjective
from recon.lower_level import Regularizer


class Quadratic(Regularizer):
    """R(x) = (theta/2) ||x||^2."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.theta * x.square().sum((1, 2, 3))

    def smoothness(self) -> float:
        return float(self.theta.detach())

    def convexity(self) -> float:
        return float(self.theta.detach())


def images(count: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, 1, 9, 8, dtype=torch.float64, generator=generator)
    return x, x + 0.1 * torch.randn(x.shape, dtype=torch.float64, generator=generator)


def test_the_best_quadratic_is_the_wiener_filter() -> None:
    x, y = images()
    objective = ScoreMatchingObjective(Quadratic(), x, y, noise_factor=1.5)
    # f = 1/2 mean ||theta y - c n||^2, minimal at theta = c <n, y> / <y, y>
    best = 1.5 * float(((y - x) * y).sum() / y.square().sum())
    method = ScoreMatchingAdam(objective.params, lr=0.02, batch_size=5, lr_decay=0.5)
    for _ in range(300):
        record = method.step(objective=objective)
    assert float(objective.regularizer.theta.detach()) == pytest.approx(best, rel=1e-6)
    assert record.loss == pytest.approx(0.5 * float((best * y - 1.5 * (y - x)).square().sum()) / 5, rel=1e-9)
    assert record.lower == record.loss == record.upper
    assert record.guarantee == "none"
    assert record.evaluations == pytest.approx(2 * 300)  # one gradient and one mixed derivative of every image


def test_gradient_is_that_of_differences() -> None:
    torch.manual_seed(0)
    x, y = images()
    regularizer = ConvexRidge(filters=3, size=3).double()
    objective = ScoreMatchingObjective(regularizer, x, y, noise_factor=0.8)
    index = torch.tensor([3, 0, 1])
    value, gradient = objective.gradient(index)

    @torch.enable_grad()
    def f() -> float:
        points = y[index].clone().requires_grad_(True)
        (grad,) = torch.autograd.grad(regularizer(points).sum(), points)
        return 0.5 * float((grad - 0.8 * (y - x)[index]).square().sum((1, 2, 3)).mean())

    assert value == pytest.approx(f(), rel=1e-10)
    for p, g in zip(objective.params, gradient, strict=True):
        direction = torch.randn_like(p)
        with torch.no_grad():
            p.add_(1e-5 * direction)
            above = f()
            p.sub_(2e-5 * direction)
            below = f()
            p.add_(1e-5 * direction)
        assert float((g * direction).sum()) == pytest.approx((above - below) / 2e-5, rel=1e-4, abs=1e-9)


def test_a_resumed_method_goes_on_with_the_same_bits() -> None:
    x, y = images()
    straight, halves = ScoreMatchingObjective(Quadratic(), x, y), ScoreMatchingObjective(Quadratic(), x, y)
    method = ScoreMatchingAdam(straight.params, batch_size=2)
    for _ in range(4):
        method.step(objective=straight)
    first = ScoreMatchingAdam(halves.params, batch_size=2)
    for _ in range(2):
        first.step(objective=halves)
    second = ScoreMatchingAdam(halves.params, batch_size=2)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(2):
        second.step(objective=halves)
    assert torch.equal(straight.params[0], halves.params[0])


def test_what_is_no_denoising_is_refused() -> None:
    x, y = images()
    with pytest.raises(ValueError, match=r"images have the shape \(5, 1, 9, 8\) and the data \(5, 1, 9, 7\)"):
        ScoreMatchingObjective(Quadratic(), x, y[..., :-1])
    with pytest.raises(ValueError, match="noise_factor"):
        ScoreMatchingObjective(Quadratic(), x, y, noise_factor=0.0)
    with pytest.raises(ValueError, match="nothing can be learned"):
        ScoreMatchingObjective(Quadratic().requires_grad_(False), x, y)
    regularizer = Quadratic()
    with pytest.raises(ValueError, match="not BilevelObjective"):
        ScoreMatchingAdam(regularizer.parameters()).step(objective=BilevelObjective(regularizer, x, y))


def test_images_with_noise_levels_of_their_own_have_their_own_regularizers() -> None:
    generator = torch.Generator().manual_seed(4)
    x, n = (torch.rand(3, 1, 9, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    y, sigma = x + 0.1 * n, torch.tensor([0.02, 0.1, 0.15])
    model = NoiseConditioned(ConvexRidge(3, 3), 0.2).double()
    objective = ScoreMatchingObjective(model.at(sigma), x, y)
    for index in (torch.tensor([2, 0]), torch.tensor([1])):
        value, gradient = objective.gradient(index)
        total = torch.zeros((), dtype=torch.float64)
        for i in index:
            point = y[i][None].clone().requires_grad_(True)
            (grad,) = torch.autograd.grad(model.at(float(sigma[i]))(point).sum(), point, create_graph=True)
            total = total + 0.5 * (grad - (y - x)[i][None]).square().sum() / len(index)
        assert value == pytest.approx(float(total), rel=1e-10)
        for own, automatic in zip(gradient, torch.autograd.grad(total, objective.params), strict=True):
            torch.testing.assert_close(own, automatic, rtol=1e-8, atol=1e-12)
