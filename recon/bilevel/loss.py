"""Upper-level losses g(x, x*) of one image."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class UpperLoss(nn.Module):
    """g(., x*): differentiable, with gradient Lipschitz constant ``smoothness``.

    ``quadratic`` says that g'' is ``smoothness`` times the identity, which the goal-oriented certificate relies on.
    """

    smoothness: float = 1.0
    quadratic: bool = False

    def value(self, x: Tensor, target: Tensor) -> Tensor:
        """g per image, float64, ``(batch,)``."""
        raise NotImplementedError

    def grad(self, x: Tensor, target: Tensor) -> Tensor:
        """The gradient in x."""
        raise NotImplementedError


class SquaredError(UpperLoss):
    """g(x, x*) = 1/2 ||x - x*||^2."""

    quadratic = True

    def value(self, x: Tensor, target: Tensor) -> Tensor:
        return 0.5 * (x.double() - target.double()).flatten(1).square().sum(1)

    def grad(self, x: Tensor, target: Tensor) -> Tensor:
        return x - target


def check_finite(name: str, x: Tensor) -> None:
    """Raise ``ValueError`` if ``x`` holds NaN or infinite values."""
    bad = ~torch.isfinite(x).flatten(1).all(1)
    if bad.any():
        raise ValueError(f"{name}: image {int(torch.nonzero(bad)[0])} holds values that are NaN or infinite")
