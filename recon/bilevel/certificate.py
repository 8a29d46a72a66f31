"""Certified intervals for the loss f = g(x^) of an image from an approximate minimizer x (and adjoint w)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from recon.lower_level import Energy, HessianVariation, per_image_dot, per_image_norm
from recon.lower_level.grade import modelled_part, proved_part
from recon.lower_level.precision import SUMMATION, unit_roundoff


class Interval(NamedTuple):
    """value - below <= f <= value + above, per image, float64.

    rounding: how much of below and of above, at most, a model of rounding errors adds; not more than the larger one.
    """

    value: Tensor
    below: Tensor
    above: Tensor
    rounding: Tensor

    def better(self, other: Interval) -> Interval:
        """Image by image the shorter of two intervals."""
        lengths = (torch.nan_to_num(i.below + i.above, nan=torch.inf, posinf=torch.inf) for i in (self, other))
        mine = torch.less_equal(*lengths)
        return Interval(*(torch.where(mine, a, b) for a, b in zip(self, other, strict=True)))

    def outwards(self) -> Interval:
        """With 8 u |value| on both sides: rounding errors of the value in double precision, and of the ends."""
        noise = SUMMATION * unit_roundoff(torch.float64) * self.value.abs()
        below, above = self.below + noise, self.above + noise
        return Interval(self.value, below, above, torch.minimum(self.rounding + noise, torch.maximum(below, above)))


def first_order(
    loss: Tensor, slope: Tensor, error: Tensor, smoothness: float, error_rounding: Tensor | None = None
) -> Interval:
    r"""\|f - g(x)\| <= \|\|grad g(x)\|\| eps + (L_g/2) eps^2; below without the last term, because g is convex.

    ``slope``: the norm of grad g(x); ``error``: eps, of which ``error_rounding`` is modelled (all of it by default).
    """
    rounding = error if error_rounding is None else error_rounding
    below = slope * error
    modelled = slope * rounding + modelled_square(error, rounding, smoothness)
    return Interval(loss, below, below + 0.5 * smoothness * error.square(), modelled)


def modelled_square(error: Tensor, rounding: Tensor, smoothness: float) -> Tensor:
    """What the part ``rounding`` of ``error`` adds to (L/2) error^2."""
    return 0.5 * smoothness * rounding * (2 * error - rounding)


def goal_oriented(
    energy: Energy,
    variation: HessianVariation,
    loss: Tensor,
    smoothness: float,
    w: Tensor,
    residual: Tensor,
    adjoint_residual: Tensor,
    error: Tensor,
    x: Tensor,
    error_rounding: Tensor | None = None,
    adjoint_rounding: Tensor | None = None,
) -> Interval:
    r"""The second-order certificate: f~ = g(x) - <w, r> with -l <= f - f~ <= l + (L_g/2) eps^2.

    l = \|\|r_w\|\| eps + middle, where r = grad h(x) = ``residual``, r_w = grad g(x) - B(x) w (its norm is
    ``adjoint_residual``) and ``middle`` bounds <(B_bar - B(x)) w, e>, see :func:`middle_term`. For quadratic g and D.
    The rounding error of r and r_w, to first order, is part of l. ``error_rounding``, ``adjoint_rounding``: the
    modelled parts of eps and of ``adjoint_residual`` (all of them by default).
    """
    computed = per_image_norm(residual)
    rounding = energy.rounding(x, computed)
    norm, size, proved = computed + rounding, per_image_norm(w), proved_part(error, error_rounding)
    # without a constant T: |D^3 R[w, d, e]| <= kappa (sqrt(<d, B d> <e, B e>) + c ||d|| ||e||), B <= L
    by_curvature = variation.relative * (energy.smoothness + variation.concavity)
    lipschitz = torch.where(torch.isfinite(variation.lipschitz), variation.lipschitz, by_curvature)
    adjoint = adjoint_residual + energy.adjoint_rounding(x, w, adjoint_residual, lipschitz)
    # a computed inner product has random rounding errors: they add up to the norm of the error times that of w over
    # the square root of the number of pixels, not to the product of the norms. Those of the weights and filters, which
    # are rounded once for all pixels, are not random: they change every part of the gradient by a multiple of it
    data = energy.operator.adjoint(energy.fidelity.grad(energy.operator(x), energy.y))
    systematic = 4 * energy.unit(x.dtype) * (norm + per_image_norm(data))
    pairing = size * (rounding * (8 / x[0].numel() ** 0.5) + systematic)
    low = adjoint * error + middle_term(variation, norm, energy.data_convexity, error) + pairing
    value = loss - per_image_dot(w.double(), residual.double())
    exact = proved_part(adjoint_residual, adjoint_rounding) * proved
    exact = exact + middle_term(variation, computed, energy.data_convexity, proved)
    modelled = modelled_part(low, exact) + modelled_square(error, error - proved, smoothness)
    return Interval(value, low, low + 0.5 * smoothness * error.square(), modelled)


def middle_term(variation: HessianVariation, residual: Tensor, modulus: float, error: Tensor) -> Tensor:
    r"""A bound of \|<(B_bar - B(x)) w, e>\| for \|\|e\|\| <= ``error``, \|\|r\|\| = ``residual`` and Q >= ``modulus``.

    By self-concordance kappa (<e, B_bar_R e> + c \|\|e\|\|^2) with <e, B_bar_R e> = <e, r> - <e, Q e>, maximized over
    \|\|e\|\|: kappa \|\|r\|\|^2 / (4 modulus) where R is convex. By the Lipschitz constant T: T eps^2 / 2. The smaller.
    """
    curvature = modulus - variation.concavity
    inner = torch.where(curvature > 0, residual / (2 * curvature.clamp_min(1e-300)), torch.inf)
    s = torch.minimum(inner, error)
    relative = variation.relative * (residual * s - curvature * s * s)
    relative = torch.where(torch.isfinite(relative), relative, torch.inf)
    return torch.minimum(relative, 0.5 * variation.lipschitz * error.square())
