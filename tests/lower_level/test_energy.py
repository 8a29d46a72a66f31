"""Energies: derivatives, moduli, selection, and the model of their rounding errors."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from models.regularizers.fields_of_experts import FieldsOfExperts
from models.regularizers.total_variation import TotalVariation
from recon.lower_level import Energy, KullbackLeibler, Regularizer, SquaredL2, WeightedSquaredL2
from recon.operators import Blur
from tests.lower_level.problems import Quadratic, energy_hessians, make, normal, norms, smooth_image


def energies() -> dict[str, Energy]:
    y, counts = normal(3, 2, 5, 6), normal(3, 2, 5, 6).abs()
    weights = 0.5 + normal(2, 5, 6, seed=4).abs()
    blur = Blur(0.8, (2, 5, 6), "reflect")
    return {
        "identity": Energy(y, make("foe_l1")),
        "weak": Energy(y, make("foe_weak_l1"), mu=0.1),
        "blur": Energy(y, make("tv"), blur, mu=0.05),
        "weighted": Energy(y, make("crr"), blur, WeightedSquaredL2(weights), mu=0.05),
        "rows": Energy(y, make("crr"), fidelity=WeightedSquaredL2(weights[0])),
        "counts": Energy(counts, make("foe_log_cosh"), blur, KullbackLeibler(0.5), mu=0.2),
        "scaled": Energy(y, make("wcrr"), fidelity=SquaredL2(3.0)),
    }


NAMES = sorted(energies())


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_and_moduli(name: str) -> None:
    energy, x = energies()[name], normal(3, 2, 5, 6, seed=1)
    value, grad = energy.value_and_grad(x)
    assert value.dtype == torch.float64
    expected = energy.regularizer(x) + energy.fidelity.value(energy.operator(x), energy.y)
    expected = (expected + 0.5 * energy.mu * x.square().sum((1, 2, 3))).detach()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    v, h = normal(3, 2, 5, 6, seed=2), 1e-5
    slope = (energy.value_and_grad(x + h * v)[0] - energy.value_and_grad(x - h * v)[0]) / (2 * h)
    torch.testing.assert_close(slope, (grad * v).sum((1, 2, 3)), rtol=1e-6, atol=1e-6)
    change = (energy.grad(x + h * v) - energy.grad(x - h * v)) / (2 * h)
    torch.testing.assert_close(energy.hessian(x)(v), change, rtol=1e-3, atol=1e-3)
    dense = energy_hessians(energy, x)
    assert float((dense - dense.mT).abs().max()) < 1e-11
    eigenvalues = torch.linalg.eigvalsh(dense)
    assert 0 < energy.strong_convexity <= float(eigenvalues.min()) + 1e-12
    assert float(eigenvalues.max()) <= energy.smoothness * (1 + 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_data_convexity_leaves_the_regularizer_out(name: str) -> None:
    energy, x = energies()[name], normal(1, 2, 5, 6, seed=1)
    energy = energy.select(torch.tensor([0]))
    dense = energy_hessians(energy, x) - torch.stack(
        [energy.regularizer.hessian(x)(e.view_as(x)).flatten() for e in torch.eye(60, dtype=torch.float64)]
    )
    assert energy.data_convexity <= float(torch.linalg.eigvalsh((dense + dense.mT) / 2).min()) + 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_select_is_the_energy_of_some_images(name: str) -> None:
    energy, x, v = energies()[name], normal(3, 2, 5, 6, seed=1), normal(3, 2, 5, 6, seed=2)
    index = torch.tensor([2, 0])
    part = energy.select(index)
    for mine, expected in zip(part.value_and_grad(x[index]), energy.value_and_grad(x), strict=True):
        torch.testing.assert_close(mine, expected[index], rtol=1e-12, atol=1e-12)
    whole = energy.hessian(x)
    expected = whole(v)[index]
    torch.testing.assert_close(part.hessian(x[index])(v[index]), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole.select(index)(v[index]), expected, rtol=1e-12, atol=1e-12)
    nested = part.hessian(x[index]).select(torch.tensor([1]))
    torch.testing.assert_close(nested(v[:1]), expected[1:], rtol=1e-12, atol=1e-12)


def test_energies_that_are_not_strongly_convex_are_refused() -> None:
    y = normal(1, 1, 5, 5)

    class Unknown(Regularizer):
        def forward(self, x: Tensor) -> Tensor:
            return x.square().flatten(1).sum(1)

    blur = Blur(torch.ones(1, 5, dtype=torch.float64) / 5, (1, 5, 5))  # periodic, as wide as the image: singular
    for energy in (Energy(y, Unknown()), Energy(y, make("tv"), blur), Energy(y, make("foe_weak_l1"), blur, mu=0.5)):
        with pytest.raises(ValueError, match=r"needs a strongly convex energy.*mu = .*convexity\(\)"):
            energy.require_strong_convexity()
    with pytest.raises(ValueError, match="Unknown with Identity"):
        Energy(y, Unknown()).require_strong_convexity()
    with pytest.raises(ValueError, match=r"FieldsOfExperts with Blur and mu = 0\.5"):
        Energy(y, make("foe_weak_l1"), blur, mu=0.5).require_strong_convexity()
    for mu in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"mu is {mu}"):
            Energy(y, make("tv"), mu=mu)


@pytest.mark.parametrize("offset", [0.0, 0.5, 10.0])
@pytest.mark.parametrize("name", ["foe", "foe_sharp", "weak", "tv", "tv_sharp", "blur"])
def test_rounding_covers_the_error_of_gradients_in_single_precision(name: str, offset: float) -> None:
    """At noisy, at denoised and at artificial images, in range [0, 1] and far from it."""
    made: dict[str, Regularizer] = {
        "foe": FieldsOfExperts(24, 5, log_weight=-3, log_width=-4),
        "foe_sharp": FieldsOfExperts(24, 5, log_weight=-3, log_width=-7),
        "weak": FieldsOfExperts(24, 5, log_weight=-3, log_width=-4, weak_convexity=0.9),
        "tv": TotalVariation(-3, -4),
        "tv_sharp": TotalVariation(-3, -8),
        "blur": TotalVariation(-3, -4),
    }
    shape = (3, 1, 32, 33)
    operator = Blur(1.0, (1, 32, 33), "reflect") if name == "blur" else None
    clean = offset + 0.4 * smooth_image(*shape, seed=1)
    y = clean + normal(*shape, scale=0.1)
    constant = torch.full_like(clean, offset + 0.3)
    # rounding errors that are alike at many pixels: far from independent, as the model assumes
    row = torch.arange(32, dtype=torch.float64).view(1, 1, 32, 1)
    stripes, ramp = (offset + 0.7 * t + 0 * clean for t in ((row % 3) / 3, row / 32))
    double = copy.deepcopy(made[name]).double()
    mu = 0.1 if name == "blur" else 0.0
    for point in (y, clean, constant, stripes, ramp):
        x, data = point.float(), y.float()
        single = Energy(data, made[name], operator, mu=mu)
        grad = single.grad(x)
        truth = Energy(data.double(), double, operator, mu=mu).grad(x.double())
        error = norms(grad.double() - truth)
        bound = single.rounding(x, norms(grad))
        assert bool((error <= bound).all()), (error / bound).tolist()


def test_rounding_is_of_the_order_of_the_unit_roundoff() -> None:
    energy = Energy(normal(2, 1, 6, 6), make("tv"))
    x = normal(2, 1, 6, 6, seed=1)
    bound = energy.rounding(x, norms(energy.grad(x)))
    scale = 2.0**-53 * energy.smoothness * norms(x)
    assert bool((bound >= scale).all())
    assert bool((bound <= 20 * scale).all())


def test_default_derivatives_of_a_regularizer_that_only_has_a_value() -> None:
    regularizer = Quadratic()
    with torch.no_grad():
        regularizer.theta.copy_(normal(3))
    x, v = normal(4, 1, 3, 4, seed=1), normal(4, 1, 3, 4, seed=2)
    value, grad = regularizer.value_and_grad(x)
    torch.testing.assert_close(value, regularizer(x).detach())
    assert not value.requires_grad
    assert not grad.requires_grad
    expected = (x.flatten(1) @ regularizer.h - regularizer.p @ regularizer.theta.detach()).view_as(x)
    torch.testing.assert_close(grad, expected)
    hessian = regularizer.hessian(x)
    product = (v.flatten(1) @ regularizer.h).view_as(v)
    index = torch.tensor([3, 1])
    for _ in range(2):
        torch.testing.assert_close(hessian(v), product)
        torch.testing.assert_close(hessian.select(index)(v[index]), product[index])
        torch.testing.assert_close(
            hessian.select(index).select(torch.tensor([1]))(v[:1]), (v[:1].flatten(1) @ regularizer.h).view_as(v[:1])
        )
    (vjp,) = regularizer.parameter_vjp(x, v)
    torch.testing.assert_close(vjp, -regularizer.p.T @ v.flatten(1).sum(0))
    assert regularizer.hessian_variation(v) is None
    assert not regularizer.jacobian_bounds(x, v, torch.ones(4)).certified


def test_default_moduli_know_nothing() -> None:
    class Unknown(Regularizer):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).sum(1)

    regularizer, x = Unknown(), normal(2, 1, 3, 3)
    assert regularizer.smoothness() == math.inf
    assert regularizer.convexity() == -math.inf
    assert float(regularizer.hessian(x)(x).abs().max()) == 0  # affine
    with pytest.raises(NotImplementedError, match="Regularizer does not define forward"):
        Regularizer()(x)


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_data_far_from_the_range_have_rounding_errors_of_their_own(scale: float) -> None:
    """A constant kernel of stripes: x is small, A^T(Ax - y) a small difference of large numbers."""
    blur = Blur(torch.full((1, 3), 1 / 3, dtype=torch.float64), (1, 32, 33), "periodic")
    stripes = torch.tensor([1.0, 1.0, -2.0], dtype=torch.float64).repeat(11).expand(1, 1, 32, 33)  # A^T maps them to 0
    noise = normal(1, 1, 32, 1, seed=5, scale=scale)
    y = (0.1 * normal(1, 1, 32, 33) + noise * stripes).float()
    x = 0.1 * normal(1, 1, 32, 33, seed=2, dtype=torch.float32)
    single, double = (Energy(data, make("tv", dtype=data.dtype), blur, mu=0.1) for data in (y, y.double()))
    grad = single.grad(x)
    error = norms(grad.double() - double.grad(x.double()))
    assert bool((error <= single.rounding(x, norms(grad))).all())
    if scale == 1e4:  # where the model without the data fails
        assert bool((error > single.product_rounding(x, norms(grad))).all())
