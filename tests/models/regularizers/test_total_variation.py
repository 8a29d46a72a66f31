"""Smoothed total variation: derivatives, moduli, and its self-concordance in the plane."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.regularizers.total_variation import TotalVariation
from recon.lower_level import LBFGS, Energy, Regularizer, TotalVariationProblem, TotalVariationSolver
from recon.reconstruction import PlainTotalVariation
from tests.lower_level.problems import make, normal, norms
from tests.lower_level.regularizer_checks import (
    assert_batch,
    assert_derivatives,
    assert_hessian_bounds,
    assert_hessian_variation,
    assert_jacobian_bounds,
)


@pytest.mark.parametrize("shape", [(3, 1, 5, 7), (2, 2, 6, 5), (2, 1, 1, 6), (2, 1, 6, 1), (2, 3, 1, 1)])
def test_derivatives(shape: tuple[int, ...]) -> None:
    for seed, scale in enumerate([0.01, 1.0, 10.0]):
        regularizer = make("tv", seed, 1.0)
        x = normal(*shape, seed=seed, scale=scale)
        assert_derivatives(regularizer, x, rtol=1e-9)
        assert_batch(regularizer, x)
    assert_derivatives(make("tv"), torch.ones(shape, dtype=torch.float64))


def test_value_by_hand() -> None:
    x = torch.tensor([[[[0.0, 3.0], [4.0, 4.0]]]], dtype=torch.float64)
    nu, weight = math.exp(-1), math.exp(0.5)
    pairs = [(3, 4), (0, 1), (0, 0), (0, 0)]
    expected = weight * sum(math.sqrt(a * a + b * b + nu * nu) - nu for a, b in pairs)
    assert float(TotalVariation(0.5, -1.0).double()(x)) == pytest.approx(expected, rel=1e-7)
    assert float(TotalVariation(0.5, -1.0).double()(torch.full_like(x, 7.0))) == pytest.approx(0, abs=1e-15)


@given(seed=st.integers(0, 10_000), spread=st.floats(0, 3), log_scale=st.floats(-6, 4), channels=st.integers(1, 2))
def test_hessian_is_symmetric_and_within_its_bounds(seed: int, spread: float, log_scale: float, channels: int) -> None:
    x = normal(2, channels, 4, 5, seed=seed, scale=math.exp(log_scale))
    assert_hessian_bounds(make("tv", seed, spread), x)


def test_smoothness_is_tight() -> None:
    regularizer = make("tv")
    _, high = assert_hessian_bounds(regularizer, torch.zeros(1, 1, 14, 14, dtype=torch.float64))
    assert high >= 0.95 * regularizer.smoothness()


def third_form(z: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The third derivative of sqrt(|z|^2 + 1) at z along a, b, c; vectors in the last axis."""

    def dot(p: Tensor, q: Tensor) -> Tensor:
        return (p * q).sum(-1)

    s = (1 + dot(z, z)).sqrt()
    mixed = dot(z, a) * dot(b, c) + dot(z, b) * dot(a, c) + dot(z, c) * dot(a, b)
    return -mixed / s**3 + 3 * dot(z, a) * dot(z, b) * dot(z, c) / s**5


def test_self_concordance_in_the_plane() -> None:
    """|D^3 f(z)[a, b, b]| <= 3/2 |a| D^2 f(z)[b, b] for all z and unit a, b, by brute force; 3/2 is attained."""
    angle = torch.linspace(0, 2 * math.pi, 121, dtype=torch.float64)
    a = torch.stack((angle.cos(), angle.sin()), -1)[:, None]
    b = torch.stack((angle.cos(), angle.sin()), -1)[None]
    worst, largest = 0.0, 0.0
    for radius in torch.linspace(0, 6, 241, dtype=torch.float64):
        z = torch.stack((radius, torch.zeros_like(radius)))  # the function is invariant under rotations
        second = ((1 + radius**2) - (z * b).sum(-1).square()) / (1 + radius**2) ** 1.5
        third = third_form(z, a, b, b).abs()
        worst = max(worst, float((third / second).max()))
        largest = max(largest, float(third.max()))
    assert 1.499 <= worst <= 1.5 + 1e-12
    bound = 1.5 / 1.25**2.5  # of the third derivative itself
    assert 0.999 * bound <= largest <= bound * (1 + 1e-12)


def test_third_derivative_used_here_is_right() -> None:
    z, a, b, c = (normal(2, seed=i) for i in range(4))

    def second(z: Tensor) -> Tensor:
        s = (1 + z @ z).sqrt()
        return (b @ c) / s - (z @ b) * (z @ c) / s**3

    h = 1e-5
    expected = float(second(z + h * a) - second(z - h * a)) / (2 * h)
    assert float(third_form(z, a, b, c)) == pytest.approx(expected, rel=1e-8)


