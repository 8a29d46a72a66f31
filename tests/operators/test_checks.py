"""Bounds that are given by hand are tried, and refused with the vector that refutes them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recon.operators import BoundError, CartesianMRI, Identity, LinearOperator, adjoint_mismatch, check_bounds
from tests.lower_level.problems import normal

#: smallest and largest singular value of the matrices below
SMALLEST, LARGEST = 0.05, 2.0


class Known(LinearOperator):
    """A matrix with singular values between ``SMALLEST`` and ``LARGEST``; what is claimed of it may be wrong."""

    def __init__(self, norm_bound: float = LARGEST, lower_bound: float = 0.0, skew: float = 0.0) -> None:
        super().__init__((1, 5, 8), (1, 1, 45), norm_bound, lower_bound)
        left, right = (torch.linalg.qr(normal(n, 40, seed=n)).Q for n in (45, 40))
        values = torch.linspace(SMALLEST, LARGEST, 40, dtype=torch.float64)
        self.matrix, self.skew = left * values @ right.T, skew * normal(45, 40, seed=2)

    def _forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.matrix.to(x).T).view(-1, 1, 1, 45)

    def _adjoint(self, y: Tensor) -> Tensor:
        return (y.flatten(1) @ (self.matrix + self.skew).to(y)).view(-1, 1, 5, 8)


def test_bounds_that_hold_pass() -> None:
    check_bounds(Known(LARGEST, SMALLEST))
    check_bounds(Known(1.5 * LARGEST, 0.5 * SMALLEST))
    check_bounds(Known(), norm_bound=LARGEST)


@pytest.mark.parametrize("claim", [0.5, 0.9, 0.999])
def test_a_norm_that_is_too_small_is_refuted_by_a_vector(claim: float) -> None:
    operator = Known(claim * LARGEST)
    with pytest.raises(BoundError, match=r"norm_bound=.* is too small for Known: .*\|\|Ax\|\| = ") as found:
        check_bounds(operator)
    x = found.value.vector
    assert float(operator(x).norm() / x.norm()) > claim * LARGEST


@pytest.mark.parametrize("claim", [20.0, 2.0, 1.1])
def test_a_lower_bound_that_is_too_large_is_refuted_by_a_vector(claim: float) -> None:
    operator = Known(LARGEST, claim * SMALLEST)
    with pytest.raises(BoundError, match=r"lower_bound=.* is too large for Known") as found:
        check_bounds(operator)
    x = found.value.vector
    assert float(operator(x).norm() / x.norm()) < claim * SMALLEST


def test_a_lower_bound_of_an_operator_with_a_kernel() -> None:
    mask = torch.ones(6, 8, dtype=torch.bool)
    mask[2] = False
    operator = CartesianMRI(mask)
    with pytest.raises(BoundError, match=r"lower_bound=0\.1 is too large for the scanner") as found:
        check_bounds(operator, lower_bound=0.1, name="the scanner")
    assert float(operator(found.value.vector).norm()) < 1e-6 * float(found.value.vector.norm())


def test_operators_without_shape_cannot_be_checked() -> None:
    with pytest.raises(ValueError, match="shape"):
        check_bounds(Identity())


@pytest.mark.parametrize("skew", [1e-2, 1e-5])
def test_the_mismatch_of_an_adjoint_is_estimated(skew: float) -> None:
    operator = Known(skew=skew)
    y = operator(normal(20, 1, 5, 8))
    back = operator.adjoint(y) - (y.flatten(1) @ operator.matrix).view(-1, 1, 5, 8)
    typical = float((back.flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1) / LARGEST).mean())
    assert 0.3 * typical < adjoint_mismatch(operator) < 3 * typical


def test_an_exact_adjoint_has_no_mismatch() -> None:
    assert adjoint_mismatch(Known()) == 0.0
    with pytest.raises(ValueError, match="cannot be measured"):
        adjoint_mismatch(Identity())
