"""Minimizers in extended precision: terms of an energy as NumPy formulas, and Newton's method.

Nothing here comes from what is checked. Images are flat, ``(batch, n)``, numbers are ``numpy.longdouble`` (64 bits of
mantissa); Hessians are factorized in double precision, and the residuals that decide are in extended precision, so
that the errors of the factorization change nothing but the speed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LD = np.longdouble
#: unit roundoff of extended precision
UNIT = float(np.finfo(LD).eps) / 2


def extended(x: Any) -> Array:
    """``x`` (a tensor, an array, a number) in extended precision."""
    return np.asarray(x.detach().cpu().numpy() if hasattr(x, "detach") else x).astype(LD)


def norm(x: Array) -> Array:
    """The norm of every image; scaled, so that nothing underflows or overflows."""
    flat = x.reshape(len(x), -1)
    top = np.abs(flat).max(1, initial=0)
    safe = np.where((top > 0) & np.isfinite(top), top, LD(1))
    return safe * np.sqrt(((flat / safe[:, None]) ** 2).sum(1))


class Term:
    """A function of images, twice differentiable almost everywhere."""

    def grad(self, x: Array) -> Array:
        """The gradient, ``(batch, n)``."""
        raise NotImplementedError

    def product(self, x: Array, v: Array) -> Array:
        """The Hessian at x times v, in extended precision."""
        raise NotImplementedError

    def dense(self, x: Array) -> Array:
        """The Hessians, ``(batch, n, n)``, float64."""
        raise NotImplementedError

    def size(self, x: Array) -> Array:
        """About the norm of the terms that the gradient adds up, ``(batch,)``: its rounding errors are UNIT of it."""
        raise NotImplementedError


class Composed(Term):
    """sum_j psi_j((L x)_j): ``slope(u)`` and ``curvature(u)`` of psi, both of the shape ``(batch, m)`` of u = L x."""

    def __init__(
        self, matrix: Array, slope: Callable[[Array], Array], curvature: Callable[[Array], Array], offset: Any = 0.0
    ) -> None:
        self.matrix, self.slope, self.curvature = matrix, slope, curvature
        self.double = matrix.astype(np.float64)
        self.offset = np.asarray(offset, dtype=LD)
        self.top = float(np.linalg.norm(self.double))

    def grad(self, x: Array) -> Array:
        return self.slope(x @ self.matrix.T) @ self.matrix

    def product(self, x: Array, v: Array) -> Array:
        return (self.curvature(x @ self.matrix.T) * (v @ self.matrix.T)) @ self.matrix

    def dense(self, x: Array) -> Array:
        c = np.broadcast_to(self.curvature(x @ self.matrix.T), (len(x), len(self.matrix))).astype(np.float64)
        return np.einsum("bm,mi,mj->bij", c, self.double, self.double, optimize=True)

    def size(self, x: Array) -> Array:
        u = x @ self.matrix.T
        inner = norm(self.slope(u)) + np.abs(self.curvature(u)).max() * self.top * norm(x) + norm(self.offset + 0 * u)
        return self.top * inner


def quadratic(matrix: Array, y: Array, weight: Any = 1.0) -> Composed:
    """1/2 sum_j w_j (A x - y)_j^2."""
    w = np.asarray(weight, dtype=LD)
    return Composed(matrix, lambda u: w * (u - y), lambda u: w + LD(0) * u, w * y)


def kullback_leibler(matrix: Array, y: Array, background: float) -> Composed:
    """sum_j z_j - y_j log(z_j + b), continued below zero by its Taylor polynomial of degree two."""
    b = LD(background)

    def slope(z: Array) -> Array:
        return 1 - y / (np.maximum(z, 0) + b) + np.minimum(z, 0) * y / b**2

    return Composed(matrix, slope, lambda z: y / (np.maximum(z, 0) + b) ** 2 + 0 * z, 1 + y / b)


def ridge(mu: float, n: int) -> Composed:
    """(mu/2) ||x||^2."""
    return Composed(np.eye(n, dtype=LD), lambda u: LD(mu) * u, lambda u: LD(mu) + LD(0) * u)


class Grouped(Term):
    """sum_p w_p(|(L x)_p|) for vectors (L x)_p of ``count`` components: ``profile(r)`` is w'(r)/r and w''(r).

    L is ``(count, groups, n)``.
    """

    def __init__(self, matrix: Array, profile: Callable[[Array], tuple[Array, Array]]) -> None:
        self.matrix, self.profile = matrix, profile
        self.double = matrix.astype(np.float64)
        self.top = float(np.linalg.norm(self.double))

    def _parts(self, x: Array) -> tuple[Array, Array, Array, Array]:
        z = np.stack([x @ m.T for m in self.matrix], 1)
        r = np.sqrt((z**2).sum(1))
        ratio, along = self.profile(r)
        direction = z / np.where(r > 0, r, LD(1))[:, None]
        return z, ratio, along, direction

    def grad(self, x: Array) -> Array:
        z, ratio, *_ = self._parts(x)
        return sum((ratio * z[:, c]) @ m for c, m in enumerate(self.matrix))

    def product(self, x: Array, v: Array) -> Array:
        _, ratio, along, n = self._parts(x)
        d = np.stack([v @ m.T for m in self.matrix], 1)
        part = (n * d).sum(1)
        moved = ratio[:, None] * d + ((along - ratio) * part)[:, None] * n
        return sum(moved[:, c] @ m for c, m in enumerate(self.matrix))

    def dense(self, x: Array) -> Array:
        _, ratio, along, n = (t.astype(np.float64) for t in self._parts(x))
        across = sum(np.einsum("bg,gi,gj->bij", ratio, m, m, optimize=True) for m in self.double)
        inner = np.einsum("bcg,cgi->bgi", n, self.double, optimize=True)
        return across + np.einsum("bg,bgi,bgj->bij", along - ratio, inner, inner, optimize=True)

    def size(self, x: Array) -> Array:
        _, ratio, *_ = self._parts(x)
        return self.top**2 * ratio.max() * norm(x) + norm(self.grad(x))


class Layered(Term):
    """a^T sigma_L(W_L z_{L-1} + b_L), z_l = sigma(W_l z_{l-1} + b_l), z_{-1} = x: a network of dense layers.

    activations: for every layer sigma, sigma' and sigma''. weights: a, one for every output.
    """

    def __init__(
        self,
        matrices: Sequence[Array],
        biases: Sequence[Array],
        activations: Sequence[tuple[Callable[[Array], Array], ...]],
        weights: Array,
    ) -> None:
        self.matrices, self.biases, self.activations, self.weights = matrices, biases, activations, weights

    def _run(self, x: Array) -> tuple[list[Array], list[Array]]:
        """The arguments u_l, and dR/dz_l, backwards computed."""
        z, found = x, []
        for m, b, sigma in zip(self.matrices, self.biases, self.activations, strict=True):
            found.append(z @ m.T + b)
            z = sigma[0](found[-1])
        q, slopes = np.broadcast_to(self.weights, z.shape), []
        for m, u, sigma in zip(self.matrices[::-1], found[::-1], self.activations[::-1], strict=True):
            slopes.insert(0, q)
            q = (q * sigma[1](u)) @ m
        return found, [q, *slopes]

    def grad(self, x: Array) -> Array:
        return self._run(x)[1][0]

    def product(self, x: Array, v: Array) -> Array:
        found, slopes = self._run(x)
        moves = []
        for m, u, sigma in zip(self.matrices, found, self.activations, strict=True):
            moves.append(v @ m.T)
            v = sigma[1](u) * moves[-1]
        back = 0 * v
        for i in range(len(found) - 1, -1, -1):
            sigma = self.activations[i]
            part = slopes[i + 1] * sigma[2](found[i]) * moves[i] + sigma[1](found[i]) * back
            back = part @ self.matrices[i]
        return back

    def dense(self, x: Array) -> Array:
        found, slopes = self._run(x)
        total = np.zeros((len(x), x.shape[1], x.shape[1]))
        for i in range(len(x)):
            jacobian = np.eye(x.shape[1])
            for m, u, q, sigma in zip(self.matrices, found, slopes[1:], self.activations, strict=True):
                jacobian = m.astype(np.float64) @ jacobian
                weight = (q[i] * sigma[2](u[i])).astype(np.float64)
                total[i] += (jacobian.T * weight) @ jacobian
                jacobian = sigma[1](u[i]).astype(np.float64)[:, None] * jacobian
        return total

    def size(self, x: Array) -> Array:
        top = float(np.linalg.norm(self.matrices[0].astype(np.float64)))
        return 4 * top * norm(self._run(x)[1][1])


class Energy:
    """The sum of terms."""

    def __init__(self, *terms: Term) -> None:
        self.terms = terms

    def grad(self, x: Array) -> Array:
        return sum(t.grad(x) for t in self.terms)

    def product(self, x: Array, v: Array) -> Array:
        return sum(t.product(x, v) for t in self.terms)

    def dense(self, x: Array) -> Array:
        return sum(t.dense(x) for t in self.terms)

    def noise(self, x: Array) -> Array:
        """The rounding error of :meth:`grad`, generously."""
        return 4 * np.sqrt(LD(x.shape[1])) * UNIT * sum(t.size(x) for t in self.terms)


@dataclass(frozen=True)
class Minimum:
    """x, with ||x - argmin|| <= accuracy per image (infinite: the method failed), and the Hessian there."""

    x: Array
    accuracy: Array
    hessian: Array


def minimize(energy: Energy, x0: Array, nonnegative: bool = False, steps: int = 200) -> Minimum:
    """The minimizers by Newton's method, over x >= 0 on the free pixels, from ``x0``.

    For a strongly convex energy the distance of x to the minimizer is about ||p|| / lambda, with p the gradient (where
    x_i = 0, its negative part) and lambda the smallest eigenvalue of the Hessian at x; twice this is reported.
    """
    x = np.maximum(extended(x0), 0) if nonnegative else extended(x0)
    x, size = (_active_sets if nonnegative else _damped)(energy, x, steps)
    hessian = energy.dense(x)
    lowest = np.linalg.eigvalsh(hessian)[:, 0]
    with np.errstate(all="ignore"):
        accuracy = np.where(lowest > 0, 2 * (size + energy.noise(x)) / lowest, np.inf)
    return Minimum(x, np.where(np.isfinite(accuracy), accuracy, np.inf), hessian)


def _damped(energy: Energy, x: Array, steps: int) -> tuple[Array, Array]:
    """Newton steps, halved until the gradient is smaller; x and the norms of the gradients."""
    g = energy.grad(x)
    size, stale = norm(g), np.zeros(len(x), dtype=int)
    for _ in range(steps):
        floor = energy.noise(x) / 64
        if bool(((stale >= 3) | (size <= floor)).all()):
            break
        d = _solve(energy.dense(x), -g)
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
            if bool((better | (size <= floor)).all()):
                break
        stale = np.where(better & (best_size < 0.5 * size), 0, stale + 1)
        x, g, size = best, best_g, best_size
    return x, size


def _active_sets(energy: Energy, x: Array, steps: int) -> tuple[Array, Array]:
    """Full Newton steps on the free pixels and, where these do not help, projected gradients; the best x that was met.

    Pixels that a step of the inverse diagonal would put to zero are held there (Bertsekas 1982).
    """
    best, least = x, np.full(len(x), np.inf, dtype=LD)
    stale = 0
    for _ in range(steps):
        g = energy.grad(x)
        size = norm(np.where(x > 0, g, np.minimum(g, 0)))
        better = size < least
        stale = 0 if bool((size < 0.5 * least).any()) else stale + 1
        best, least = np.where(better[:, None], x, best), np.where(better, size, least)
        if bool((least <= energy.noise(best) / 64).all()) or stale > 40:
            break
        hessian = energy.dense(x)
        if stale % 20 >= 5:
            top = np.abs(hessian).sum(2).max(1)[:, None]
            x = np.maximum(x - g / top, 0)
            continue
        diagonal = np.einsum("bii->bi", hessian).astype(LD)
        held = x <= np.maximum(g, 0) / diagonal
        free = ~held
        matrix = hessian * (free[:, :, None] & free[:, None, :])
        matrix = matrix + np.einsum("bi,ij->bij", held.astype(float), np.eye(x.shape[1]))
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
    found, coarse = np.zeros(len(theta), dtype=LD), np.zeros(len(theta), dtype=LD)
    for i in range(len(theta)):
        h = LD(2.0**-17) * max(abs(theta[i]), LD(2.0**-4))

        def at(t: float, i: int = i, h: Any = h) -> Any:
            moved = theta.copy()
            moved[i] += t * h
            return function(moved)

        one, two, four = (at(t) - at(-t) for t in (1.0, 2.0, 4.0))
        found[i] = (8 * one - two) / (12 * h)
        coarse[i] = (8 * two - four) / (24 * h)
    return found, float(np.sqrt(((found - coarse) ** 2).sum()))
