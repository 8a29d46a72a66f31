"""Regularizers and operators as formulas of NumPy in extended precision, from the numbers that parametrize them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from benchmarks.certified.newton import LD, Array, Composed, Grouped, Layered, Term

Parameters = Mapping[str, Array]


# --- matrices --------------------------------------------------------------------------------------------------------


def each_channel(matrix: Array, channels: int) -> Array:
    """The same matrix for every channel."""
    return np.kron(np.eye(channels, dtype=LD), matrix)


@lru_cache(maxsize=64)
def difference_matrices(shape: tuple[int, int], periodic: bool = False) -> tuple[Array, Array]:
    """Forward differences down the rows and along the columns, ``(H W, H W)`` each."""
    height, width = shape
    down, right = (np.zeros((height * width, height * width), dtype=LD) for _ in range(2))
    for i in range(height):
        for j in range(width):
            p = i * width + j
            for matrix, a, b, inside in (
                (down, (i + 1) % height, j, i + 1 < height),
                (right, i, (j + 1) % width, j + 1 < width),
            ):
                if inside or periodic:
                    matrix[p, a * width + b] += 1
                    matrix[p, p] -= 1
    return down, right


def correlation(kernel: Array, shape: tuple[int, int]) -> Array:
    """(c * x)_p = sum_q c[q] x[p + q] wherever the filter lies within the image."""
    return (kernel.reshape(-1) @ _shifts(kernel.shape, shape)).reshape(-1, shape[0] * shape[1])


@lru_cache(maxsize=256)
def _shifts(size: tuple[int, int], shape: tuple[int, int]) -> Array:
    """The matrices of filters with a single one, flat."""
    rows, cols = (n - s + 1 for n, s in zip(shape, size, strict=True))
    matrix = np.zeros((*size, rows, cols, *shape), dtype=LD)
    for a in range(size[0]):
        for b in range(size[1]):
            for i in range(rows):
                matrix[a, b, i, range(cols), i + a, np.arange(cols) + b] = 1
    return matrix.reshape(size[0] * size[1], -1)


def correlation_layer(kernels: Array, shape: tuple[int, int]) -> Array:
    """A layer of correlations, kernels ``(out, in, s, s)``, images ``(in, *shape)``."""
    return np.block([[correlation(k, shape) for k in row] for row in kernels])


def blur(kernel: Array, shape: tuple[int, int], reflect: bool) -> Array:
    """(A x)[p] = sum_q k[q] x[p - q], q from the centre of the kernel; x wraps around or is mirrored at its edges."""
    height, width = shape
    matrix = np.zeros((height * width, height * width), dtype=LD)

    def outside(i: int, n: int) -> int:
        if not reflect:
            return i % n
        i %= 2 * n
        return i if i < n else 2 * n - 1 - i

    rows, cols = kernel.shape
    for i in range(height):
        for j in range(width):
            for a in range(rows):
                for b in range(cols):
                    source = outside(i - a + rows // 2, height), outside(j - b + cols // 2, width)
                    matrix[i * width + j, source[0] * width + source[1]] += kernel[a, b]
    return matrix


def fourier_samples(mask: Array, maps: Array) -> Array:
    """Cartesian MRI as a real matrix: images and data are pairs of real and imaginary parts, origins at n // 2."""

    def transform(n: int) -> Array:
        k = (np.arange(n) - n // 2)[:, None] * (np.arange(n) - n // 2)[None]
        angle = 2 * np.arccos(LD(-1)) * (k % n).astype(LD) / n
        return (np.cos(angle) - 1j * np.sin(angle)) / np.sqrt(LD(n))

    height, width = mask.shape
    whole = np.kron(transform(height), transform(width)) * mask.reshape(-1, 1)
    parts = []
    for coil in maps:
        m = whole * coil.reshape(1, -1)
        parts.append(np.block([[m.real, -m.imag], [m.imag, m.real]]))
    return np.concatenate(parts)


# --- regularizers ----------------------------------------------------------------------------------------------------


def total_variation(theta: Parameters, image: tuple[int, int, int]) -> Term:
    """e^{theta_1} sum_p sqrt(|(D x)_p|^2 + nu^2), nu = e^{theta_2}."""
    weight, nu = np.exp(theta["log_weight"]), np.exp(theta["log_smoothing"])
    matrix = np.stack([each_channel(d, image[0]) for d in difference_matrices(image[1:])])

    def profile(r: Array) -> tuple[Array, Array]:
        root = np.sqrt(r**2 + nu**2)
        return weight / root, weight * nu**2 / root**3

    return Grouped(matrix, profile)


def _bank(kernels: Array, image: tuple[int, int, int]) -> tuple[Array, int]:
    """All filtered images, filter by filter, and the number of values of each filter."""
    layers = [each_channel(correlation(k, image[1:]), image[0]) for k in kernels]
    return np.concatenate(layers), len(layers[0])


def _filters(theta: Parameters, unit_norm: bool) -> Array:
    kernels = theta["weight"] - theta["weight"].mean((1, 2), keepdims=True)
    if unit_norm:
        kernels = kernels / np.sqrt((kernels**2).sum((1, 2), keepdims=True))
    return kernels


def _budget(kernels: Array, log_shares: Array, rho: float) -> Array:
    """v_k = rho e^{beta_k} / S with S the 64-norm of sum_k e^{beta_k} |c^_k|^2 on a half grid of 16 s frequencies."""
    side = kernels.shape[1]
    grid = 16 * side
    k, q = np.arange(grid), np.arange(side)
    angle = 2 * np.arccos(LD(-1)) * ((k[:, None] * q[None]) % grid).astype(LD) / grid
    wave = np.cos(angle) - 1j * np.sin(angle)
    transform = np.einsum("ap,kpq,bq->kab", wave, kernels, wave[: grid // 2 + 1])
    shares = np.exp(log_shares - log_shares.max())
    spectrum = (shares[:, None, None] * (transform.real**2 + transform.imag**2)).sum(0)
    top = spectrum.max()
    factor = 1 / np.cos(np.arccos(LD(-1)) * (side - 1) / grid) ** 2
    total = top * ((spectrum / top) ** 64).sum() ** (LD(1) / 64) * factor
    return rho * shares / total


_POTENTIALS: dict[str, tuple[Callable[[Array, Array], Array], Callable[[Array, Array], Array]]] = {
    "smoothed_l1": (lambda u, nu: u / np.sqrt(u**2 + nu**2), lambda u, nu: nu**2 / np.sqrt(u**2 + nu**2) ** 3),
    "log_cosh": (lambda u, nu: np.tanh(u / nu), lambda u, nu: 1 / (nu * np.cosh(np.clip(u / nu, -5e3, 5e3)) ** 2)),
    "student_t": (
        lambda u, nu: (u / nu) / (1 + (u / nu) ** 2),
        lambda u, nu: (1 - (u / nu) ** 2) / (nu * (1 + (u / nu) ** 2) ** 2),
    ),
}


def experts(
    theta: Parameters,
    image: tuple[int, int, int],
    potential: str,
    unit_norm: bool,
    smallest_width: float,
    rho: float,
) -> Term:
    """Fields of Experts; with ``rho`` every potential minus a wider copy of itself."""
    kernels = _filters(theta, unit_norm)
    matrix, count = _bank(kernels, image)
    slope, curvature = _POTENTIALS[potential]
    weight = np.exp(theta["log_scale"] + theta["log_weights"])
    width = LD(smallest_width) + np.exp(theta["log_widths"])

    def spread(v: Array) -> Array:
        return np.repeat(v, count)

    w, nu = spread(weight), spread(width)
    if not rho:
        return Composed(matrix, lambda u: w * slope(u, nu), lambda u: w * curvature(u, nu))
    wide = spread(weight / _budget(kernels, theta["log_concavity"], rho))
    return Composed(
        matrix,
        lambda u: w * (slope(u, nu) - slope(u, wide)),
        lambda u: w * (curvature(u, nu) - curvature(u, wide)),
    )


def splines(
    theta: Parameters, image: tuple[int, int, int], unit_norm: bool, spacing: float, scale: float, rho: float
) -> Term:
    """Ridge functions whose psi'' is linear between knots in |u| and zero from the last one on."""
    kernels = _filters(theta, unit_norm)
    matrix, count = _bank(kernels, image)
    raw, h = theta["curvatures"], LD(spacing)
    knots = LD(scale) * (np.maximum(raw, 0) + np.log1p(np.exp(-np.abs(raw))))
    if rho:
        knots = knots - _budget(kernels, theta["log_concavity"], rho)[:, None] / (1 + np.exp(-theta["bends"]))
    d = np.repeat(np.concatenate([knots, 0 * knots[:, :1]], 1), count, axis=0)
    reached = np.concatenate([0 * d[:, :1], np.cumsum(h / 2 * (d[:, 1:] + d[:, :-1]), 1)], 1)
    last, rows = d.shape[1] - 1, np.arange(len(d))

    def locate(u: Array) -> tuple[Array, Array]:
        position = np.minimum(np.abs(u) / h, LD(last))
        index = np.minimum(np.floor(position).astype(int), last - 1)
        return index, position - index

    def slope(u: Array) -> Array:
        i, f = locate(u)
        left, change = d[rows, i], d[rows, i + 1] - d[rows, i]
        return np.sign(u) * (reached[rows, i] + h * f * (left + change * f / 2))

    def curvature(u: Array) -> Array:
        i, f = locate(u)
        return d[rows, i] + (d[rows, i + 1] - d[rows, i]) * f

    return Composed(matrix, slope, curvature)


def leaky(slope: float, width: float, smooth: bool) -> tuple[Callable[[Array], Array], ...]:
    """sigma(t) = s t + (1 - s) rho(t) and its derivatives, rho a ReLU smoothed over the width w."""
    s, w = LD(slope), LD(width)
    if smooth:

        def root(t: Array) -> Array:
            return np.sqrt(t**2 + w**2)

        return (
            lambda t: s * t + (1 - s) * (t + root(t) - w) / 2,
            lambda t: s + (1 - s) * (1 + t / root(t)) / 2,
            lambda t: (1 - s) * w**2 / (2 * root(t) ** 3),
        )
    return (
        lambda t: s * t + (1 - s) * (np.clip(t, 0, w) ** 2 / (2 * w) + np.maximum(t - w, 0)),
        lambda t: s + (1 - s) * np.clip(t / w, 0, 1),
        lambda t: np.where((t > 0) & (t < w), (1 - s) / w, LD(0)),
    )


def network(
    theta: Parameters,
    image: tuple[int, int, int],
    layers: int,
    slope: float,
    width: float,
    smooth: bool,
    zero_mean: bool,
) -> Term:
    """The input convex network: V, then layers of positive kernels, then a positive sum."""
    first = theta["weight"] - theta["weight"].mean((2, 3), keepdims=True) if zero_mean else theta["weight"]
    kernels = [first, *(np.exp(theta[f"log_inner.{i}"]) for i in range(layers))]
    shape, channels = image[1:], image[0]
    matrices, biases = [], []
    for i, k in enumerate(kernels):
        matrix = correlation_layer(k, shape)
        shape = (shape[0] - k.shape[2] + 1, shape[1] - k.shape[3] + 1)
        matrices.append(each_channel(matrix, channels))
        biases.append(np.tile(np.repeat(theta[f"biases.{i}"], shape[0] * shape[1]), channels))
    hidden, outer = leaky(slope, width, smooth), leaky(0.0, width, smooth)
    a = np.exp(theta["log_scale"] + theta["log_weights"])
    weights = np.tile(np.repeat(a, shape[0] * shape[1]), channels)
    return Layered(matrices, biases, [hidden] * layers + [outer], weights)


def as_parameters(module: Any) -> dict[str, Array]:
    """The trained numbers of a module, by name, in extended precision."""
    return {name: p.detach().numpy().astype(LD) for name, p in module.named_parameters()}


def flattened(theta: Parameters) -> Array:
    """All numbers in the order of the names."""
    return np.concatenate([v.reshape(-1) for v in theta.values()])


def like(theta: Parameters, flat: Array) -> dict[str, Array]:
    """The reverse of :func:`flattened`."""
    found, start = {}, 0
    for name, v in theta.items():
        found[name] = flat[start : start + v.size].reshape(v.shape)
        start += v.size
    return found
