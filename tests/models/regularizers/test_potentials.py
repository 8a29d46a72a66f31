"""Derivatives of the potentials, and their constants: true, and at most 1 % above the truth, on dense grids."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.regularizers.potentials import POTENTIALS, Potential

NAMES = sorted(POTENTIALS)
# dense near 0, where all extrema lie, and far out, where the suprema of some are approached
GRID = torch.cat([torch.linspace(-6, 6, 120_001, dtype=torch.float64), torch.logspace(0.7, 8, 2_000).double()])


def derivative(f: Tensor, u: Tensor, graph: bool = False) -> Tensor:
    return torch.autograd.grad(f.sum(), u, create_graph=graph)[0]


def third(potential: type[Potential], u: Tensor) -> Tensor:
    """phi''' at width one, by hand."""
    if potential is POTENTIALS["smoothed_l1"]:
        return -3 * u / (1 + u * u) ** 2.5
    if potential is POTENTIALS["log_cosh"]:
        return -2 * torch.tanh(u) / torch.cosh(u.clamp(-300, 300)) ** 2
    return 2 * u * (u * u - 3) / (1 + u * u) ** 3


@pytest.mark.parametrize("name", NAMES)
@given(u=st.floats(-1e3, 1e3), log_nu=st.floats(-7, 4))
def test_derivative_chain(name: str, u: float, log_nu: float) -> None:
    potential = POTENTIALS[name]
    at = torch.tensor([u], dtype=torch.float64, requires_grad=True)
    nu = torch.tensor([math.exp(log_nu)], dtype=torch.float64, requires_grad=True)
    value, slope, curvature = potential.value(at, nu), potential.slope(at, nu), potential.curvature(at, nu)
    torch.testing.assert_close(derivative(value, at), slope.detach(), rtol=1e-9, atol=1e-12)
    scale = math.exp(-log_nu)
    automatic = derivative(potential.slope(at, nu), at)
    torch.testing.assert_close(automatic, curvature.detach(), rtol=1e-8, atol=1e-12 * scale)
    second = derivative(derivative(potential.value(at, nu), at, graph=True), at)
    torch.testing.assert_close(second, curvature.detach(), rtol=1e-7, atol=1e-11 * scale)
    fast_value, fast_slope = potential.value_and_slope(at.detach(), nu.detach())
    torch.testing.assert_close(fast_value, value.detach(), rtol=1e-12, atol=1e-300)
    torch.testing.assert_close(fast_slope, slope.detach(), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("name", NAMES)
def test_width_derivatives(name: str) -> None:
    potential, h = POTENTIALS[name], 1e-5
    u = torch.linspace(-4, 4, 81, dtype=torch.float64)
    nu = torch.full_like(u, 0.7, requires_grad=True)
    by_width = torch.autograd.grad(potential.value(u, nu).sum(), nu)[0]
    difference = (potential.value(u, nu.detach() + h) - potential.value(u, nu.detach() - h)) / (2 * h)
    torch.testing.assert_close(by_width, difference, rtol=1e-7, atol=1e-9)
    by_width = torch.autograd.grad(potential.slope(u, nu).sum(), nu)[0]
    difference = (potential.slope(u, nu.detach() + h) - potential.slope(u, nu.detach() - h)) / (2 * h)
    torch.testing.assert_close(by_width, difference, rtol=1e-7, atol=1e-9)


def assert_tight(bound: float, truth: float) -> None:
    """The bound holds and is at most 1 % loose."""
    assert truth <= bound * (1 + 1e-9)
    assert bound <= 1.01 * truth


@pytest.mark.parametrize("name", NAMES)
def test_constants_are_true_and_tight(name: str) -> None:
    potential, one = POTENTIALS[name], torch.ones(1, dtype=torch.float64)
    slope, curvature, jerk = potential.slope(GRID, one), potential.curvature(GRID, one), third(potential, GRID)
    assert_tight(potential.slope_bound, float(slope.abs().max()))
    assert_tight(1.0, float(curvature.abs().max()))
    assert_tight(potential.third_bound, float(jerk.abs().max()))
    lowest = float(-curvature.min())
    if potential.concavity:
        assert_tight(potential.concavity, lowest)
    else:
        assert lowest <= 0
    # d/d log nu at nu = 1 of f(u/nu) nu^-k is -u f'(u) - k f(u)
    assert_tight(potential.slope_width_bound, float((GRID * curvature).abs().max()))
    assert_tight(potential.curvature_width_bound, float((GRID * jerk + curvature).abs().max()))
    if math.isfinite(potential.self_concordance):
        keep = curvature > 1e-280
        assert_tight(potential.self_concordance, float((jerk.abs() / curvature)[keep & (GRID.abs() < 8)].max()))
    else:
        assert lowest > 0  # a potential with a concave part has no such constant


@pytest.mark.parametrize("name", NAMES)
def test_third_derivative_used_here_is_right(name: str) -> None:
    potential, one = POTENTIALS[name], torch.ones(1, dtype=torch.float64)
    u, h = torch.linspace(-5, 5, 501, dtype=torch.float64), 1e-5
    difference = (potential.curvature(u + h, one) - potential.curvature(u - h, one)) / (2 * h)
    torch.testing.assert_close(difference, third(potential, u), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
@given(u=st.floats(-50, 50), log_nu=st.floats(-6, 3))
def test_scaling_with_the_width(name: str, u: float, log_nu: float) -> None:
    potential = POTENTIALS[name]
    at, nu = torch.tensor([u], dtype=torch.float64), torch.tensor([math.exp(log_nu)], dtype=torch.float64)
    one = torch.ones_like(nu)
    torch.testing.assert_close(potential.value(at * nu, nu), nu * potential.value(at, one), rtol=1e-10, atol=1e-300)
    torch.testing.assert_close(potential.slope(at * nu, nu), potential.slope(at, one), rtol=1e-10, atol=1e-300)
    scaled = potential.curvature(at, one) / nu
    torch.testing.assert_close(potential.curvature(at * nu, nu), scaled, rtol=1e-8, atol=1e-15 / float(nu))


@pytest.mark.parametrize("name", NAMES)
def test_zero_even_and_convex_curvature_at_zero(name: str) -> None:
    potential = POTENTIALS[name]
    nu = torch.tensor([1e-3, 0.1, 10.0], dtype=torch.float64)
    zero = torch.zeros_like(nu)
    assert bool((potential.value(zero, nu) == 0).all())
    assert bool((potential.slope(zero, nu) == 0).all())
    torch.testing.assert_close(potential.curvature(zero, nu), 1 / nu)
    u = torch.linspace(0.01, 3, 50, dtype=torch.float64)[:, None]
    torch.testing.assert_close(potential.value(-u, nu), potential.value(u, nu))
    torch.testing.assert_close(potential.slope(-u, nu), -potential.slope(u, nu))


@pytest.mark.parametrize("name", NAMES)
def test_single_precision_is_accurate_for_small_and_large_arguments(name: str) -> None:
    potential = POTENTIALS[name]
    u = torch.logspace(-8, 4, 400)
    for width in (1e-3, 0.05, 1.0, 1e3):
        nu = torch.tensor([width])
        truth, slope = potential.value(u.double(), nu.double()), potential.slope(u.double(), nu.double())
        for value in (potential.value(u, nu), potential.value_and_slope(u, nu)[0]):
            torch.testing.assert_close(value.double(), truth, rtol=3e-6, atol=1e-30)
        torch.testing.assert_close(potential.slope(u, nu).double(), slope, rtol=3e-6, atol=1e-30)
        curvature = potential.curvature(u.double(), nu.double())
        torch.testing.assert_close(potential.curvature(u, nu).double(), curvature, rtol=3e-6, atol=3e-7 / width)
