"""Inexact hypergradients by implicit differentiation, and a computable bound of their error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recon.lower_level import Energy, per_image_norm

if TYPE_CHECKING:
    from recon.bilevel.objective import Evaluation


@dataclass(frozen=True)
class Hypergradient:
    """z, flat, float64; error: omega >= ||z - grad f||, proved if ``certified``; evaluation: with its adjoints."""

    z: Tensor
    error: float
    certified: bool
    evaluation: Evaluation


def error_bound(
    energy: Energy, smoothness: float, x: Tensor, w: Tensor, error: Tensor, residual: Tensor
) -> tuple[Tensor, Tensor, bool]:
    r"""omega_i >= \|\|z_i - grad f_i\|\| and a bound of \|\|z_i\|\|, z_i = -J(x)^T w, per image, and whether proved.

    With B w^ = grad g at the minimizer x^, \|\|x - x^\|\| <= eps and r_w the adjoint residual at x,

        w^ - w = B(x^)^{-1} (grad g(x^) - grad g(x) + r_w + (B(x) - B(x^)) w),
        \|\|w^ - w\|\| <= (L_g eps + \|\|r_w\|\| + T(w) eps) / mu,
        omega = sup \|\|J\|\| \|\|w^ - w\|\| + L_J(w) eps,

    with T(w), L_J(w) Lipschitz constants of x -> B(x) w and x -> J(x)^T w, J over the ball of radius eps. This is
    Theorem 2.1 of Salehi, Mukherjee, Roberts and Ehrhardt (2025) with the adjoint at hand instead of worst cases.
    """
    bounds = energy.regularizer.jacobian_bounds(x, w, error)
    variation = energy.regularizer.hessian_variation(w)
    certified = bounds.certified and energy.fidelity.quadratic
    if variation is not None and bool(torch.isfinite(variation.lipschitz).all()) and energy.fidelity.quadratic:
        lipschitz = variation.lipschitz
    else:
        lipschitz, certified = _estimated_lipschitz(energy, x, w), False
    residual = residual + energy.product_rounding(w, residual)
    adjoint = (smoothness * error + residual + lipschitz * error) / energy.require_strong_convexity()
    size = bounds.norm * per_image_norm(w).double()
    return bounds.norm * adjoint + bounds.variation * error, size, certified


def _estimated_lipschitz(energy: Energy, x: Tensor, w: Tensor) -> Tensor:
    """Twice the change of B w along the gradient of h, per unit of distance: an estimate, not a bound."""
    direction = energy.grad(x)
    step = direction * (1e-3 / per_image_norm(direction).clamp_min(1e-12)).view(-1, *([1] * (x.ndim - 1)))
    change = energy.hessian(x + step)(w) - energy.hessian(x)(w)
    return 2 * per_image_norm(change).double() / per_image_norm(step).double()
