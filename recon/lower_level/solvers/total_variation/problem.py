"""Denoising by total variation: the problem, and solutions with what certifies them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from recon.lower_level.solution import UNSAID, Solution
from recon.lower_level.solvers.total_variation.iteration import Image


@dataclass(frozen=True)
class TotalVariationProblem:
    r"""min_x 1/2 \|\|x - y\|\|_W^2 + alpha TV(x) over low <= x <= high, for every image of a batch.

    TV(x) = sum_i \|(Dx)_i\| with the forward differences of :class:`recon.operators.FiniteDifferences` (Neumann),
    channel by channel, and W = diag(w), w >= 0.

    Parameters
    ----------
    y : Tensor
        ``(batch, channel, height, width)``, float32 or float64.
    alpha : float or Tensor
        A number, or one per image; not negative.
    weights : Tensor, optional
        w, of the shape of y, or broadcast to it; 1 by default. Zero where nothing was measured: y does not count there.
    isotropic : bool
        \|(Dx)_i\| is Euclidean, else the sum of absolute values.
    low, high : float
        The bounds of x, rounded to the type of y.

    Raises
    ------
    ValueError
        Something is not finite or of the wrong sign or shape, or an image has no positive weight.
    """

    y: Tensor
    alpha: float | Tensor
    weights: Tensor | None = None
    isotropic: bool = True
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        y = self.y
        if y.ndim != 4 or y.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"y has the shape {tuple(y.shape)} and the type {y.dtype}, but must be (batch, channel, height, width) "
                "in float32 or float64"
            )
        alpha = torch.as_tensor(self.alpha, dtype=torch.float64)
        if alpha.ndim > 1 or alpha.numel() not in (1, len(y)):
            raise ValueError(f"alpha has the shape {tuple(alpha.shape)}, but must be a number, or one per image")
        if not bool((torch.isfinite(alpha) & (alpha >= 0)).all()):
            raise ValueError(f"alpha is {float(alpha.min()):g}, but must be finite and not negative")
        if not self.low <= self.high or self.low == math.inf or self.high == -math.inf:
            raise ValueError(f"low is {self.low} and high {self.high}, but low must not exceed high")
        self._check_weights()
        measured = y if self.weights is None else torch.where(self.weights > 0, y, 0.0)
        if not bool(torch.isfinite(measured).all()):
            raise ValueError(f"y holds {int((~torch.isfinite(measured)).sum())} values that are NaN or infinite")

    def _check_weights(self) -> None:
        if self.weights is None:
            return
        try:
            whole = self.weights.expand(self.y.shape)
        except RuntimeError as error:
            shapes = f"{tuple(self.weights.shape)}, but must broadcast to that of y, {tuple(self.y.shape)}"
            raise ValueError(f"weights have the shape {shapes}") from error
        if not bool((torch.isfinite(whole) & (whole >= 0)).all()):
            low = float(whole.nan_to_num(-math.inf).min())
            raise ValueError(f"weights are {low:g} or NaN somewhere, but must be finite and not negative")
        if not bool((whole > 0).flatten(1).any(1).all()):
            raise ValueError("weights of an image are all zero, but one must be positive: nothing determines it")

    @cached_property
    def modulus(self) -> Tensor:
        """Of strong convexity, the smallest weight of every image, ``(batch,)`` in float64; 0 where a weight is."""
        if self.weights is None:
            return torch.ones(len(self.y), dtype=torch.float64)
        return self.weights.expand(self.y.shape).double().flatten(1).amin(1).cpu()

    def image(self, index: int) -> tuple[Image, float]:
        """The problem of one image, with weights of at most 1, and what it has been divided by."""
        y = self.y[index].detach().contiguous()
        alpha = float(torch.as_tensor(self.alpha, dtype=torch.float64).expand(len(self.y))[index])
        low, high = (float(torch.tensor(bound, dtype=y.dtype)) for bound in (self.low, self.high))
        weights, scale = None, 1.0
        if self.weights is not None:
            weights = self.weights.detach().expand(self.y.shape)[index].to(y)
            scale = float(weights.max())
            if bool((weights == scale).all()):
                weights = None
            else:  # by a power of two, which changes no digit
                scale = 2.0 ** math.ceil(math.log2(scale))
                weights = (weights / scale).contiguous()
        if weights is not None and not bool((weights > 0).all()):
            measured = y[weights > 0]
            y = torch.where(weights > 0, y, float(measured.mean()))
            # clipping x to the range of the data makes neither term larger: a minimizer is in it
            low, high = (min(max(float(v), low), high) for v in (measured.min(), measured.max()))
        return Image(y, weights, alpha / scale, low, high, self.isotropic), scale


@dataclass(frozen=True, kw_only=True)
class TotalVariationSolution(Solution):
    r"""Minimizers with what certifies them; see :class:`recon.lower_level.Solution` for the rest.

    ``gradient`` is W (x - y) + alpha D^T p, which is zero at a minimizer that no bound holds.

    dual: p, ``(batch, 2, channel, height, width)``.
    error_weighted: certified \|\|x - x^\|\|_W per image, for every minimizer x^ (where weights are zero there may be
    several): on the measured pixels if weights are 0 and 1. ``error`` is this over the root of the smallest weight,
    infinite where that is zero.
    gap: certified F(x) - min F per image, rounding errors included.
    """

    dual: Tensor = field(default=UNSAID)
    error_weighted: Tensor = field(default=UNSAID)
    gap: Tensor = field(default=UNSAID)
