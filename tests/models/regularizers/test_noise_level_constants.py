"""Constants of regularizers that know the noise level hold for all gains, however much these differ."""

from __future__ import annotations

import copy

import pytest
import torch

from models import InitialFilters, NoiseConditioned, WeaklyConvexRidge
from models.regularizers.filter_bank import spectral_bound
from models.regularizers.ridge import RidgeRegularizer
from recon.lower_level import Energy
from tests.lower_level.problems import normal, norms, perturb
from tests.lower_level.regularizer_checks import assert_hessian_bounds, assert_hessian_variation
from tests.models.regularizers.noisy import INNER, conditioned

LEVELS = torch.tensor([0.3, 0.02, 0.11], dtype=torch.float64)
SHAPE = (3, 1, 5, 6)


@pytest.mark.parametrize("spread", [0.5, 3.0])
@pytest.mark.parametrize("name", INNER)
def test_hessians_are_within_their_bounds(name: str, spread: float) -> None:
    for seed, scale in enumerate([0.01, 0.3, 3.0]):
        model = conditioned(name, seed, 0.5, spread)
        x = normal(*SHAPE, seed=seed, scale=scale)
        for sigma in LEVELS.tolist():
            assert_hessian_bounds(model.at(sigma), x)
            assert model.at(sigma).convexity() == model.convexity()
            assert model.convexity() == pytest.approx(model.regularizer.convexity(), rel=1e-12)


@pytest.mark.parametrize("name", [n for n in INNER if n != "icnn"])
def test_the_bound_of_a_ridge_regularizer_does_not_depend_on_gains(name: str) -> None:
    model = conditioned(name, spread=3.0)
    own = model.regularizer.smoothness()
    for sigma in (*LEVELS.tolist(), LEVELS):
        found = model.at(sigma).smoothness()
        assert own <= found <= own * (1 + 1e-12)


@pytest.mark.parametrize("name", ["foe_l1", "crr", "icnn"])
def test_curvature_at_zero_is_that_without_gains(name: str) -> None:
    """R''_sigma(0) = R''(0) for ridge regularizers, s_1 / s_2 R''(0) for networks: bounds are as tight as before."""
    model, v = conditioned(name, spread=2.0), normal(*SHAPE)
    x = torch.zeros(SHAPE, dtype=torch.float64)
    for sigma in LEVELS.tolist():
        gains = model.gains(sigma).detach()
        factor = float(gains[0] / gains[1]) if name == "icnn" else 1.0
        expected = factor * model.regularizer.hessian(x)(v)
        torch.testing.assert_close(model.at(sigma).hessian(x)(v), expected, rtol=1e-10, atol=1e-12)
    if name == "icnn":
        gains = model.gains(0.11).detach()
        assert float(gains[0] / gains[1]) != pytest.approx(1.0, abs=0.1)


def test_constants_of_a_batch_are_those_of_its_worst_image() -> None:
    model, x = conditioned("icnn", spread=1.0), normal(*SHAPE)
    alone = [model.at(sigma) for sigma in LEVELS.tolist()]
    at = model.at(LEVELS)
    assert at.smoothness() == max(a.smoothness() for a in alone)
    assert at.rounding_gain() == max(a.rounding_gain() for a in alone)
    assert at.rounding_offset(x) == max(float(a.rounding_offset(x)) for a in alone)
    assert len({round(a.smoothness(), 9) for a in alone}) == 3
    assert at.select(torch.tensor([1])).smoothness() == alone[1].smoothness()
    assert at.select(slice(2, 3)).rounding_gain() == alone[2].rounding_gain()


