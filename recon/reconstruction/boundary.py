"""Denoising of images that go on behind their boundary: mirrored data, cropped results."""

from __future__ import annotations

import dataclasses

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


def cropped(solution: Solution, shape: tuple[int, int]) -> Solution:
    """The middle of a solution for mirrored data, of height and width ``shape``.

    The certified error bounds the distance to the minimizer of the mirrored problem on all of its pixels, hence on
    these.
    """
    rows, cols = ((n - m) // 2 for n, m in zip(solution.x.shape[2:], shape, strict=True))
    window = (..., slice(rows, rows + shape[0]), slice(cols, cols + shape[1]))
    return dataclasses.replace(solution, x=solution.x[window], gradient=solution.gradient[window])
