"""What the files of other programs become."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from models.foreign.files import ForeignError
from models.regularizers.linear_spline import LinearSplineRidge
from recon.lower_level import Regularizer


@dataclass(frozen=True)
class Foreign:
    """A model of another program for one noise level.

    Parameters
    ----------
    kind : str
        The format, e.g. ``CRR-NN``.
    regularizer : Regularizer
        R with all its weights, float64, of images on [0, 1]: x^ = argmin 1/2 ||x - y||^2 + R(x).
    parameters : str
        The regularization parameters and where they are from, in words.
    layers : tuple of Tensor
        The convolutions that its filters are composed of, in order, ``(out, in, size, size)``.
    """

    kind: str
    regularizer: Regularizer
    parameters: str
    layers: tuple[Tensor, ...]


def ridge(path: Path, kernels: Tensor, slopes: Tensor, first: Tensor, spacing: Tensor) -> LinearSplineRidge:
    """:meth:`LinearSplineRidge.of` what a file holds.

    Raises
    ------
    ForeignError
        the numbers of the file overflow.
    """
    try:
        return LinearSplineRidge.of(kernels, slopes, first, spacing)
    except ValueError as error:
        raise ForeignError(f"{path}: {error}") from error


def zero_mean(weight: Tensor) -> Tensor:
    """Each output channel minus its mean over input channels and pixels."""
    return weight - weight.mean((1, 2, 3), keepdim=True)


def composed(layers: tuple[Tensor, ...]) -> Tensor:
    """The filters ``(K, s, s)`` of convolutions ``(out, in, size, size)`` one after the other, from one channel.

    Correlating with W_1 and then W_2 is correlating with the convolution of both.
    """
    total = layers[-1]
    for layer in reversed(layers[:-1]):
        total = F.conv_transpose2d(total, layer)
    return total[:, 0]


def spline(knots: Tensor, start: float, stop: float, at: float) -> Tensor:
    """Linear splines ``(K, n)`` on equidistant knots of [start, stop], interpolated at one point within: ``(K,)``."""
    position = (at - start) / (stop - start) * (knots.shape[1] - 1)
    index = min(int(position), knots.shape[1] - 2)
    return torch.lerp(knots[:, index], knots[:, index + 1], position - index)
