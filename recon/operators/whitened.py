"""Operators whose data are weighted, as those with noise of different variances are."""

from __future__ import annotations

import torch
from torch import Tensor

from recon.operators.linear import LinearOperator


class Whitened(LinearOperator):
    """W^(1/2) A: with data W^(1/2) y, 1/2 ||W^(1/2) (Ax - y)||^2 is the fidelity of noise with the covariance W^-1."""

    def __init__(self, operator: LinearOperator, weights: Tensor) -> None:
        """``weights``: W >= 0, of the shape of the data."""
        root = weights.sqrt()
        bound = operator.norm_bound * float(root.max())
        super().__init__(
            operator.domain_shape, operator.range_shape, bound, norm_bound_certified=operator.norm_bound_certified
        )
        self.operator, self.adjoint_exact = operator, operator.adjoint_exact
        self.rounding_factor, self.adjoint_mismatch = operator.rounding_factor, operator.adjoint_mismatch
        self.root: Tensor
        self.register_buffer("root", root)

    def unit_roundoff(self, dtype: torch.dtype) -> float:
        return self.operator.unit_roundoff(dtype)

    def _forward(self, x: Tensor) -> Tensor:
        return self.root * self.operator(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.operator.adjoint(self.root * y)
