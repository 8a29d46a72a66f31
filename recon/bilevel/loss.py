"""Upper-level losses g(x, x*) of one image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from recon.errors import at_least, positive


class UpperLoss(nn.Module):
    """g(., x*) = outer(q(., x*)): q convex, differentiable, with gradient Lipschitz constant ``smoothness``.

    ``quadratic`` says that q'' is constant, between 0 and ``smoothness``: the goal-oriented certificate relies on it.
    ``outer`` is increasing, and concave or linear; it maps a certified interval of q to one of g.
    """

    smoothness: float = 1.0
    quadratic: bool = False

    def value(self, x: Tensor, target: Tensor) -> Tensor:
        """q per image, float64, ``(batch,)``."""
        raise NotImplementedError

    def grad(self, x: Tensor, target: Tensor) -> Tensor:
        """The gradient of q in x."""
        raise NotImplementedError

    def outer(self, value: Tensor, target: Tensor) -> Tensor:
        """g from the values of q, ``(batch,)``; g = q by default."""
        return value

    def outer_slope(self, value: Tensor, target: Tensor) -> Tensor:
        """The derivative of ``outer``; not increasing in ``value``."""
        return torch.ones_like(value)


class SquaredError(UpperLoss):
    """g(x, x*) = 1/2 ||x - x*||^2, over the pixels that are at least ``margin`` away from the boundary of the image.

    With a margin, patches teach how to restore what lies within larger images, not the boundary that cutting made.
    """

    quadratic = True

    def __init__(self, margin: int = 0) -> None:
        super().__init__()
        at_least(0, margin=margin)
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


class NegativePSNR(SquaredError):
    r"""g(x, x*) = -PSNR(x, x*) = 10 log10(\|\|x - x*\|\|^2 / (n data_range^2)) in dB, over n pixels as in SquaredError.

    What is minimized is minus the mean PSNR of the images. The squared error counts images with much texture, which
    have large errors, up to ten times as much as smooth ones; this loss counts all alike.

    g is no longer quadratic, but an increasing function of q = 1/2\|\|x - x*\|\|^2, which is: certified intervals of q,
    of second order in the lower-level error, become such intervals of g.
    """

    def __init__(self, margin: int = 0, data_range: float = 1.0) -> None:
        super().__init__(margin)
        positive(data_range=data_range)
        self.data_range = data_range

    def outer(self, value: Tensor, target: Tensor) -> Tensor:
        pixels = self._inner(target)[0].numel()
        # q >= 0, and so is its true interval; the bound keeps what is left of an interval below zero finite
        return 10 * torch.log10(2 * value.clamp_min(1e-100) / (pixels * self.data_range**2))

    def outer_slope(self, value: Tensor, target: Tensor) -> Tensor:
        return 10 / math.log(10) / value.clamp_min(1e-100)


def check_finite(name: str, x: Tensor) -> None:
    """Raise ``ValueError`` if ``x`` holds NaN or infinite values."""
    bad = ~torch.isfinite(x).flatten(1).all(1)
    if bad.any():
        raise ValueError(f"{name}: image {int(torch.nonzero(bad)[0])} holds values that are NaN or infinite")
