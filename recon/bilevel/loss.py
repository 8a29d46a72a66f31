"""Upper-level losses g(x, x*) of one image."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class UpperLoss(nn.Module):
    """g(., x*): differentiable, with gradient Lipschitz constant ``smoothness``.

    ``quadratic`` says that g'' is constant, between 0 and ``smoothness``: the goal-oriented certificate relies on it.
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
    """g(x, x*) = 1/2 ||x - x*||^2, over the pixels that are at least ``margin`` away from the boundary of the image.

    With a margin, patches teach how to restore what lies within larger images, not the boundary that cutting made.
    """

    quadratic = True

    def __init__(self, margin: int = 0) -> None:
        super().__init__()
        if margin < 0:
            raise ValueError(f"margin is {margin}, but must not be negative")
        self.margin = margin

    def value(self, x: Tensor, target: Tensor) -> Tensor:
        return 0.5 * (self._inner(x).double() - self._inner(target).double()).flatten(1).square().sum(1)

    def grad(self, x: Tensor, target: Tensor) -> Tensor:
        if not self.margin:
            return x - target
        grad = torch.zeros_like(x)
        self._inner(grad).copy_(self._inner(x) - self._inner(target))
        return grad

    def _inner(self, x: Tensor) -> Tensor:
        m = self.margin
        if 2 * m >= min(x.shape[-2:]):
            raise ValueError(f"a margin of {m} pixels leaves nothing of images of {x.shape[-2]}x{x.shape[-1]} pixels")
        return x[..., m : x.shape[-2] - m, m : x.shape[-1] - m]


def check_finite(name: str, x: Tensor) -> None:
    """Raise ``ValueError`` if ``x`` holds NaN or infinite values."""
    bad = ~torch.isfinite(x).flatten(1).all(1)
    if bad.any():
        raise ValueError(f"{name}: image {int(torch.nonzero(bad)[0])} holds values that are NaN or infinite")
