"""Regularizers as formulas of NumPy in extended precision, from the numbers that parametrize them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.certified.matrices import correlation, correlation_layer, difference_matrices, each_channel
from benchmarks.certified.terms import LD, Array, Composed, Grouped, Joint, Layered, Term

Parameters = Mapping[str, Array]


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


def _filters(theta: Parameters, unit_norm: bool, group: int = 1) -> Array:
    kernels = theta["weight"] - theta["weight"].mean((1, 2), keepdims=True)
    if unit_norm:
        squares = (kernels**2).sum((1, 2)).reshape(-1, group).mean(1)
        kernels = kernels / np.repeat(np.sqrt(squares), group)[:, None, None]
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


def _soft_maximum(z: Array, nu: Array) -> tuple[Array, Array]:
    """Gradient and Hessian of nu log sum_j cosh(z_j / nu), for z ``(batch, 4, m)``: a covariance over 2 * 4 cases."""
    t = z / nu
    size, top = np.abs(t), np.abs(t).max(1, keepdims=True)
    up = np.exp(size - top)
    total = (up * (1 + np.exp(-2 * size))).sum(1, keepdims=True)
    mean = -np.sign(t) * up * np.expm1(-2 * size) / total
    second = up * (1 + np.exp(-2 * size)) / total
    return mean, (np.eye(4)[:, :, None] * second[:, :, None] - mean[:, :, None] * mean[:, None]) / nu


def _smoothed_norm(z: Array, nu: Array) -> tuple[Array, Array]:
    root = np.sqrt((z**2).sum(1, keepdims=True) + nu**2)
    n = z / root
    return n, (np.eye(4)[:, :, None] - n[:, :, None] * n[:, None]) / root[:, None]


def multivariate(
    theta: Parameters,
    image: tuple[int, int, int],
    potential: str,
    unit_norm: bool,
    smallest_width: float,
    rho: float,
) -> Term:
    """Fields of Experts with potentials of four responses; with ``rho`` minus wider copies of themselves."""
    phi, curvature = (_soft_maximum, LD(0.5)) if potential == "soft_maximum" else (_smoothed_norm, LD(1))
    kernels = _filters(theta, unit_norm, 4)
    matrix, count = _bank(kernels, image)
    weight = np.exp(theta["log_scale"] + theta["log_weights"])
    width = LD(smallest_width) + np.exp(theta["log_widths"])
    groups = matrix.reshape(len(weight), 4, count, -1).transpose(1, 0, 2, 3).reshape(4, len(weight) * count, -1)
    w, nu = np.repeat(weight, count), np.repeat(width, count)
    if not rho:
        return Joint(groups, lambda z: w * phi(z, nu)[0], lambda z: w * phi(z, nu)[1])
    budget = _budget(kernels, np.repeat(theta["log_concavity"], 4), rho)[::4]
    wide = np.repeat(curvature * weight / budget, count)
    return Joint(
        groups, lambda z: w * (phi(z, nu)[0] - phi(z, wide)[0]), lambda z: w * (phi(z, nu)[1] - phi(z, wide)[1])
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


def network_kernels(theta: Parameters, layers: int, zero_mean: bool) -> list[Array]:
    """V, of zero mean or not, and the positive kernels of the layers behind it."""
    first = theta["weight"] - theta["weight"].mean((2, 3), keepdims=True) if zero_mean else theta["weight"]
    return [first, *(np.exp(theta[f"log_inner.{i}"]) for i in range(layers))]


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
    shape, channels = image[1:], image[0]
    matrices, biases = [], []
    for i, k in enumerate(network_kernels(theta, layers, zero_mean)):
        matrices.append(each_channel(correlation_layer(k, shape), channels))
        shape = (shape[0] - k.shape[2] + 1, shape[1] - k.shape[3] + 1)
        biases.append(np.tile(np.repeat(theta[f"biases.{i}"], shape[0] * shape[1]), channels))
    hidden, outer = leaky(slope, width, smooth), leaky(0.0, width, smooth)
    weights = np.repeat(np.exp(theta["log_scale"] + theta["log_weights"]), shape[0] * shape[1])
    return Layered(matrices, biases, [hidden] * layers + [outer], np.tile(weights, channels))


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
