"""Problems of one pixel whose bounds are attained: minimizers, adjoints and gradients are closed formulas."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recon.lower_level import HessianVariation, JacobianBounds, Regularizer


def pixel(value: float) -> Tensor:
    return torch.full((1, 1, 1, 1), value, dtype=torch.float64)


def number(value: float) -> Tensor:
    return torch.full((1,), value, dtype=torch.float64)


class Line(Regularizer):
    """R(x) = theta (c x - k x^2 / 2) + S(x) at theta = 0, S'' = t min(max(x, 0), 1): J(x) = c - k x and B = 1 + S''.

    R'' is smallest at the left end of where it moves, J largest: where the minimizer is 0 and x to the right of it,
    every inequality between the certificates and the truth is an equality.
    """

    def __init__(self, c: float = 1.0, k: float = 0.0, t: float = 0.0) -> None:
        super().__init__()
        self.c, self.k, self.t = c, k, t
        self.theta = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        u, over = x.clamp(0, 1), (x - 1).clamp_min(0)
        bent = self.t * (u**3 / 6 + over / 2 + over.square() / 2)
        return (self.theta * (self.c * x - 0.5 * self.k * x.square()) + bent).flatten(1).sum(1)

    def convexity(self) -> float:
        return 0.0

    def smoothness(self) -> float:
        return self.t

    def hessian_variation(self, w: Tensor) -> HessianVariation:
        size = w.flatten(1).norm(dim=1)
        return HessianVariation(torch.full_like(size, math.inf), self.t * size, torch.zeros_like(size))

    def jacobian_bounds(self, x: Tensor, w: Tensor, radius: Tensor) -> JacobianBounds:
        """The supremum of |J| over the ball, and the modulus of J: both exact."""
        ends = [(self.c - self.k * (x.flatten(1)[:, 0] + sign * radius)).abs() for sign in (-1, 1)]
        return JacobianBounds(torch.maximum(*ends), self.k * w.flatten(1).norm(dim=1))


class Exponential(Regularizer):
    """R(x) = a e^{m x} / m^2: |R'''| = m R'' everywhere, and it grows, up to what it is at ``top``."""

    def __init__(self, a: float, m: float, top: float = math.inf) -> None:
        super().__init__()
        self.a, self.m, self.top = a, m, top
        self.theta = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (self.a / self.m**2 * (self.m * x).exp() + self.theta * x).flatten(1).sum(1)

    def convexity(self) -> float:
        return 0.0

    def hessian_variation(self, w: Tensor) -> HessianVariation:
        size = w.flatten(1).norm(dim=1)
        largest = self.a * self.m * math.exp(self.m * self.top) if self.top < math.inf else math.inf
        return HessianVariation(self.m * size, largest * size, torch.zeros_like(size))
