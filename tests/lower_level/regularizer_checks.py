"""What every regularizer has to satisfy, as functions for the tests of the single regularizers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recon.lower_level import Regularizer
from tests.lower_level.problems import gauss_legendre, normal, norms, regularizer_hessians

NODES, WEIGHTS = gauss_legendre(64)


def assert_derivatives(regularizer: Regularizer, x: Tensor, rtol: float = 1e-10) -> None:
    """Analytic derivatives against automatic differentiation of ``forward``, and that against finite differences."""
    v, w = normal(*x.shape, seed=101), normal(*x.shape, seed=102)
    value, grad = regularizer.value_and_grad(x)
    expected_value, expected_grad = Regularizer.value_and_grad(regularizer, x)
    torch.testing.assert_close(value, expected_value, rtol=rtol, atol=1e-12)
    torch.testing.assert_close(grad, expected_grad, rtol=rtol, atol=1e-12)
    torch.testing.assert_close(regularizer.grad(x), grad, rtol=0, atol=0)
    product = regularizer.hessian(x)(v)
    torch.testing.assert_close(product, Regularizer.hessian(regularizer, x)(v), rtol=rtol, atol=1e-10)
    h = 1e-5
    ahead, behind = regularizer.value_and_grad(x + h * v), regularizer.value_and_grad(x - h * v)
    slope = (ahead[0] - behind[0]) / (2 * h)
    scale = float(product.norm() + grad.norm() + 1)
    torch.testing.assert_close(slope, (grad * v).flatten(1).sum(1), rtol=1e-6, atol=1e-7 * scale)
    # a spline's second derivative has kinks: the difference quotient is then of first order only
    assert float(((ahead[1] - behind[1]) / (2 * h) - product).norm()) <= 3e-4 * scale
    assert_parameter_derivatives(regularizer, x, w, rtol)
    assert value.dtype == torch.float64


def assert_parameter_derivatives(regularizer: Regularizer, x: Tensor, w: Tensor, rtol: float = 1e-10) -> None:
    params = regularizer.trainable()
    vjp = regularizer.parameter_vjp(x, w)
    assert [g.shape for g in vjp] == [p.shape for p in params]
    assert [g.dtype for g in vjp] == [p.dtype for p in params]
    for mine, automatic in zip(vjp, Regularizer.parameter_vjp(regularizer, x, w), strict=True):
        torch.testing.assert_close(mine, automatic, rtol=rtol, atol=1e-10)
    # along a random direction, the derivative of <grad R, w> by central differences
    h, directions = 1e-6, [normal(*p.shape, seed=103 + i) for i, p in enumerate(params)]
    values = []
    with torch.no_grad():
        for factor in (h, -2 * h, h):
            for p, d in zip(params, directions, strict=True):
                p.add_(factor * d)
            values.append(float((regularizer.grad(x) * w).sum()))
    slope = sum(float((g * d).sum()) for g, d in zip(vjp, directions, strict=True))
    assert (values[0] - values[1]) / (2 * h) == pytest.approx(slope, rel=1e-5, abs=1e-6)


def assert_batch(regularizer: Regularizer, x: Tensor) -> None:
    """Images of a batch do not see each other, and ``select`` keeps those that it names, again and again."""
    v = normal(*x.shape, seed=104)
    value, grad = regularizer.value_and_grad(x)
    hessian = regularizer.hessian(x)
    product = hessian(v)
    for i in range(len(x)):
        one = slice(i, i + 1)
        alone, alone_grad = regularizer.value_and_grad(x[one])
        torch.testing.assert_close(alone, value[one], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(alone_grad, grad[one], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(regularizer.hessian(x[one])(v[one]), product[one], rtol=1e-12, atol=1e-12)
    index = torch.tensor([len(x) - 1, 0])
    part = hessian.select(index)
    torch.testing.assert_close(part(v[index]), product[index], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(part.select(torch.tensor([1]))(v[:1]), product[:1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(hessian(v), product, rtol=0, atol=0)


def assert_hessian_bounds(regularizer: Regularizer, x: Tensor) -> tuple[float, float]:
    """Symmetric, and between convexity() and smoothness(); returns the extreme eigenvalues that were seen."""
    dense = regularizer_hessians(regularizer, x)
    scale = float(dense.abs().max()) + 1e-300
    assert torch.isfinite(dense).all()
    assert float((dense - dense.mT).abs().max()) <= 1e-12 * scale
    eigenvalues = torch.linalg.eigvalsh((dense + dense.mT) / 2)
    low, high = float(eigenvalues.min()), float(eigenvalues.max())
    top = regularizer.smoothness()
    assert low >= regularizer.convexity() - 1e-12 * max(top, 1.0), (low, regularizer.convexity())
    assert high <= top * (1 + 1e-12), (high, top)
    return low, high


def variation_terms(regularizer: Regularizer, x: Tensor, w: Tensor, e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""<(B_bar - R''(x)) w, e> and <e, B_bar e>, by quadrature, and \|\|(R''(x) - R''(x - e)) w\|\|."""
    here = regularizer.hessian(x)(w)
    middle, energy = torch.zeros(len(x), dtype=x.dtype), torch.zeros(len(x), dtype=x.dtype)
    for t, weight in zip(NODES, WEIGHTS, strict=True):
        hessian = regularizer.hessian(x - t * e)
        middle += weight * ((hessian(w) - here) * e).flatten(1).sum(1)
        energy += weight * (hessian(e) * e).flatten(1).sum(1)
    change = norms(here - regularizer.hessian(x - e)(w))
    return middle, energy, change


