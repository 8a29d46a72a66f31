"""Terms of an energy as NumPy formulas in extended precision (64 bits of mantissa): gradients and Hessians.

Nothing here comes from what is checked. Images are flat, ``(batch, n)``, numbers are ``numpy.longdouble``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Function = Callable[[Array], Array]
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
        """The Hessians, ``(batch, n, n)``, float64: for steps and eigenvalues only."""
        raise NotImplementedError


class Composed(Term):
    """sum_j psi_j((L x)_j): ``slope(u)`` and ``curvature(u)`` of psi, both of the shape ``(batch, m)`` of u = L x."""

    def __init__(self, matrix: Array, slope: Function, curvature: Function) -> None:
        self.matrix, self.slope, self.curvature = matrix, slope, curvature

    def grad(self, x: Array) -> Array:
        return self.slope(x @ self.matrix.T) @ self.matrix

    def product(self, x: Array, v: Array) -> Array:
        return (self.curvature(x @ self.matrix.T) * (v @ self.matrix.T)) @ self.matrix

    def dense(self, x: Array) -> Array:
        u, matrix = x @ self.matrix.T, self.matrix.astype(np.float64)
        return _products((self.curvature(u) + 0 * u).astype(np.float64), matrix, matrix)


def _products(weight: Array, left: Array, right: Array) -> Array:
    """L^T diag(w) R for every image."""
    return np.einsum("bm,mi,mj->bij", weight, left, right, optimize=True)


def quadratic(matrix: Array, y: Any, weight: Any = 1.0) -> Composed:
    """1/2 sum_j w_j (A x - y)_j^2."""
    w = np.asarray(weight, dtype=LD)
    return Composed(matrix, lambda u: w * (u - y), lambda u: w)


def kullback_leibler(matrix: Array, y: Array, background: float) -> Composed:
    """sum_j z_j - y_j log(z_j + b), continued below zero by its Taylor polynomial of degree two."""
    b = LD(background)

    def slope(z: Array) -> Array:
        return 1 - y / (np.maximum(z, 0) + b) + np.minimum(z, 0) * y / b**2

    return Composed(matrix, slope, lambda z: y / (np.maximum(z, 0) + b) ** 2)


def ridge(mu: float, n: int) -> Composed:
    """(mu/2) ||x||^2."""
    return quadratic(np.eye(n, dtype=LD), LD(0), LD(mu))


class Grouped(Term):
    """sum_p w_p(|(L x)_p|) for vectors (L x)_p of ``count`` components: ``profile(r)`` is w'(r)/r and w''(r).

    L is ``(count, groups, n)``.
    """

    def __init__(self, matrix: Array, profile: Callable[[Array], tuple[Array, Array]]) -> None:
        self.matrix, self.profile = matrix, profile

    def _parts(self, x: Array) -> tuple[Array, Array, Array, Array]:
        z = np.stack([x @ m.T for m in self.matrix], 1)
        r = np.sqrt((z**2).sum(1))
        ratio, along = self.profile(r)
        direction = z / np.where(r > 0, r, LD(1))[:, None]
        return z, ratio, along, direction

    def _back(self, z: Array) -> Array:
        return np.sum([z[:, c] @ m for c, m in enumerate(self.matrix)], axis=0)

    def grad(self, x: Array) -> Array:
        z, ratio, *_ = self._parts(x)
        return self._back(ratio[:, None] * z)

    def product(self, x: Array, v: Array) -> Array:
        _, ratio, along, n = self._parts(x)
        d = np.stack([v @ m.T for m in self.matrix], 1)
        part = (n * d).sum(1)
        return self._back(ratio[:, None] * d + ((along - ratio) * part)[:, None] * n)

    def dense(self, x: Array) -> Array:
        _, ratio, along, n = (t.astype(np.float64) for t in self._parts(x))
        double = self.matrix.astype(np.float64)
        across = np.sum([_products(ratio, m, m) for m in double], axis=0)
        inner = np.einsum("bcg,cgi->bgi", n, double, optimize=True)
        return across + np.einsum("bg,bgi,bgj->bij", along - ratio, inner, inner, optimize=True)


class Joint(Term):
    """sum_p psi_p((L x)_p) for vectors (L x)_p of ``count`` components, L ``(count, groups, n)``.

    ``slope(z)`` is the gradient of psi, of the shape ``(batch, count, groups)`` of z = L x, and ``hessian(z)`` has the
    shape ``(batch, count, count, groups)``.
    """

    def __init__(self, matrix: Array, slope: Function, hessian: Function) -> None:
        self.matrix, self.slope, self.hessian = matrix, slope, hessian

    def _responses(self, x: Array) -> Array:
        return np.stack([x @ m.T for m in self.matrix], 1)

    def _back(self, z: Array) -> Array:
        return np.sum([z[:, c] @ m for c, m in enumerate(self.matrix)], axis=0)

    def grad(self, x: Array) -> Array:
        return self._back(self.slope(self._responses(x)))

    def product(self, x: Array, v: Array) -> Array:
        hessian, moves = self.hessian(self._responses(x)), self._responses(v)
        return self._back((hessian * moves[:, None]).sum(2))

    def dense(self, x: Array) -> Array:
        hessian, double = self.hessian(self._responses(x)).astype(np.float64), self.matrix.astype(np.float64)
        pairs = [(i, j) for i in range(len(double)) for j in range(len(double))]
        return np.sum([_products(hessian[:, i, j], double[i], double[j]) for i, j in pairs], axis=0)


class Layered(Term):
    """a^T sigma_L(W_L z_{L-1} + b_L), z_l = sigma(W_l z_{l-1} + b_l), z_{-1} = x: a network of dense layers.

    activations: for every layer sigma, sigma' and sigma''. weights: a, one for every output.
    """

    def __init__(
        self,
        matrices: Sequence[Array],
        biases: Sequence[Array],
        activations: Sequence[tuple[Function, ...]],
        weights: Array,
    ) -> None:
        self.matrices, self.biases, self.activations, self.weights = matrices, biases, activations, weights

    def _run(self, x: Array) -> tuple[list[Array], list[Array]]:
        """The arguments u_l, and dR/dz_l, computed backwards."""
        z, found = x, []
        for m, b, sigma in zip(self.matrices, self.biases, self.activations, strict=True):
            found.append(z @ m.T + b)
            z = sigma[0](found[-1])
        slopes = [np.broadcast_to(self.weights, z.shape)]
        for m, u, sigma in zip(self.matrices[::-1], found[::-1], self.activations[::-1], strict=True):
            slopes.insert(0, (slopes[0] * sigma[1](u)) @ m)
        return found, slopes

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


class Energy:
    """The sum of terms."""

    def __init__(self, *terms: Term) -> None:
        self.terms = terms

    def grad(self, x: Array) -> Array:
        return np.sum([t.grad(x) for t in self.terms], axis=0)

    def product(self, x: Array, v: Array) -> Array:
        return np.sum([t.product(x, v) for t in self.terms], axis=0)

    def dense(self, x: Array) -> Array:
        return np.sum([t.dense(x) for t in self.terms], axis=0)

    def noise(self, x: Array, hessian: Array) -> Array:
        """About the rounding error of :meth:`grad`: of what its terms cancel, and of x in them."""
        terms = np.sum([norm(t.grad(x)) for t in self.terms], axis=0)
        return 4 * np.sqrt(LD(x.shape[1])) * UNIT * (terms + np.linalg.norm(hessian, axis=(1, 2)) * norm(x))
