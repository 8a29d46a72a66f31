"""What every forward operator has to satisfy, as functions for the tests of the single operators."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recon.operators import LinearOperator, check_adjoint
from recon.operators.checks import random_tensor


def random_image(operator: LinearOperator, batch: int = 2, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return normal entries in the domain of the operator."""
    assert operator.domain_shape is not None
    generator = torch.Generator().manual_seed(seed)
    return random_tensor((batch, *operator.domain_shape), operator.complex_domain, generator=generator, dtype=dtype)


def random_data(operator: LinearOperator, batch: int = 2, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return normal entries in the range of the operator."""
    assert operator.range_shape is not None
    generator = torch.Generator().manual_seed(seed)
    return random_tensor((batch, *operator.range_shape), operator.complex_range, generator=generator, dtype=dtype)


def singular_values(operator: LinearOperator) -> Tensor:
    """Return all singular values of the dense matrix, zeros of the kernel included, in descending order."""
    assert operator.domain_shape is not None
    n = math.prod(operator.domain_shape)
    basis = torch.eye(n, dtype=torch.complex128 if operator.complex_domain else torch.float64)
    if operator.complex_domain:
        basis = torch.cat([basis, 1j * basis])
    images = operator(basis.reshape(-1, *operator.domain_shape))
    matrix = (torch.view_as_real(images) if images.is_complex() else images).reshape(len(basis), -1)
    values = torch.linalg.svdvals(matrix)
    return torch.cat([values, values.new_zeros(len(basis) - len(values))])


def assert_adjoint(operator: LinearOperator, rtol: float = 1e-10) -> None:
    assert check_adjoint(operator, batch=2, trials=3, seed=3) <= rtol


def assert_linear(operator: LinearOperator, rtol: float = 1e-12) -> None:
    x, z = random_image(operator, seed=4), random_image(operator, seed=5)
    expected = 2.5 * operator(x) - 0.75 * operator(z)
    torch.testing.assert_close(operator(2.5 * x - 0.75 * z), expected, rtol=rtol, atol=rtol * (1 + operator.norm_bound))


def assert_twice_differentiable(operator: LinearOperator) -> None:
    """First and second derivatives of ½||Ax - y||² against finite differences, and the Hessian against A^T A."""
    y = random_data(operator)
    x = random_image(operator).requires_grad_()

    def loss(u: Tensor) -> Tensor:
        return 0.5 * (operator(u) - y).abs().square().sum()

    assert torch.autograd.gradcheck(loss, (x,))
    assert torch.autograd.gradgradcheck(loss, (x,))
    (gradient,) = torch.autograd.grad(loss(x), x, create_graph=True)
    torch.testing.assert_close(gradient, operator.adjoint(operator(x) - y))
    v = random_image(operator, seed=6)
    (hvp,) = torch.autograd.grad(gradient, x, grad_outputs=v)
    torch.testing.assert_close(hvp, operator.adjoint(operator(v)))


def assert_bounds(operator: LinearOperator, tightness: float = 1e-9) -> None:
    """The bounds hold for random vectors and the dense matrix; the norm's is above it by at most ``tightness``."""
    x = random_image(operator, batch=8, seed=7)
    gains = operator(x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
    assert bool((gains <= operator.norm_bound * (1 + 1e-12)).all())
    assert bool((gains >= operator.lower_bound * (1 - 1e-12)).all())
    values = singular_values(operator)
    largest, smallest = float(values[0]), float(values[-1])
    assert largest <= operator.norm_bound * (1 + 1e-12)
    assert operator.norm_bound <= largest * (1 + tightness) + 1e-12
    assert operator.lower_bound <= smallest + 1e-12 * largest


def assert_precision_and_batches(operator: LinearOperator) -> None:
    """float32 in, float32 out, with the same values; images of a batch do not see each other."""
    x, y = random_image(operator, batch=3), random_data(operator, batch=3)
    single = torch.complex64 if operator.complex_domain else torch.float32
    single_data = torch.complex64 if operator.complex_range else torch.float32
    ax, aty = operator(x.to(single)), operator.adjoint(y.to(single_data))
    assert ax.dtype == single_data
    assert aty.dtype == single
    scale = 1 + operator.norm_bound
    torch.testing.assert_close(ax.to(operator(x).dtype), operator(x), rtol=1e-4, atol=1e-5 * scale)
    torch.testing.assert_close(aty.to(x.dtype), operator.adjoint(y), rtol=1e-4, atol=1e-5 * scale)
    one_by_one = torch.cat([operator(image) for image in x.split(1)])
    torch.testing.assert_close(one_by_one, operator(x), rtol=1e-12, atol=1e-12 * scale)
    one_by_one = torch.cat([operator.adjoint(data) for data in y.split(1)])
    torch.testing.assert_close(one_by_one, operator.adjoint(y), rtol=1e-12, atol=1e-12 * scale)
    assert operator(x[:0]).shape == (0, *operator.range_shape)  # type: ignore[misc]


def assert_operator(operator: LinearOperator, tightness: float = 1e-9) -> None:
    """All of the above. For small operators: it builds the dense matrix and differentiates numerically."""
    assert_adjoint(operator)
    assert_linear(operator)
    assert_twice_differentiable(operator)
    assert_bounds(operator, tightness)
    assert_precision_and_batches(operator)