@pytest.mark.parametrize("name", INNER)
def test_the_variation_of_the_hessian(name: str) -> None:
    """Both inequalities along random and along bad directions, for mixed levels and for one."""
    used = 0.0
    for seed, scale in enumerate([0.02, 0.3, 2.0]):
        model = conditioned(name, seed, 0.3, 1.0)
        x, w = normal(*SHAPE, seed=seed, scale=scale), normal(*SHAPE, seed=seed + 7)
        for e in (normal(*SHAPE, seed=seed + 8, scale=0.01), 0.1 * w, -0.5 * x):
            for at in (model.at(LEVELS), model.at(0.02), model.at(0.4)):
                if at.hessian_variation(w) is None:
                    pytest.skip("no bound is known")
                used = max(used, *assert_hessian_variation(at, x, w, e, rtol=1e-4))
    assert used > 1e-3


@pytest.mark.parametrize("name", ["foe_weak", "crr", "icnn"])
def test_the_variation_is_that_of_every_image(name: str) -> None:
    model, w = conditioned(name), normal(*SHAPE)
    order = torch.tensor([1, 0, 2, 0])
    found = model.at(LEVELS[order]).hessian_variation(w[order])
    assert found is not None
    for place, i in enumerate(order.tolist()):
        alone = model.at(float(LEVELS[i])).hessian_variation(w[i : i + 1])
        assert alone is not None
        for field in ("relative", "lipschitz", "concavity"):
            torch.testing.assert_close(
                getattr(found, field)[place : place + 1], getattr(alone, field), rtol=1e-12, atol=0
            )


@pytest.mark.parametrize("kernels", ["best", "off"])
@pytest.mark.parametrize("name", INNER)
def test_gradients_in_single_precision_err_as_little_as_said(
    name: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same parameters and images in both types: what differs is rounding."""
    monkeypatch.setenv("RECON_KERNELS", kernels)
    for seed, (scale, spread) in enumerate([(0.1, 0.3), (1.0, 1.0), (30.0, 2.0)]):
        single = conditioned(name, seed, 0.3, spread, dtype=torch.float32)
        double = copy.deepcopy(single).double()
        x = normal(3, 1, 12, 13, seed=seed, scale=scale, dtype=torch.float32)
        for sigma in (LEVELS, 0.02):
            energy = Energy(x, single.at(sigma), mu=1.0)
            exact = Energy(x.double(), double.at(sigma), mu=1.0).grad(x.double())
            mine = energy.grad(x)
            error = norms(mine.double() - exact)
            bound = energy.rounding(x, norms(mine.double()))
            assert bool((error <= bound).all()), (error / bound).tolist()
            assert bool((error > 0).all())


@pytest.mark.parametrize("name", ["crr", "icnn"])
def test_bounds_of_the_mixed_derivative_are_estimates(name: str) -> None:
    """Image by image, as for each alone."""
    model, x, w = conditioned(name), normal(*SHAPE), normal(*SHAPE, seed=1)
    radius = torch.full((3,), 1e-3, dtype=torch.float64)
    bounds = model.at(LEVELS).jacobian_bounds(x, w, radius)
    assert not bounds.certified
    for i in range(3):
        alone = model.at(float(LEVELS[i])).jacobian_bounds(x[i : i + 1], w[i : i + 1], radius[:1])
        torch.testing.assert_close(bounds.norm[i : i + 1], alone.norm, rtol=1e-9, atol=0)
        torch.testing.assert_close(bounds.variation[i : i + 1], alone.variation, rtol=1e-9, atol=0)


@pytest.mark.parametrize("size", [3, 13])
def test_bounds_hold_for_gains_as_they_are_rounded(size: int) -> None:
    """In single precision, of the tensors that are computed with; without the allowance a tenth of these fail."""
    more = 0
    for seed in range(40):
        own = WeaklyConvexRidge(2, size, weak_convexity=0.9, initial_filters=InitialFilters("normal", seed))
        model = perturb(NoiseConditioned(own, 0.2), seed, 0.5)
        part = model.at(0.03 + 0.004 * seed)._parts.get(0)
        assert isinstance(part, RidgeRegularizer)
        kernels, *profile = part.current()
        direct = float(spectral_bound(kernels, part.curvature_bound(profile)))
        assert part.smoothness() >= direct
        more += own.smoothness() < direct
    assert more > 4
