"""Operators that algebra is tested with: matrices, and what only states its bounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recon.operators import (
    LinearOperator,
    apply_linear,
)


class Dense(LinearOperator):
    """A matrix through foreign code; ``adjoint`` may be another one, and so may what is stated of all this."""

    def __init__(self, matrix: Tensor, other: Tensor | None = None, learned: bool = False) -> None:
        s = torch.linalg.svdvals(matrix)
        lower = float(s[-1]) if matrix.shape[0] >= matrix.shape[1] else 0.0
        super().__init__((matrix.shape[1],), (matrix.shape[0],), float(s[0]), lower)
        self.complex_domain = self.complex_range = matrix.is_complex()
        self.matrix, self.other, self.learned = matrix, matrix if other is None else other, learned
        self.adjoint_mismatch = float(torch.linalg.matrix_norm(self.other - matrix, 2)) / float(s[0])

    def tensors(self) -> list[tuple[Tensor, float]]:
        return [(self.matrix, 1.0)] if self.learned else []

    def absolute_sums(self) -> tuple[Tensor, Tensor]:
        return self.matrix.abs().sum(0), self.matrix.abs().sum(1)

    def _forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T if self.learned else apply_linear(x, self._matvec, self._rmatvec)

    def _adjoint(self, y: Tensor) -> Tensor:
        return y @ self.other.conj() if self.learned else apply_linear(y, self._rmatvec, self._matvec)

    def _matvec(self, x: Tensor) -> Tensor:
        return x.detach() @ self.matrix.to(x.dtype).T

    def _rmatvec(self, y: Tensor) -> Tensor:
        return y.detach() @ self.other.conj().to(y.dtype)


class Unknown(LinearOperator):
    """Rows whose bounds are what the test says."""

    def __init__(self, norm: float, lower: float = 0.0, certified: bool = True, n: int = 3, rows: int = 3) -> None:
        super().__init__((n,), (rows,), norm, lower, certified)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one(value: float, adjoint: float | None = None) -> Dense:
    """A number, transposed with another one."""
    return Dense(*(torch.tensor([[v]], dtype=torch.float64) for v in (value, value if adjoint is None else adjoint)))


def matrix_of(operator: LinearOperator) -> Tensor:
    assert operator.domain_shape is not None
    basis = torch.eye(math.prod(operator.domain_shape), dtype=torch.float64)
    return operator(basis.reshape(-1, *operator.domain_shape)).flatten(1).T