def assert_hessian_variation(
    regularizer: Regularizer, x: Tensor, w: Tensor, e: Tensor, rtol: float = 1e-6
) -> tuple[float, float]:
    """Both inequalities of HessianVariation; returns how much of the two bounds was used."""
    variation = regularizer.hessian_variation(w)
    assert variation is not None
    middle, energy, change = variation_terms(regularizer, x, w, e)
    size = norms(e)
    lipschitz = variation.lipschitz * size
    assert bool((change <= lipschitz * (1 + 1e-10) + 1e-13).all()), (change / lipschitz).tolist()
    used = 0.0
    if bool(torch.isfinite(variation.relative).all()):
        bound = variation.relative * (energy + variation.concavity * size.square())
        assert bool((middle.abs() <= bound * (1 + rtol) + 1e-13).all()), (middle.abs() / bound).tolist()
        used = float((middle.abs() / bound.clamp_min(1e-300)).max())
    return used, float((change / lipschitz.clamp_min(1e-300)).max())


def jacobian(regularizer: Regularizer, x: Tensor) -> Tensor:
    """J = d/dtheta grad R(x) for one image, dense: ``(pixels, parameters)``."""
    n = x.numel()
    rows = [
        torch.cat([g.flatten() for g in regularizer.parameter_vjp(x, e.view_as(x))])
        for e in torch.eye(n, dtype=x.dtype).split(1)
    ]
    return torch.stack(rows)


def assert_jacobian_bounds(regularizer: Regularizer, x: Tensor, w: Tensor, radius: float, samples: int = 3) -> float:
    """The norm and the variation of the dense J within the ball; returns how much of the norm's bound was used."""
    used = 0.0
    bounds = regularizer.jacobian_bounds(x, w, torch.full((len(x),), radius, dtype=torch.float64))
    assert bounds.certified
    for i in range(len(x)):
        here = jacobian(regularizer, x[i : i + 1])
        assert float(torch.linalg.matrix_norm(here, 2)) <= float(bounds.norm[i])
        for k in range(samples):
            # along the steepest way out of the point, and at random
            move = (here @ normal(here.shape[1], seed=k)).view_as(x[:1]) if k % 2 else normal(*x[:1].shape, seed=k)
            distance = radius * (1e-3 if k == 2 else 1.0)
            there = jacobian(regularizer, x[i : i + 1] + distance * move / move.norm())
            norm = float(torch.linalg.matrix_norm(there, 2))
            assert norm <= float(bounds.norm[i]) * (1 + 1e-12)
            used = max(used, norm / float(bounds.norm[i]))
            change = float(((there - here).T @ w[i].flatten()).norm())
            assert change <= float(bounds.variation[i]) * distance * (1 + 1e-9) + 1e-13
    return used
