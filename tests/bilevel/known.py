"""A learning problem with a known solution."""

from __future__ import annotations

import torch
from torch import Tensor

from recon.lower_level import HessianMap, HessianVariation, JacobianBounds
from tests.lower_level.problems import Quadratic


class KnownQuadratic(Quadratic):
    """With analytic derivatives, and the constants that are exact for a quadratic: the Hessian and J do not move."""

    def __init__(self) -> None:
        super().__init__()
        self.p = 2 * self.p

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flat, shift = x.flatten(1), self.p @ self.theta.detach()
        hx = flat @ self.h
        return 0.5 * (flat * hx).sum(1) - flat @ shift, (hx - shift).view_as(x)

    def hessian(self, x: Tensor) -> HessianMap:
        return HessianMap(lambda v, kept: (v.flatten(1) @ self.h).view_as(v))

    def parameter_vjp(self, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return (-self.p.T @ w.flatten(1).sum(0),)

    def hessian_variation(self, w: Tensor) -> HessianVariation:
        zero = torch.zeros(len(w), dtype=torch.float64)
        return HessianVariation(zero, zero, zero)

    def jacobian_bounds(self, x: Tensor, w: Tensor, radius: Tensor) -> JacobianBounds:
        one = torch.ones(len(x), dtype=torch.float64)
        return JacobianBounds(torch.linalg.matrix_norm(self.p, 2) * one, 0 * one)
