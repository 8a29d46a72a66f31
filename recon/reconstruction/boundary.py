"""Denoising of images that go on behind their boundary: mirrored data, cropped results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from recon.lower_level.solution import Solution


def mirrored(y: Tensor, margin: int) -> Tensor:
    """y ``(batch, channel, height, width)``, continued on all sides by its mirror image, ``margin`` pixels wide.

    A regularizer whose filters must lie within the image acts less on pixels near the boundary
    (:attr:`recon.lower_level.Regularizer.margin`); of mirrored data, these lie outside the image. The margin is
    narrower where the image is too small to be mirrored as far.
    """
    if not margin:
        return y  # of any shape
    rows, cols = (min(margin, n - 1) for n in y.shape[2:])
    return F.pad(y, (cols, cols, rows, rows), mode="reflect")


def middle(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The middle of images ``(..., height, width)``, of height and width ``shape``."""
    top, left = ((n - m) // 2 for n, m in zip(x.shape[-2:], shape, strict=True))
    return x[..., top : top + shape[0], left : left + shape[1]]


def cropped(solution: Solution, shape: tuple[int, int]) -> Solution:
    """The middle of a solution for mirrored data, of height and width ``shape``.

    The certified error bounds the distance to the minimizer of the mirrored problem on all of its pixels, hence on
    these.
    """
    return replace(solution, x=middle(solution.x, shape), gradient=middle(solution.gradient, shape))
