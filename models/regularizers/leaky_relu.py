"""Leaky rectifiers, smoothed: what makes networks of convex functions convex."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from recon.errors import one_of

#: sup of the third derivative of sqrt(t^2 + 1)
_THIRD = 1.5 / 1.25**2.5


@dataclass(frozen=True)
class LeakyReLU:
    """sigma(t) = s t + (1 - s) rho(t), convex and not decreasing.

    ``huber``: rho(t) = t^2/(2 w) for 0 <= t <= w, 0 below and t - w/2 above; max(0, t) for w = 0. Of class C^1.
    ``smooth``: rho(t) = (t + sqrt(t^2 + w^2) - w)/2. Infinitely smooth.

    Parameters
    ----------
    slope
        s in [0, 1): others are not convex, or linear.
    width
        w >= 0, positive for ``smooth``.
    kind
        ``huber`` or ``smooth``.

    Raises
    ------
    ValueError
        for other values.
    """

    slope: float = 0.2
    width: float = 0.02
    kind: str = "huber"

    def __post_init__(self) -> None:
        if not 0 <= self.slope < 1:
            raise ValueError(f"slope is {self.slope}, but must lie in [0, 1): others are not convex, or linear")
        if not 0 <= self.width < math.inf or (self.kind == "smooth" and self.width == 0):
            raise ValueError(f"width is {self.width}, but must be finite and not negative, and positive for 'smooth'")
        one_of(("huber", "smooth"), activation=self.kind)

    def value(self, t: Tensor) -> Tensor:
        """sigma(t)."""
        s, w = self.slope, self.width
        if w == 0:
            return F.leaky_relu(t, s)
        if self.kind == "smooth":
            rho = 0.5 * (t + (t.square() + w**2).sqrt() - w)
        else:
            inner = t.clamp(0, w)
            rho = inner.square() / (2 * w) + (t - w).clamp_min(0)
        return s * t + (1 - s) * rho

    def derivative(self, t: Tensor) -> Tensor:
        """sigma'(t); at a kink the smaller one."""
        s, w = self.slope, self.width
        if w == 0:
            return (t > 0).to(t).mul_(1 - s).add_(s)
        if self.kind == "smooth":
            rho = 0.5 * (1 + t * (t.square() + w**2).rsqrt())
        else:
            rho = (t / w).clamp(0, 1)
        return s + (1 - s) * rho

    def curvature(self, t: Tensor) -> Tensor:
        """sigma''(t) where it exists; zero at kinks."""
        s, w = self.slope, self.width
        if self.kind == "smooth":
            return 0.5 * (1 - s) * w**2 * (t.square() + w**2) ** -1.5
        if w == 0:
            return torch.zeros_like(t)
        return ((t > 0) & (t < w)).to(t) * ((1 - s) / w)

    def curvature_beyond(self, t: Tensor) -> Tensor:
        """sup sigma''(r) over abs(r) >= t, for widths that are positive."""
        if self.kind == "smooth":
            return self.curvature(t.clamp_min(0))
        return (t < self.width).to(t) * self.curvature_bound

    @property
    def curvature_bound(self) -> float:
        """sup sigma''."""
        if self.width == 0:
            return math.inf
        return (1 - self.slope) / self.width * (0.5 if self.kind == "smooth" else 1.0)

    @property
    def third_bound(self) -> float:
        """sup |sigma'''|; infinite for ``huber``."""
        return 0.5 * (1 - self.slope) * _THIRD / self.width**2 if self.kind == "smooth" else math.inf
