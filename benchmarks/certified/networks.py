"""Relaxed input convex networks: saddle-point problems in the image and all activations, in their primal form."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.certified import formulas
from benchmarks.certified.matrices import correlation_layer
from benchmarks.certified.operators import Measured, Rng, Shape, small
from benchmarks.certified.problems import randomize
from benchmarks.certified.saddles import SaddleProblem, random_data
from benchmarks.certified.terms import LD, Array, Energy, Layered, Term, extended, quadratic
from models import InitialFilters, LeakyReLU
from models.regularizers.icnn import ICNN
from models.saddle_points.icnn_saddle import ICNNSaddle
from recon.operators import Identity, LinearOperator, Mask


class EpigraphDistance(Term):
    """dist((L x + b)_j, epi sigma)^2 / (2 eps), summed over pairs (u_j, z_j): L is ``(2, pairs, n)``, b for u."""

    def __init__(self, matrix: Array, bias: Array, slope: float, width: float, eps: float) -> None:
        self.matrix, self.bias, self.s, self.w, self.eps = matrix, bias, LD(slope), LD(width), LD(eps)
        self.sigma = formulas.leaky(slope, width, False)

    def _nearest(self, x: Array) -> tuple[Array, Array, Array, Array]:
        """u - t, z - sigma(t), the slope at t and the curvature there; zero distances inside."""
        u, z = x @ self.matrix[0].T + self.bias, x @ self.matrix[1].T
        value, first, second = self.sigma
        # (t - u) + (sigma(t) - z) sigma'(t) grows with t where sigma(t) > z: bisection between the flat pieces
        left, right = (u + self.s * z) / (1 + self.s**2), (u + z + (1 - self.s) * self.w / 2) / 2
        low, high = 0 * u, 0 * u + self.w
        for _ in range(80):
            t = (low + high) / 2
            above = (t - u) + (value(t) - z) * first(t) > 0
            low, high = np.where(above, low, t), np.where(above, t, high)
        t = np.where(left <= 0, left, np.where(right >= self.w, right, (low + high) / 2))
        outside = z < value(u)
        bend = np.where(outside & (left > 0) & (right < self.w), second(np.clip(t, self.w / 2**60, None)), 0)
        return np.where(outside, u - t, 0), np.where(outside, z - value(t), 0), first(t), bend

    def _parts(self, x: Array) -> tuple[Array, Array, Array]:
        """(I - P')/eps for every pair: the entries uu, uz, zz."""
        du, dz, slope, bend = self._nearest(x)
        distance = np.sqrt(du**2 + dz**2)
        length = np.sqrt(1 + slope**2)
        part = distance * bend / length**3
        across, active = part / (1 + part), (distance > 0).astype(LD)
        nu, nz = slope / length, -1 / length
        uu, uz, zz = nu * nu + across * nz * nz, nu * nz * (1 - across), nz * nz + across * nu * nu
        return active * uu / self.eps, active * uz / self.eps, active * zz / self.eps

    def dual(self, x: Array) -> Array:
        """The gradient in (u, z)."""
        du, dz, *_ = self._nearest(x)
        return np.concatenate([du, dz], 1) / self.eps

    def grad(self, x: Array) -> Array:
        du, dz, *_ = self._nearest(x)
        return (du @ self.matrix[0] + dz @ self.matrix[1]) / self.eps

    def product(self, x: Array, v: Array) -> Array:
        uu, uz, zz = self._parts(x)
        a, b = v @ self.matrix[0].T, v @ self.matrix[1].T
        return (uu * a + uz * b) @ self.matrix[0] + (uz * a + zz * b) @ self.matrix[1]

    def dense(self, x: Array) -> Array:
        uu, uz, zz = (t.astype(np.float64) for t in self._parts(x))
        a, b = self.matrix.astype(np.float64)
        mixed = np.einsum("bm,mi,mj->bij", uz, a, b, optimize=True)
        pure = [np.einsum("bm,mi,mj->bij", w, m, m, optimize=True) for w, m in ((uu, a), (zz, b))]
        return pure[0] + pure[1] + mixed + mixed.transpose(0, 2, 1)


def relaxed_network(rng: Rng, dtype: torch.dtype, batch: int) -> SaddleProblem:
    """Networks of one or two hidden layers whose constraints are relaxed."""
    image = small(rng, 4, 5)
    name = str(rng.choice(["identity", "mask"]))
    kept = rng.random(image) < 0.7
    matrix = np.diag(kept.reshape(-1).astype(LD)) if name == "mask" else np.eye(math.prod(image), dtype=LD)
    operator: LinearOperator = Mask(torch.from_numpy(kept)) if name == "mask" else Identity()
    measured = Measured(operator, matrix, image)
    layers, slope, width = int(rng.integers(1, 3)), float(rng.choice([0.0, 0.2])), float(10.0 ** rng.uniform(-2, 0))
    net = ICNN(
        filters=int(rng.integers(1, 3)),
        size=2,
        layers=layers,
        activation=LeakyReLU(slope, width, "huber"),
        log_weight=rng.uniform(-4, 0),
        zero_mean=bool(rng.integers(2)),
        initial_filters=InitialFilters("normal", int(rng.integers(1000))),
    ).to(dtype)
    randomize(rng, net, 0.2)
    eps, bent = float(10.0 ** rng.uniform(-1.5, 0)), float(10.0 ** rng.uniform(-1.5, 0))
    c, mu = float(rng.choice([1.0, 3.0])), float(rng.choice([0.0, 0.1]))
    mu = mu if name == "identity" else 0.3
    model = ICNNSaddle(net, image, operator, mu, c, eps, bent)
    truth, y = random_data(rng, measured, batch, dtype)
    build = _network_builder(net, measured, y, (mu, c, eps, bent))
    return SaddleProblem(model, y, truth, build, _unknowns(net, image), f"relaxed network {name} eps={eps:.3g}")


def _unknowns(net: ICNN, image: Shape) -> int:
    shape, total = image[1:], math.prod(image)
    for kernel in net.convolutions()[:-1]:
        shape = shape[0] - kernel.shape[2] + 1, shape[1] - kernel.shape[3] + 1
        total += kernel.shape[0] * math.prod(shape)
    return total


def _network_builder(
    net: ICNN, measured: Measured, y: Tensor, weights: tuple[float, float, float, float]
) -> Callable[[formulas.Parameters], tuple[Energy, Callable[[Array], Array]]]:
    mu, c, eps, bent = weights
    image, layers, unknowns = measured.image, net.layers, _unknowns(net, measured.image)
    slope, width = net.hidden.slope, net.hidden.width
    data, n = extended(y).reshape(len(y), -1), math.prod(image)
    first = np.eye(n, unknowns, dtype=LD)
    a, rest = measured.matrix @ first, np.eye(unknowns - n, unknowns, n, dtype=LD)
    _, rise, _ = outer = formulas.leaky(0.0, width, False)

    def build(theta: formulas.Parameters) -> tuple[Energy, Callable[[Array], Array]]:
        theta = {name.removeprefix("network."): v for name, v in theta.items()}
        shape, before, start = image[1:], first, n
        constraints: list[EpigraphDistance] = []
        for i, k in enumerate(formulas.network_kernels(theta, layers, net.zero_mean)):
            layer = correlation_layer(k, shape) @ before
            shape = shape[0] - k.shape[2] + 1, shape[1] - k.shape[3] + 1
            bias = np.repeat(theta[f"biases.{i}"], math.prod(shape))
            if i < layers:
                before = np.eye(len(layer), unknowns, start, dtype=LD)
                start += len(layer)
                constraints.append(EpigraphDistance(np.stack([layer, before]), bias, slope, width, eps))
        strength = np.repeat(np.exp(theta["log_scale"] + theta["log_weights"]), math.prod(shape))
        energy = Energy(
            *constraints,
            Layered([layer], [bias], [outer], strength),
            quadratic(a, data, LD(c)),
            quadratic(first, LD(0), LD(mu)),
            quadratic(rest, LD(0), bent),
        )

        def dual(x: Array) -> Array:
            parts = [t.dual(x) for t in constraints] + [strength * rise(x @ layer.T + bias)]
            fit = [] if isinstance(measured.operator, Identity) else [LD(c) * (x @ a.T - data)]
            return np.concatenate([*parts, *fit], 1)

        return energy, dual

    return build
