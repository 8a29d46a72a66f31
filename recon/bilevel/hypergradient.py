"""Inexact hypergradients by implicit differentiation, and a computable bound of their error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from recon.bilevel.evaluation import Evaluation
from recon.lower_level import Energy, JacobianBounds, Status, over_image, per_image_norm
from recon.lower_level.grade import Grade, grade_bounds, modelled_part, proved_part, worst
from recon.lower_level.precision import SUMMATION
from recon.lower_level.solution import LinearSolution


@dataclass(frozen=True)
class Hypergradient:
    """z, flat, float64; error: omega >= ||z - grad f||; evaluation: with its adjoints.

    rounding: the part of omega that a model of rounding errors adds; grade: what omega rests on.
    """

    z: Tensor
    error: float
    rounding: float
    grade: Grade
    evaluation: Evaluation

    @property
    def certified(self) -> bool:
        """Whether omega is a bound, not an estimate."""
        return self.grade is not Grade.ESTIMATED


class ErrorBound(NamedTuple):
    """Per image: omega, a bound of ||z||, the part of omega that is modelled, whether constants are proved, and the
    part of the bound of ||z|| that is modelled.
    """

    omega: Tensor
    size: Tensor
    rounding: Tensor
    basis: Grade
    size_rounding: Tensor


class Errors:
    """omega of the mean over all images, chunk by chunk."""

    def __init__(self) -> None:
        self.omegas: list[Tensor] = []
        self.modelled: list[Tensor] = []
        self.grade = Grade.PROVED

    def add(self, found: ErrorBound, weight: Tensor, weight_error: Tensor, dtype: torch.dtype) -> None:
        """``found`` bounds the derivative of q, which g multiplies by ``weight``.

        ``weight_error``: of the weight; two rows, with the model of rounding errors and without.
        """
        whole, exact = weight_error
        omega = weight * found.omega + whole * (found.size + found.omega)
        proved = proved_part(found.omega, found.rounding)
        proved = weight * proved + exact * (proved_part(found.size, found.size_rounding) + proved)
        modelled = modelled_part(omega, proved)
        self.omegas.append(omega)
        self.modelled.append(modelled)
        self.grade = worst(self.grade, grade_bounds(omega, modelled, dtype, found.basis))

    def hypergradient(self, z: Tensor, evaluation: Evaluation) -> Hypergradient:
        """z with the mean omega, infinite where none was added; not better than what ``evaluation`` rests on."""
        if not self.omegas:
            return Hypergradient(z, math.inf, math.inf, Grade.ESTIMATED, evaluation)
        omega, modelled = (float(torch.cat(v).mean()) for v in (self.omegas, self.modelled))
        return Hypergradient(z, omega, modelled, worst(self.grade, Grade(evaluation.grade)), evaluation)


def error_bound(
    energy: Energy,
    smoothness: float,
    x: Tensor,
    w: Tensor,
    error: Tensor,
    residual: Tensor,
    error_rounding: Tensor | None = None,
    adjoint_rounding: Tensor | None = None,
) -> ErrorBound:
    r"""omega_i >= \|\|z_i - grad f_i\|\| and a bound of \|\|z_i\|\|, z_i = -J(x)^T w, per image.

    With B w^ = grad g at the minimizer x^, \|\|x - x^\|\| <= eps and r_w the adjoint residual at x,

        w^ - w = B(x^)^{-1} (grad g(x^) - grad g(x) + r_w + (B(x) - B(x^)) w),
        \|\|w^ - w\|\| <= (L_g eps + \|\|r_w\|\| + T(w) eps) / mu,
        omega = sup \|\|J\|\| \|\|w^ - w\|\| + L_J(w) eps + u (8 sup \|\|J\|\| \|\|w\|\| + L_J(w) \|\|x\|\|),

    with T(w), L_J(w) Lipschitz constants of x -> B(x) w and x -> J(x)^T w, J over the ball of radius eps. This is
    Theorem 2.1 of Salehi, Mukherjee, Roberts and Ehrhardt (2025) with the adjoint at hand instead of worst cases. The
    last terms are the rounding errors of z itself, of its products and of x in them. ``error_rounding`` and
    ``adjoint_rounding`` are the modelled parts of ``error`` and ``residual`` (all of them by default).
    """
    bounds = energy.regularizer.jacobian_bounds(x, w, error)
    variation = energy.regularizer.hessian_variation(w)
    certified = bounds.certified and energy.fidelity.quadratic
    if variation is not None and bool(torch.isfinite(variation.lipschitz).all()) and energy.fidelity.quadratic:
        lipschitz = variation.lipschitz
    else:
        lipschitz, certified = _estimated_lipschitz(energy, x, w), False
    modulus, length = energy.require_strong_convexity(), per_image_norm(w)

    def moved(bounds: JacobianBounds, error: Tensor, residual: Tensor) -> Tensor:
        gain = bounds.norm / modulus
        per_error = gain * (smoothness + lipschitz) + bounds.variation
        return per_error * error + gain * residual

    size = bounds.norm * length
    own = energy.unit(x.dtype) * (SUMMATION * size + bounds.variation * per_image_norm(x))
    rounding = bounds.norm / modulus * energy.adjoint_rounding(x, w, residual, lipschitz) + own
    omega = moved(bounds, error, residual) + rounding
    # the same without rounding errors, of J over the ball of the radius that is proved (estimates stay as they are)
    error, residual = proved_part(error, error_rounding), proved_part(residual, adjoint_rounding)
    smaller = energy.regularizer.jacobian_bounds(x, w, error) if bounds.certified else bounds
    rounding = modelled_part(omega, moved(smaller, error, residual))
    basis = energy.basis if certified else Grade.ESTIMATED
    return ErrorBound(omega, size, rounding, basis, modelled_part(size, smaller.norm * length))


def truncated_adjoint(energy: Energy, x: Tensor, b: Tensor, steps: int) -> LinearSolution:
    r"""w = (1/L) sum_{j < steps} (I - B/L)^j b, B = h''(x), with an unknown residual.

    -J^T w is the derivative of g(x_K) in theta, where x_K is reached from x = x^ by K = ``steps`` steps of gradient
    descent, x_{k+1} = x_k - grad h(x_k, theta) / L, and x_0 does not depend on theta: unrolling, from the end. K = 1 is
    the one-step (Bolte, Pauwels and Vaiter, NeurIPS 2023) or Jacobian-free gradient; \|\|w - B^{-1} b\|\| is at most
    (1 - mu/L)^K \|\|b\|\| / mu. It costs K - 1 products with B.

    Raises
    ------
    ValueError
        if no L is known.
    """
    _require_smooth(energy, "adjoint_steps", "solve the adjoint equations")
    step = 1 / energy.smoothness
    w, hessian = step * b, energy.hessian(x)
    for _ in range(steps - 1):
        w = w + step * (b - hessian(w))
    unknown = torch.full((len(b),), math.inf, dtype=torch.float64, device=b.device)
    count = torch.full((len(b),), steps - 1, dtype=torch.int64, device=b.device)
    status = torch.full_like(count, int(Status.ITERATION_LIMIT))
    return LinearSolution(w, torch.full_like(b, math.nan), unknown, status, count)


def _require_smooth(energy: Energy, option: str, without: str) -> None:
    if not math.isfinite(energy.smoothness):
        raise ValueError(
            f"{option} needs a Lipschitz constant of the gradient, and {type(energy.regularizer).__name__} has none; "
            f"leave {option} out to {without}"
        )


def descent_step(energy: Energy) -> float:
    """The largest power of two that is at most 1/L.

    L depends on theta, and 1/L would, too: a step that jumps but does not move has no derivative to be missed.

    Raises
    ------
    ValueError
        if no L is known.
    """
    _require_smooth(energy, "unrolled_steps", "solve the lower level")
    return 2.0 ** -math.ceil(math.log2(energy.smoothness))


def gradient_descent(energy: Energy, x0: Tensor, steps: int) -> list[Tensor]:
    """x_0, ..., x_K with x_{k+1} = x_k - tau grad h(x_k, theta), tau of :func:`descent_step`. It costs K evaluations.

    Raises
    ------
    ValueError
        if no Lipschitz constant is known.
    """
    points, step = [x0], descent_step(energy)
    for _ in range(steps):
        points.append(points[-1] - step * energy.grad(points[-1]))
    return points


def unrolled_gradient(energy: Energy, points: list[Tensor], b: Tensor) -> list[Tensor]:
    r"""d/dtheta of sum_i <x_K, b> for the ``points`` of :func:`gradient_descent`, and fixed b.

    Backwards through the steps, with p_K = b and the Hessian B_k at x_k,

        p_k = p_{k+1} - tau B_k p_{k+1},    gradient = -tau sum_k J(x_k)^T p_{k+1}.

    It costs K - 1 products with Hessians, and holds K + 1 images where implicit differentiation holds one.
    """
    step = descent_step(energy)
    total = [torch.zeros_like(p, dtype=torch.float64) for p in energy.regularizer.trainable()]
    for k in range(len(points) - 2, -1, -1):
        grads = energy.parameter_vjp(points[k], step * b)
        total = [t - g.double() for t, g in zip(total, grads, strict=True)]
        if k:
            b = b - step * energy.hessian(points[k])(b)
    return total


def _estimated_lipschitz(energy: Energy, x: Tensor, w: Tensor) -> Tensor:
    """Twice the change of B w along the gradient of h, per unit of distance: an estimate, not a bound."""
    direction = energy.grad(x)
    step = over_image(1e-3 / per_image_norm(direction).clamp_min(1e-12), x) * direction
    change = energy.hessian(x + step)(w) - energy.hessian(x)(w)
    return 2 * per_image_norm(change) / per_image_norm(step)
