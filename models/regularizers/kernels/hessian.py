"""Images and Hessians of regularizers, for the compiled library."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from models.regularizers.kernels.bank import Weights
from recon.lower_level import HessianMap


class Linearized(Protocol):
    """Computes a Hessian once, and products with it."""

    def curvature(self, x: Tensor) -> Weights:
        """What products with the Hessian at x, :func:`flat_images`, need of it."""
        ...

    def product(self, v: Tensor, weights: Weights, order: Tensor | None) -> Tensor:
        """That with v, where v[i] belongs to the image order[i] of ``weights``."""
        ...


def flat_images(x: Tensor, channels: int = 1) -> Tensor:
    """Images in the order of memory that the compiled kernels expect.

    ``(images, height, width)`` for regularizers that act on every channel alone, ``(images, channels, height, width)``
    for those that couple so many.
    """
    shape = x.shape[2:] if channels == 1 else (channels, *x.shape[2:])
    return x.detach().reshape(-1, *shape).contiguous()


def planes(kept: Tensor, channels: int) -> Tensor:
    """The numbers of all channels of the images ``kept``."""
    return (kept[:, None] * channels + torch.arange(channels, device=kept.device)).flatten()


def compiled_hessian(kernel: Linearized, x: Tensor, channels: int = 1) -> HessianMap:
    """v -> R''(x) v for images ``(batch, channel, height, width)``; ``channels`` as for :func:`flat_images`."""
    weights, groups = kernel.curvature(flat_images(x, channels)), x.shape[1] // channels

    def apply(v: Tensor, kept: Tensor | None) -> Tensor:
        order = None if kept is None else planes(kept, groups)
        return kernel.product(flat_images(v, channels), weights, order).view(v.shape)

    return HessianMap(apply)