@given(
    seed=st.integers(0, 10_000),
    spread=st.floats(0, 1),
    log_scale=st.floats(-5, 3),
    log_step=st.floats(-6, 3),
    peaked=st.booleans(),
)
def test_hessian_variation(seed: int, spread: float, log_scale: float, log_step: float, peaked: bool) -> None:
    x, w, e = (normal(2, 1, 5, 6, seed=seed + i) for i in range(3))
    if peaked:  # one pixel alone, where w has its largest difference
        row = int((w[0, 0, :, 1:] - w[0, 0, :, :-1]).abs().max(1).values.argmax())
        e = torch.zeros_like(e)
        e[..., row, :] = w[..., row, :]
    e = math.exp(log_step) * e / norms(e).view(-1, 1, 1, 1)
    assert_hessian_variation(make("tv", seed, spread), math.exp(log_scale) * x, w, e, rtol=1e-4)


def test_constants_of_the_variation_cannot_be_halved() -> None:
    regularizer = TotalVariation(0.0, 0.0).double()
    wave = (torch.arange(40, dtype=torch.float64) % 2).expand(1, 1, 1, 40)
    used = [assert_hessian_variation(regularizer, 1.2 * wave, wave, f * wave)[0] for f in (-0.3, -1, -3, 1)]
    assert max(used) > 0.5
    # the norm of D is 2 and not 8^(1/2) for an image of one row: a quarter of 8 is left in the bound
    assert assert_hessian_variation(regularizer, 0.5 * wave, wave, 1e-3 * (wave - 0.5))[1] > 0.9 / 2


@pytest.mark.parametrize("radius", [1e-2, 1.0])
def test_jacobian_bounds(radius: float) -> None:
    for seed, scale in ((0, 0.3), (1, 5.0)):
        shape = (1, 2, 4, 4) if seed else (2, 1, 4, 5)
        x, w = normal(*shape, seed=seed, scale=scale), normal(*shape, seed=seed + 1)
        used = assert_jacobian_bounds(make("tv", seed, 1.0), x, w, radius)
        assert used > 0.1


def test_frozen_parameters_are_left_out() -> None:
    x, w = normal(2, 1, 4, 4), normal(2, 1, 4, 4, seed=1)
    for name in ("log_weight", "log_smoothing"):
        regularizer = make("tv")
        getattr(regularizer, name).requires_grad_(False)
        (mine,), (automatic,) = regularizer.parameter_vjp(x, w), Regularizer.parameter_vjp(regularizer, x, w)
        torch.testing.assert_close(mine, automatic)


def test_infinite_parameters_are_refused() -> None:
    for arguments in ((math.nan, 0.0), (0.0, math.inf)):
        with pytest.raises(ValueError, match="must be finite"):
            TotalVariation(*arguments)


@pytest.mark.parametrize("log_smoothing", [-9.0, -4.0, -1.0])
def test_the_slack_is_what_the_smoothed_field_misses_of_total_variation(log_smoothing: float) -> None:
    regularizer, x = TotalVariation(-1.0, log_smoothing).double(), normal(2, 2, 6, 7, seed=5)
    _, gradient = regularizer.value_and_grad(x)
    variation = math.exp(-1.0) * PlainTotalVariation()(x)
    # <Dx, p> = <x, D^T p>, and the gradient is e^{theta_1} D^T p
    expected = variation - (x * gradient).flatten(1).sum(1)
    assert torch.allclose(regularizer.slack(x), expected.detach(), atol=1e-12)
    assert (regularizer.slack(x) <= math.exp(-1.0) * 0.31 * math.exp(log_smoothing) * x[0].numel()).all()


@pytest.mark.parametrize("log_smoothing", [-7.0, -3.0])
def test_no_minimizer_without_smoothing_is_farther_than_the_slack_says(log_smoothing: float) -> None:
    y = normal(1, 1, 8, 8, seed=6)
    regularizer = TotalVariation(math.log(0.3), log_smoothing).double().requires_grad_(False)
    exact = TotalVariationSolver()(TotalVariationProblem(y, 0.3), 1e-6)
    for accuracy in (1.0, 1e-1, 1e-6):
        solution = LBFGS()(Energy(y, regularizer), y, accuracy)
        error, slack = float(solution.error), float(regularizer.slack(solution.x))
        away = float((solution.x - exact.x).norm())
        bound = error / 2 + math.sqrt(error**2 / 4 + slack)
        assert away <= bound + 1e-6
    assert error < away <= bound <= 12 * away  # none of it is left out, and it is of use
