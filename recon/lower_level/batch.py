"""Arithmetic image by image: the first axis is the batch, everything else belongs to one image."""

from __future__ import annotations

import torch
from torch import Tensor


def per_image_norm(x: Tensor) -> Tensor:
    """Euclidean norm of every image, ``(batch, ...) -> (batch,)``."""
    return x.flatten(1).norm(dim=1)


def per_image_dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product image by image, ``(batch, ...), (batch, ...) -> (batch,)``."""
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1))


def over_image(v: Tensor, x: Tensor) -> Tensor:
    """One number per image, ``(batch,) -> (batch, 1, 1, ...)`` to broadcast against x; in its dtype unless boolean."""
    if v.dtype != torch.bool:
        v = v.to(x.dtype)
    return v.view(-1, *([1] * (x.ndim - 1)))
