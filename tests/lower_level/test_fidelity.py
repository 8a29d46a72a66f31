"""Data fidelities: derivatives, moduli, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recon.lower_level import LBFGS, DataFidelity, Energy, KullbackLeibler, SquaredL2, WeightedSquaredL2
from tests.lower_level.problems import make, normal

SHAPE = (3, 2, 4, 5)


def fidelities() -> dict[str, DataFidelity]:
    weights = normal(2, 4, 5, seed=9).exp()
    weights[0, 0] = 0
    return {
        "l2": SquaredL2(2.5),
        "pixels": WeightedSquaredL2(weights),
        "rows": WeightedSquaredL2(weights[1]),
        "channels": WeightedSquaredL2(weights[:, 1:2, 1:2]),
        "kl": KullbackLeibler(0.3),
    }


NAMES = sorted(fidelities())


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 30))
def test_derivatives_and_moduli(name: str, seed: int, scale: float) -> None:
    fidelity = fidelities()[name]
    z = normal(*SHAPE, seed=seed, scale=scale).requires_grad_()
    y = normal(*SHAPE, seed=seed + 1).abs()
    y[0, 0] = 0
    value = fidelity.value(z, y)
    assert value.shape == (3,)
    assert value.dtype == torch.float64
    (grad,) = torch.autograd.grad(value.sum(), z)
    torch.testing.assert_close(fidelity.grad(z, y).detach(), grad, rtol=1e-10, atol=1e-10)
    (curvature,) = torch.autograd.grad(fidelity.grad(z, y).sum(), z)
    mine = fidelity.curvature(z, y).detach()
    assert mine.ndim == z.ndim
    assert mine.shape[0] in (1, len(z))
    torch.testing.assert_close(mine.expand(SHAPE), curvature, rtol=1e-10, atol=1e-10)
    low, high = float(curvature.min()), float(curvature.max())
    assert 0 <= fidelity.strong_convexity(y) <= low + 1e-12
    assert high <= fidelity.smoothness(y) * (1 + 1e-12)
    if fidelity.quadratic:
        assert fidelity.strong_convexity(y) == pytest.approx(low)
        assert fidelity.smoothness(y) == pytest.approx(high)


def test_smoothness_of_the_kullback_leibler_fidelity_is_attained() -> None:
    fidelity, y = KullbackLeibler(0.5), torch.tensor([[[[3.0, 1.0]]]], dtype=torch.float64)
    assert float(fidelity.curvature(torch.zeros_like(y), y).max()) == pytest.approx(fidelity.smoothness(y))


def test_kullback_leibler_by_hand_and_at_its_minimum() -> None:
    fidelity, y = KullbackLeibler(0.5), torch.tensor([[[[3.0, 0.0, 1.0]]]], dtype=torch.float64)
    z = torch.tensor([[[[2.0, 1.0, 0.5]]]], dtype=torch.float64)
    expected = 2.5 - 3 + 3 * math.log(3 / 2.5) + 1.5 + 1.0 - 1 + math.log(1 / 1.0)
    assert float(fidelity.value(z, y)) == pytest.approx(expected, rel=1e-14)
    positive = y.clamp_min(0.7)
    assert float(fidelity.value(positive - 0.5, positive)) == pytest.approx(0, abs=1e-15)
    assert float(fidelity.grad(positive - 0.5, positive).abs().max()) < 1e-15


def test_kullback_leibler_is_smooth_across_zero() -> None:
    """C^2 at z = 0, where the quadratic continuation begins; the same quadratic all the way down."""
    fidelity, y = KullbackLeibler(0.4), torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64)
    zero = torch.zeros_like(y)
    for h in (1e-6, 1e-8):
        for function in (fidelity.value, fidelity.grad, fidelity.curvature):
            jump = function(zero + h, y) - function(zero - h, y)
            assert float(jump.abs().max()) <= 200 * h
    assert float(fidelity.curvature(zero - 50, y)) == float(fidelity.curvature(zero, y))
    slope = float(fidelity.grad(zero - 2, y) - fidelity.grad(zero - 1, y))
    assert slope == pytest.approx(-float(fidelity.curvature(zero, y)))


@pytest.mark.parametrize("name", NAMES)
def test_data_that_are_not_finite_are_refused(name: str) -> None:
    for bad in (math.nan, math.inf):
        y = torch.ones(2, 1, 3, 3, dtype=torch.float64)
        y[1, 0, 0] = bad
        with pytest.raises(ValueError, match="3 values that are NaN or infinite"):
            fidelities()[name].check(y)
        with pytest.raises(ValueError, match="3 values that are NaN or infinite"):
            Energy(y, make("tv"), fidelity=fidelities()["l2"], mu=1.0)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"hold -2 < 0"):
        KullbackLeibler(1.0).check(torch.tensor([[1.0, -2.0]]))
    for background in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"is {background}, but must be positive"):
            KullbackLeibler(background)
    for weight in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"is {weight}, but must be positive"):
            SquaredL2(weight)
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="finite and not negative"):
            WeightedSquaredL2(torch.tensor([1.0, bad]))
    with pytest.raises(ValueError, match="finite and not negative"):
        WeightedSquaredL2(torch.ones(0))


def test_weights_of_another_shape_are_refused() -> None:
    """Those of each image, which solvers drop with the images that are done, have the shape of y."""
    y = torch.ones(2, 1, 3, 4)
    for shape in ((2, 1, 1, 4), (3, 1, 3, 4), (3, 1, 1, 1), (3, 3), (1, 1, 1, 3, 4)):
        with pytest.raises(ValueError, match=r"must broadcast to the data of one image, \(1, 3, 4\)"):
            WeightedSquaredL2(torch.ones(shape)).check(y)
    for shape in ((2, 1, 3, 4), (1, 3, 4), (1, 1, 3, 4), (3, 1), (4,), ()):
        WeightedSquaredL2(torch.ones(shape)).check(y)


def test_weights_take_the_precision_of_the_data() -> None:
    y = normal(2, 1, 6, 6, dtype=torch.float32)
    fidelity = WeightedSquaredL2(normal(1, 6, 6, seed=3).exp())
    assert fidelity.weights.dtype == torch.float64
    solution = LBFGS()(Energy(y, make("tv", dtype=torch.float32), fidelity=fidelity), y, 1e-2)
    assert solution.converged
    assert solution.x.dtype == torch.float32
