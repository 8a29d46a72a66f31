"""Minimizers in extended precision, by Newton's method.

Hessians are factorized in double precision, and the residuals that decide are in extended precision, so that the errors
of the factorization change nothing but the speed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.certified.terms import LD, Array, Energy, extended, norm


@dataclass(frozen=True)
class Minimum:
    """x, with ||x - argmin|| <= accuracy per image (infinite: the method failed), and the Hessian there."""

    x: Array
    accuracy: Array
    hessian: Array

    def better(self, other: Minimum) -> Minimum:
        """Image by image the more accurate one of two."""
        mine = self.accuracy <= other.accuracy
        pick = [
            np.where(mine.reshape(-1, *[1] * (a.ndim - 1)), a, b)
            for a, b in zip(self._parts(), other._parts(), strict=True)
        ]
        return Minimum(*pick)

    def _parts(self) -> tuple[Array, ...]:
        return self.x, self.accuracy, self.hessian


def minimize(energy: Energy, x0: Array, nonnegative: bool = False, steps: int = 200) -> Minimum:
    """The minimizers by Newton's method, over x >= 0 on the free pixels, from ``x0``.

    For a strongly convex energy the distance of x to the minimizer is about ||p|| / lambda, with p the gradient (where
    x_i = 0, its negative part) and lambda the smallest eigenvalue of the Hessian at x; twice this is reported.
    """
    x, size = _active_sets(energy, x0, steps) if nonnegative else _damped(energy, extended(x0), steps)
    hessian = energy.dense(x)
    lowest = np.linalg.eigvalsh(hessian)[:, 0]
    with np.errstate(all="ignore"):
        accuracy = np.where(lowest > 0, 2 * (size + energy.noise(x, hessian)) / lowest, np.inf)
    return Minimum(x, np.where(np.isfinite(accuracy), accuracy, np.inf), hessian)


def minimize_near(energy: Energy, x: Array, nonnegative: bool = False) -> Minimum:
    """The same from x and, where that is not accurate, from zero."""
    at = minimize(energy, np.where(np.isfinite(x), x, 0), nonnegative)
    if bool((at.accuracy <= 1e-6 * norm(at.x)).all()):
        return at
    return at.better(minimize(energy, 0 * at.x, nonnegative))


def _damped(energy: Energy, x: Array, steps: int) -> tuple[Array, Array]:
    """Newton steps, halved until the gradient is smaller; x and the norms of the gradients."""
    g = energy.grad(x)
    size, stale = norm(g), np.zeros(len(x), dtype=int)
    for _ in range(steps):
        hessian = energy.dense(x)
        done = (stale >= 3) | (size <= energy.noise(x, hessian) / 64)
        if bool(done.all()):
            break
        d = _solve(hessian, -g)
        best, best_size, best_g = x, size, g
        better = np.zeros(len(x), dtype=bool)
        for k in range(24):
            trial = x + LD(0.5) ** k * d
            g_trial = energy.grad(trial)
            size_trial = norm(g_trial)
            good = ~better & (size_trial < (1 - 0.1 * 0.5**k) * size)
            best, best_g = np.where(good[:, None], trial, best), np.where(good[:, None], g_trial, best_g)
            best_size = np.where(good, size_trial, best_size)
            better |= good
            if bool((better | done).all()):
                break
        stale = np.where(better & (best_size < 0.5 * size), 0, stale + 1)
        x, g, size = best, best_g, best_size
    return x, size


def _active_sets(energy: Energy, x: Array, steps: int) -> tuple[Array, Array]:
    """Full Newton steps on the free pixels and, where these do not help, projected gradients; the best x that was met.

    Pixels that a step of the inverse diagonal would put to zero are held there (Bertsekas 1982).
    """
    x = np.maximum(extended(x), 0)
    best, least = x, np.full(len(x), np.inf, dtype=LD)
    stale = 0
    for _ in range(steps):
        g, hessian = energy.grad(x), energy.dense(x)
        size = norm(np.where(x > 0, g, np.minimum(g, 0)))
        better = size < least
        stale = 0 if bool((size < 0.5 * least).any()) else stale + 1
        best, least = np.where(better[:, None], x, best), np.where(better, size, least)
        if bool((least <= energy.noise(x, hessian) / 64).all()) or stale > 40:
            break
        if stale % 20 >= 5:
            x = np.maximum(x - g / np.abs(hessian).sum(2).max(1)[:, None], 0)
            continue
        held = x <= np.maximum(g, 0) / np.einsum("bii->bi", hessian).astype(LD)
        free = ~held
        matrix = hessian * (free[:, :, None] & free[:, None, :]) + held[:, :, None] * np.eye(x.shape[1])
        right = np.where(held, 0, -g + np.einsum("bij,bj->bi", hessian, held * x))
        x = np.maximum(np.where(held, 0, x + _solve(matrix, right)), 0)
    return best, least


def _solve(matrix: Array, right: Array) -> Array:
    """In double precision, scaled so that tiny images do not underflow."""
    top = np.abs(right).max(1, keepdims=True)
    safe = np.where(top > 0, top, LD(1))
    try:
        return np.linalg.solve(matrix, (right / safe).astype(np.float64)[..., None])[..., 0].astype(LD) * safe
    except np.linalg.LinAlgError:
        return right / np.abs(matrix).sum(2).max(1)[:, None]


def solve_linear(energy: Energy, at: Minimum, right: Array) -> tuple[Array, Array]:
    """B w = b for the Hessians B at the minimizers, by iterative refinement; w and a bound of its error."""
    w = 0 * right
    for _ in range(6):
        w = w + _solve(at.hessian, right - energy.product(at.x, w))
    lowest = np.linalg.eigvalsh(at.hessian)[:, 0]
    return w, 2 * norm(right - energy.product(at.x, w)) / lowest


def derivative(function: Callable[[Array], Any], theta: Array) -> tuple[Array, float]:
    """The gradient of ``function`` in theta by central differences of order four, and an estimate of its error."""
    found, coarse = np.zeros_like(theta), np.zeros_like(theta)
    for i, unit in enumerate(np.eye(len(theta), dtype=LD)):
        h = LD(2.0**-17) * max(abs(theta[i]), LD(2.0**-4))
        one, two, four = (function(theta + t * h * unit) - function(theta - t * h * unit) for t in (1, 2, 4))
        found[i] = (8 * one - two) / (12 * h)
        coarse[i] = (8 * two - four) / (24 * h)
    return found, float(norm((found - coarse)[None])[0])
