"""Convex and weakly convex ridge regularizers: splines, moduli, and the variation of the Hessian."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import InitialFilters
from models.regularizers.convex_ridge import ConvexRidge, WeaklyConvexRidge
from tests.lower_level.problems import make, normal, norms, perturb, regularizer_hessians
from tests.lower_level.regularizer_checks import (
    assert_hessian_bounds,
    assert_hessian_variation,
)

NAMES = ["crr", "wcrr"]


@pytest.mark.parametrize("spread", [0.0, 1.0, 5.0, 20.0])
@pytest.mark.parametrize("rho", [0.05, 0.9, 0.999])
def test_weak_convexity_holds_for_all_parameters(rho: float, spread: float) -> None:
    for seed in range(4):
        regularizer = WeaklyConvexRidge(4, 3, knots=5, spacing=0.1, weak_convexity=rho).double()
        perturb(regularizer, seed, spread)
        with torch.no_grad():
            regularizer.curvatures.sub_(10)  # nothing convex is left
            regularizer.bends.abs_().add_(5)
        x = torch.cat([normal(1, 1, 6, 6, seed=seed, scale=s) for s in (1e-3, 0.1, 1.0)])
        dense = regularizer_hessians(regularizer, x)
        low = float(torch.linalg.eigvalsh((dense + dense.mT) / 2).min())
        assert low >= -rho - 1e-13 * float(dense.abs().max())


def test_weak_convexity_is_used_up() -> None:
    """With concave profiles alone the smallest eigenvalue is near -rho: half of the modulus would be wrong."""
    regularizer = WeaklyConvexRidge(2, 3, knots=4, spacing=0.1, weak_convexity=0.8).double()
    with torch.no_grad():
        regularizer.curvatures.fill_(-40)
        regularizer.bends.fill_(40)
    low, _ = assert_hessian_bounds(regularizer, torch.zeros(1, 1, 14, 14, dtype=torch.float64))
    assert low <= -0.8 * 0.7
    assert regularizer.convexity() == -0.8


def test_smoothness_is_not_far_above_the_largest_eigenvalue() -> None:
    regularizer = ConvexRidge(2, 3, knots=6, spacing=0.1, log_weight=0.0, log_width=-1.0).double()
    _, high = assert_hessian_bounds(regularizer, torch.zeros(1, 1, 14, 14, dtype=torch.float64))
    assert high >= 0.8 * regularizer.smoothness()


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 10_000), spread=st.floats(0, 2), log_scale=st.floats(-5, 2), log_step=st.floats(-6, 2))
def test_hessian_variation(name: str, seed: int, spread: float, log_scale: float, log_step: float) -> None:
    regularizer = make(name, seed, spread)
    x, w, e = (normal(2, 1, 5, 6, seed=seed + i) for i in range(3))
    assert_hessian_variation(
        regularizer, math.exp(log_scale) * x, w, math.exp(log_step) * e / norms(e).view(-1, 1, 1, 1)
    )


def test_lipschitz_constant_cannot_be_halved() -> None:
    regularizer = ConvexRidge(1, 2, knots=2, spacing=1.0, initial_filters=InitialFilters("normal")).double()
    with torch.no_grad():
        regularizer.weight.copy_(torch.tensor([[[0.5, -0.5], [0.5, -0.5]]]))
    wave = (torch.arange(20, dtype=torch.float64) % 2).expand(1, 1, 3, 20)
    _, used = assert_hessian_variation(regularizer, 0.6 * wave, wave, 0.2 * (wave - 0.5))
    assert used > 0.6
    variation = regularizer.hessian_variation(wave)
    assert variation is not None
    assert bool(torch.isinf(variation.relative).all())


@pytest.mark.parametrize("name", NAMES)
def test_profiles_are_the_integrals_of_their_curvatures(name: str) -> None:
    regularizer = make(name)
    assert isinstance(regularizer, ConvexRidge)
    _, *profile = regularizer.current()
    d = profile[0]
    u = torch.linspace(-1.3, 1.3, 261, dtype=torch.float64).repeat(1, len(d), 1)  # the last knot is at 0.9
    knots = regularizer.spacing * torch.arange(d.shape[1], dtype=torch.float64)
    for k in range(len(d)):
        # piecewise linear interpolation of d, zero beyond the last knot
        position = (u[0, k].abs() / regularizer.spacing).clamp(max=len(knots) - 1)
        left = position.floor().clamp(max=len(knots) - 2).long()
        expected = d[k][left] + (position - left) * (d[k][left + 1] - d[k][left])
        torch.testing.assert_close(regularizer.curvature(u, profile)[0, k], expected, rtol=1e-12, atol=1e-12)
    at_knots = knots.repeat(1, len(d), 1)
    value, slope = regularizer.value_and_slope(at_knots, profile)
    torch.testing.assert_close(slope[0], profile[1])
    torch.testing.assert_close(value[0], profile[2])
    h = 1e-6
    ahead, behind = regularizer.value(u + h, profile), regularizer.value(u - h, profile)
    torch.testing.assert_close((ahead - behind) / (2 * h), regularizer.slope(u, profile), rtol=1e-6, atol=1e-8)
    ahead, behind = regularizer.slope(u + h, profile), regularizer.slope(u - h, profile)
    torch.testing.assert_close((ahead - behind) / (2 * h), regularizer.curvature(u, profile), rtol=1e-4, atol=3e-5)
    assert bool((profile[0][:, :-1] >= (0 if name == "crr" else -0.7 * 1e3)).all())


def test_start_is_the_smoothed_one_norm() -> None:
    regularizer = ConvexRidge(2, 3, knots=200, spacing=0.01, log_weight=-1.0, log_width=-2.0).double()
    _, *profile = regularizer.current()
    u = torch.linspace(-1, 1, 101, dtype=torch.float64).repeat(1, 2, 1)
    nu, weight = math.exp(-2), math.exp(-1)
    curvature = weight * nu**2 / (u**2 + nu**2) ** 1.5
    torch.testing.assert_close(regularizer.curvature(u, profile), curvature, rtol=1e-2, atol=1e-2)
    slope = weight * u / (u**2 + nu**2).sqrt()
    torch.testing.assert_close(regularizer.slope(u, profile), slope, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_infinite_and_huge_values_do_not_reach_beyond_the_tables(name: str) -> None:
    regularizer = make(name)
    for size in (1e30, 1e300, math.inf, math.nan):
        x = normal(2, 1, 5, 5)
        x[0, 0, 2, 2] = size
        value, grad = regularizer.value_and_grad(x)
        expected, expected_grad = regularizer.value_and_grad(x[1:])
        torch.testing.assert_close(value[1:], expected)
        torch.testing.assert_close(grad[1:], expected_grad)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"knots": 1}, "knots is 1"),
        ({"spacing": 0.0}, "spacing is 0"),
        ({"spacing": math.inf}, "spacing is inf"),
        ({"weak_convexity": 0.0}, "weak_convexity is 0"),
        ({"weak_convexity": 1.0}, "weak_convexity is 1"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeaklyConvexRidge(2, 3, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [ConvexRidge, WeaklyConvexRidge])
def test_scale_is_the_unit_of_what_is_learned_alone(kind: type[ConvexRidge]) -> None:
    x = normal(2, 1, 9, 9)
    plain, scaled = (kind(filters=3, size=3, log_weight=1.0, log_width=-2.0, scale=s).double() for s in (1.0, 10.0))
    torch.testing.assert_close(scaled(x), plain(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(scaled.curvature_bound(scaled.current()[1:]), plain.curvature_bound(plain.current()[1:]))
    with torch.no_grad():
        for regularizer in (plain, scaled):
            regularizer.curvatures += 0.5
    assert (scaled(x).sum() - plain(x).sum()).item() > 0.1 * plain(x).sum().item()
    with pytest.raises(ValueError, match=r"scale is -1\.0, but must be positive"):
        kind(scale=-1.0)


@pytest.mark.parametrize("learned", [15.0, 22.0, 30.0, 39.0, 45.0])
def test_curvatures_are_the_softplus_to_full_precision(learned: float) -> None:
    ridge = ConvexRidge(filters=1, size=2, knots=2).double()
    with torch.no_grad():
        ridge.curvatures.fill_(learned)
        found = float(ridge.knot_curvatures(ridge.kernels())[0, 0])
    assert found == pytest.approx(learned + math.log1p(math.exp(-learned)), rel=2e-16, abs=0)
