"""Images and Hessians of regularizers that act on every channel alone, for the compiled library."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from models.regularizers.kernels.bank import Weights
from recon.lower_level import HessianMap


class Linearized(Protocol):
    """Computes a Hessian once, and products with it."""

    def curvature(self, x: Tensor) -> Weights:
        """What products with the Hessian at x, ``(images, height, width)``, need of it."""
        ...

    def product(self, v: Tensor, weights: Weights, order: Tensor | None) -> Tensor:
        """That with v, where v[i] belongs to the image order[i] of ``weights``."""
        ...


def flat_images(x: Tensor) -> Tensor:
    """Images of one channel, in the order of memory that the compiled kernels expect."""
    return x.detach().reshape(-1, *x.shape[2:]).contiguous()


def planes(kept: Tensor, channels: int) -> Tensor:
    """The numbers of all channels of the images ``kept``."""
    return (kept[:, None] * channels + torch.arange(channels, device=kept.device)).flatten()


def compiled_hessian(kernel: Linearized, x: Tensor) -> HessianMap:
    """v -> R''(x) v for images ``(batch, channel, height, width)``."""
    weights, channels = kernel.curvature(flat_images(x)), x.shape[1]

    def apply(v: Tensor, kept: Tensor | None) -> Tensor:
        order = None if kept is None else planes(kept, channels)
        return kernel.product(flat_images(v), weights, order).view(v.shape)

    return HessianMap(apply)
