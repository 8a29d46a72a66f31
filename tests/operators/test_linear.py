"""The interface, the identity, the adjoint test and the Lanczos bound."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from recon.operators import FiniteDifferences, Identity, LinearOperator, apply_linear, check_adjoint, lanczos_norm_bound
from tests.operators.checks import assert_operator


class Matrix(LinearOperator):
    """y = M x, transposed with another matrix: wrong unless that is M."""

    def __init__(self, matrix: Tensor, transposed_with: Tensor | None = None) -> None:
        norm = float(torch.linalg.matrix_norm(matrix, 2))
        super().__init__((matrix.shape[1],), (matrix.shape[0],), norm * (1 + 1e-14))
        self.complex_domain = self.complex_range = matrix.is_complex()
        self.matrix = matrix
        self.transposed_with = matrix if transposed_with is None else transposed_with

    def _forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.to(x.dtype).T

    def _adjoint(self, y: Tensor) -> Tensor:
        return y @ self.transposed_with.to(y.dtype).conj()


class Opaque(Matrix):
    """The same through NumPy, which autograd does not see."""

    def _forward(self, x: Tensor) -> Tensor:
        return apply_linear(x, self._matvec, self._rmatvec)

    def _adjoint(self, y: Tensor) -> Tensor:
        return apply_linear(y, self._rmatvec, self._matvec)

    def _matvec(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy() @ self.matrix.to(x.dtype).numpy().T)

    def _rmatvec(self, y: Tensor) -> Tensor:
        return torch.from_numpy(y.detach().numpy() @ self.matrix.to(y.dtype).conj().resolve_conj().numpy())


@pytest.fixture
def matrix() -> Tensor:
    return torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_identity() -> None:
    assert_operator(Identity((1, 3, 4)))
    anything = Identity()
    x = torch.randn(2, 3, 5)
    assert torch.equal(anything(x), x)
    assert torch.equal(anything.adjoint(x), x)
    assert anything.norm_bound == anything.lower_bound == 1.0
    assert check_adjoint(anything, domain_shape=(4,)) == 0.0


def test_operators_from_torch_and_foreign_code(matrix: Tensor) -> None:
    assert_operator(Matrix(matrix))
    assert_operator(Opaque(matrix))
    assert_operator(Opaque(torch.complex(matrix, matrix.flip(0))))


def test_apply_linear_has_third_derivatives_and_forward_mode(matrix: Tensor) -> None:
    operator = Opaque(matrix)
    x = torch.randn(2, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(operator, (x,), check_forward_ad=True)

    def quartic(u: Tensor) -> Tensor:
        return operator(u).pow(4).sum()

    def exact(u: Tensor) -> Tensor:
        return (u @ matrix.T).pow(4).sum()

    def third(f, v: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        for _ in range(3):
            (g,) = torch.autograd.grad(f(v), v, create_graph=True)
            f, v = (lambda u, g=g: (g * u.detach()).sum()), v
        return g

    torch.testing.assert_close(third(quartic, x), third(exact, x))


def test_check_adjoint_finds_a_wrong_transpose(matrix: Tensor) -> None:
    assert check_adjoint(Matrix(matrix)) < 1e-14
    assert check_adjoint(Matrix(matrix, transposed_with=2 * matrix)) > 0.5
    assert 1e-8 < check_adjoint(Matrix(matrix, transposed_with=matrix * (1 + 1e-6))) < 1e-5
    assert check_adjoint(Matrix(0 * matrix)) == 0.0
    assert check_adjoint(Matrix(0 * matrix, transposed_with=matrix)) > 0.01
    assert check_adjoint(Matrix(matrix, transposed_with=matrix * math.nan)) == math.inf
    assert check_adjoint(Matrix(matrix), seed=5) == check_adjoint(Matrix(matrix), seed=5)
    with pytest.raises(ValueError, match="needs domain_shape"):
        check_adjoint(Identity())


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 3, 4), r"shape \(1, 3, 4\) .* expected \(batch, 1, 3, 4\)"),
        (torch.zeros(2, 1, 4, 3), r"shape \(2, 1, 4, 3\) .* expected \(batch, 1, 3, 4\)"),
        (torch.zeros(2, 1, 3, 4, dtype=torch.int64), r"dtype torch.int64 .* expected a real floating"),
        (torch.zeros(2, 1, 3, 4, dtype=torch.complex64), r"dtype torch.complex64"),
        ([1.0], "expected a torch tensor"),
    ],
)
def test_wrong_input(x: object, message: str) -> None:
    for operator in (Identity((1, 3, 4)), FiniteDifferences((1, 3, 4))):
        with pytest.raises(ValueError, match=message):
            operator(x)
    with pytest.raises(ValueError, match=message):
        Identity((1, 3, 4)).adjoint(x)  # type: ignore[arg-type]


def test_wrong_definition() -> None:
    with pytest.raises(ValueError, match="lower_bound"):
        LinearOperator((2,), (2,), norm_bound=1.0, lower_bound=2.0)
    with pytest.raises(ValueError, match="norm_bound"):
        LinearOperator((2,), (2,), norm_bound=math.inf)
    with pytest.raises(ValueError, match="positive entries"):
        Identity((0, 3))
    incomplete = LinearOperator((2,), (2,), norm_bound=1.0)
    with pytest.raises(NotImplementedError, match="_forward"):
        incomplete(torch.zeros(1, 2))


def test_lanczos_bound_is_above_the_norm_and_close(matrix: Tensor) -> None:
    for operator in (Matrix(matrix), Matrix(torch.complex(matrix, matrix.flip(0))), FiniteDifferences((1, 24, 31))):
        bound = lanczos_norm_bound(operator)
        assert operator.norm_bound * (1 - 1e-12) <= bound <= 1.08 * operator.norm_bound
    assert lanczos_norm_bound(Matrix(0 * matrix)) == 0.0
    with pytest.raises(ValueError, match="too few"):
        lanczos_norm_bound(Matrix(matrix), steps=3)
    with pytest.raises(ValueError, match="no fixed domain_shape"):
        lanczos_norm_bound(Identity())
