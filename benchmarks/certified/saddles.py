"""Saddle-point problems: learned discretisations of total variation and relaxed networks, in their primal form.

min_x max_y <Kx, y> + g(x) - f*(y) is min_x g(x) + f(Kx), with y^ = f'(K x^): both are written down here as energies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.certified import formulas
from benchmarks.certified.energies import Check
from benchmarks.certified.learning import Loss
from benchmarks.certified.newton import (
    LD,
    Array,
    Composed,
    Energy,
    Grouped,
    Minimum,
    Term,
    derivative,
    extended,
    minimize,
    norm,
    quadratic,
    solve_linear,
)
from benchmarks.certified.problems import OPERATORS, Measured, Rng, Shape
from models.icnn import ICNN
from models.icnn_saddle import ICNNSaddle
from models.learned_tv import LearnedTV
from recon.bilevel.loss import NegativePSNR, SquaredError
from recon.bilevel.objective import Accuracy
from recon.bilevel.piggyback import Piggyback
from recon.bilevel.saddle_objective import SaddleObjective
from recon.lower_level import PDHG, SaddleModel, Status
from recon.operators import Identity, LinearOperator, Mask


@dataclass(frozen=True)
class SaddleProblem:
    """A model of the project with data, and for any parameters its primal energy and the dual point of a primal one."""

    model: SaddleModel
    y: Tensor
    truth: Tensor
    build: Callable[[formulas.Parameters], tuple[Energy, Callable[[Array], Array]]]
    unknowns: int
    name: str

    @property
    def theta(self) -> dict[str, Array]:
        """The current parameters."""
        return formulas.as_parameters(self.model)


# --- total variation with learned discretisation ---------------------------------------------------------------------


def same_correlation(kernel: Array, shape: tuple[int, int]) -> Array:
    """(K p)[q] = sum_r k[r] p[q + r - s // 2], zero outside the image."""
    return (kernel.reshape(-1) @ _same_shifts(kernel.shape, shape)).reshape(shape[0] * shape[1], -1)


@lru_cache(maxsize=64)
def _same_shifts(size: tuple[int, int], shape: tuple[int, int]) -> Array:
    """The matrices of kernels with a single one, flat."""
    height, width = shape
    matrix = np.zeros((*size, height, width, height, width), dtype=LD)
    for a in range(size[0]):
        for b in range(size[1]):
            for i in range(height):
                for j in range(width):
                    p, q = i + a - size[0] // 2, j + b - size[1] // 2
                    if 0 <= p < height and 0 <= q < width:
                        matrix[a, b, i, j, p, q] = 1
    return matrix.reshape(size[0] * size[1], -1)


def _norm_profile(kind: str, weight: Any, nu: float) -> Callable[[Array], tuple[Array, Array]]:
    n = LD(nu)

    def smoothed(r: Array) -> tuple[Array, Array]:
        root = np.sqrt(r**2 + n**2)
        return weight / root, weight * n**2 / root**3

    def fair(r: Array) -> tuple[Array, Array]:
        return weight / (n + r), weight * n / (n + r) ** 2

    def huber(r: Array) -> tuple[Array, Array]:
        inside = r <= n * weight
        return np.where(inside, 1 / n, weight / np.where(inside, LD(1), r)), np.where(inside, 1 / n, LD(0))

    return {"smoothed": smoothed, "fair": fair, "huber": huber}[kind]


def learned_tv(rng: Rng, dtype: torch.dtype, batch: int) -> SaddleProblem:
    """Random kernels, weights and moduli, with the identity or an operator."""
    name = str(rng.choice(["identity", "identity", "blur", "mask", "own_matrix", "ray_matrix", "odl_single"]))
    measured = OPERATORS[name](rng)
    if math.prod(measured.image) > 42 or min(measured.image[1:]) < 3:
        image = (1, int(rng.integers(4, 7)), int(rng.integers(4, 7)))
        measured = Measured(Identity(), np.eye(math.prod(image), dtype=LD), image)
        name = "identity"
    kernels = int(rng.integers(1, 4))
    e, mu_v, mu = (float(10.0 ** rng.uniform(-2, 0)) for _ in range(3))
    kind, nu = str(rng.choice(["smoothed", "fair", "huber"])), float(10.0 ** rng.uniform(-2, 0))
    constrained = bool(rng.integers(2))
    mu = 0.0 if name == "identity" else mu * measured.singular_values[1] ** 2
    model = LearnedTV(
        kernels=kernels,
        size=3,
        initial=str(rng.choice(["averages", "random"])),  # type: ignore[arg-type]
        log_weight=rng.uniform(-4, 0),
        sum_constraint=constrained,
        dual_convexity=e,
        field_convexity=mu_v,
        image_convexity=mu,
        norm=kind,  # type: ignore[arg-type]
        smoothing=nu,
        seed=int(rng.integers(1000)),
    ).to(dtype)
    with torch.no_grad():
        model.raw += 0.1 * torch.from_numpy(rng.normal(size=tuple(model.raw.shape))).to(dtype)
    model.measured_by(measured.operator)
    image, n = measured.image, math.prod(measured.image)
    truth, y = _data(rng, measured, batch, dtype)
    data = extended(y).reshape(batch, -1)
    down, right = formulas.difference_matrices(image[1:])
    first = np.eye(n, n * (1 + 2 * kernels), dtype=LD)
    a = measured.matrix @ first
    fields = np.stack([np.eye(kernels * n, n * (1 + 2 * kernels), n + c * kernels * n, dtype=LD) for c in range(2)])

    def build(theta: formulas.Parameters) -> tuple[Energy, Callable[[Array], Array]]:
        k = theta["raw"]
        if constrained:
            k = k - k.mean((2, 3), keepdims=True) + LD(1) / 9
        weight = np.exp(theta["log_weight"])
        gather = [np.concatenate([same_correlation(k[c, j], image[1:]) for j in range(kernels)]).T for c in range(2)]
        flux = np.concatenate([d @ first - gather[c] @ fields[c] for c, d in enumerate((down, right))])
        terms: list[Term] = [
            quadratic(flux, LD(0) * flux[None, :, 0], 1 / LD(e)),
            Grouped(fields, _norm_profile(kind, weight, nu)),
            quadratic(np.concatenate(fields), LD(0) * data[:, :1], LD(mu_v)),
            quadratic(a, data, LD(1)),
        ]
        if mu:
            terms.append(quadratic(first, LD(0) * data[:, :1], LD(mu)))

        def dual(x: Array) -> Array:
            p = x @ flux.T / LD(e)
            return p if name == "identity" else np.concatenate([p, x @ a.T - data], 1)

        return Energy(*terms), dual

    return SaddleProblem(model, y, truth, build, n * (1 + 2 * kernels), f"learned TV {kind} {name} mu={mu:.3g}")


def _data(rng: Rng, measured: Measured, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    truth = rng.random((batch, *measured.image))
    clean = (measured.matrix @ truth.reshape(batch, -1).T).T.astype(np.float64)
    clean = clean + 0.2 * np.abs(clean).mean() * rng.normal(size=clean.shape)
    shape = measured.operator.range_shape or measured.image
    return torch.from_numpy(truth).to(dtype), torch.from_numpy(clean.reshape(batch, *shape)).to(dtype)


# --- networks --------------------------------------------------------------------------------------------------------


class EpigraphDistance(Term):
    """dist((L x + b)_j, epi sigma)^2 / (2 eps), summed over pairs (u_j, z_j): L is ``(2, pairs, n)``, b for u."""

    def __init__(self, matrix: Array, bias: Array, slope: float, width: float, eps: float) -> None:
        self.matrix, self.bias, self.s, self.w, self.eps = matrix, bias, LD(slope), LD(width), LD(eps)
        self.sigma = formulas.leaky(slope, width, False)
        self.double = matrix.astype(np.float64)

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
        a, b = self.double
        mixed = np.einsum("bm,mi,mj->bij", uz, a, b, optimize=True)
        pure = [np.einsum("bm,mi,mj->bij", w, m, m, optimize=True) for w, m in ((uu, a), (zz, b))]
        return sum(pure) + mixed + mixed.transpose(0, 2, 1)

    def size(self, x: Array) -> Array:
        top = float(np.linalg.norm(self.double))
        inner = norm(x @ self.matrix[0].T) + norm(x @ self.matrix[1].T) + norm(self.bias + 0 * (x @ self.matrix[0].T))
        return top * inner / self.eps


def relaxed_network(rng: Rng, dtype: torch.dtype, batch: int) -> SaddleProblem:
    """Networks of one or two hidden layers whose constraints are relaxed."""
    image: Shape = (1, int(rng.integers(4, 6)), int(rng.integers(4, 6)))
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
        slope=slope,
        width=width,
        activation="huber",
        log_weight=rng.uniform(-4, 0),
        initial_filters="normal",
        zero_mean=bool(rng.integers(2)),
        seed=int(rng.integers(1000)),
    ).to(dtype)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.2 * torch.from_numpy(np.asarray(rng.normal(size=tuple(p.shape)))).to(p)
    eps, bent = float(10.0 ** rng.uniform(-1.5, 0)), float(10.0 ** rng.uniform(-1.5, 0))
    c, mu = float(rng.choice([1.0, 3.0])), float(rng.choice([0.0, 0.1]))
    mu = mu if name == "identity" else 0.3
    model = ICNNSaddle(net, image, operator, mu, c, eps, bent)
    truth, y = _data(rng, measured, batch, dtype)
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
    plain = isinstance(measured.operator, Identity)
    image, layers, unknowns = measured.image, net.layers, _unknowns(net, measured.image)
    slope, width, centred = net.hidden.slope, net.hidden.width, net.zero_mean
    data, n = extended(y).reshape(len(y), -1), math.prod(image)
    first = np.eye(n, unknowns, dtype=LD)
    rest = np.eye(unknowns - n, unknowns, n, dtype=LD)
    a, zero = measured.matrix @ first, LD(0) * data[:, :1]

    def build(theta: formulas.Parameters) -> tuple[Energy, Callable[[Array], Array]]:
        weight = theta["network.weight"]
        kernels = [weight - weight.mean((2, 3), keepdims=True) if centred else weight]
        kernels += [np.exp(theta[f"network.log_inner.{i}"]) for i in range(layers)]
        shape, before, start = image[1:], first, n
        terms: list[Any] = []
        for i, k in enumerate(kernels):
            layer = formulas.correlation_layer(k, shape) @ before
            shape = shape[0] - k.shape[2] + 1, shape[1] - k.shape[3] + 1
            bias = np.repeat(theta[f"network.biases.{i}"], shape[0] * shape[1])
            if i < layers:
                before = np.eye(len(layer), unknowns, start, dtype=LD)
                start += len(layer)
                terms.append(EpigraphDistance(np.stack([layer, before]), bias, slope, width, eps))
                continue
            strength = np.exp(theta["network.log_scale"] + theta["network.log_weights"])
            strength = np.repeat(strength, shape[0] * shape[1])
            _, rise, curve = formulas.leaky(0.0, width, False)

            def last(u: Array, bias: Array = bias, strength: Array = strength, rise: Any = rise) -> Array:
                return strength * rise(u + bias)

            def bend(u: Array, bias: Array = bias, strength: Array = strength, curve: Any = curve) -> Array:
                return strength * curve(u + bias)

            terms.append(Composed(layer, last, bend, bias))
        outer = terms[-1]
        energy = Energy(*terms, quadratic(a, data, LD(c)), quadratic(first, zero, LD(mu)), quadratic(rest, zero, bent))

        def dual(x: Array) -> Array:
            parts = [t.dual(x) for t in terms[:-1]] + [outer.slope(x @ outer.matrix.T)]
            return np.concatenate(parts if plain else [*parts, LD(c) * (x @ a.T - data)], 1)

        return energy, dual

    return build


# --- what is checked -------------------------------------------------------------------------------------------------


def reference(problem: SaddleProblem, x: Tensor) -> tuple[Minimum, Array]:
    """The primal solution, from x, and the dual one."""
    energy, dual = problem.build(problem.theta)
    start = torch.where(torch.isfinite(x), x, torch.zeros_like(x))
    at = minimize(energy, extended(start))
    zero = minimize(energy, LD(0) * at.x) if not bool((at.accuracy < 1e-6).all()) else at
    at = zero if bool((zero.accuracy < at.accuracy).all()) else at
    return at, dual(at.x)


def check_saddle(rng: Rng, problem: SaddleProblem) -> Iterable[Check]:
    """PDHG from a random start to a random accuracy: image, all of x, and y."""
    saddle = problem.model.saddle_point(problem.y)
    z = torch.from_numpy(rng.normal(size=(len(problem.y), saddle.operator.domain_size + saddle.operator.range_size)))
    x0, y0 = saddle.split((z * float(rng.choice([0.0, 1.0]))).to(problem.y))
    limit = int(rng.choice([20, 3000]))
    diagonal = bool(rng.random() < 0.3) and saddle.operator.absolute_sums() is not None
    solver = PDHG(limit, adaptive=bool(rng.integers(2)), diagonal=diagonal)
    size = float(problem.truth.double().norm())
    goal = torch.from_numpy(size * 10.0 ** rng.uniform(-15, 0, len(problem.y)))
    found = solver(saddle, x0, y0, goal)
    at, y = reference(problem, found.x)
    x, n = extended(found.x), math.prod(saddle.image_shape)
    image, whole = norm(x[:, :n] - at.x[:, :n]), norm(x - at.x)
    dual = norm(extended(found.y) - y)
    # ||f''|| ||K|| bounds how the error of x^ becomes one of y^
    gain = saddle.norm / saddle.dual_convexity
    for i in range(len(x)):
        note = f"{problem.name} image {i} {Status(int(found.status[i])).name} asked {float(goal[i]):.3g}"
        own = float(at.accuracy[i])
        error, spread = float(found.error[i]), saddle.spread
        yield Check("error", error, float(image[i]), own, note)
        yield Check("error of x", error * spread, float(whole[i]), own, note)
        yield Check("dual error", float(found.dual_error[i]), float(dual[i]), gain * own, note)
        if found.status[i] == Status.CONVERGED:
            yield Check("converged", float(goal[i]), error, 0.0, note)


def check_saddle_learning(rng: Rng, problem: SaddleProblem) -> Iterable[Check]:
    """Intervals of the loss, and hypergradients with their bounds."""
    saddle = problem.model.saddle_point(problem.y)
    unknowns, n, batch = problem.unknowns, math.prod(saddle.image_shape), len(problem.y)
    inner, target = np.zeros((1, unknowns)), np.zeros((batch, unknowns), dtype=LD)
    inner[:, :n], target[:, :n] = 1, extended(problem.truth).reshape(batch, -1)
    psnr = rng.random() < 0.3
    loss = Loss(NegativePSNR() if psnr else SquaredError(), inner, target, 1.0 if psnr else 0.0)
    solver = PDHG(3000)
    piggyback = Piggyback(
        solver, str(rng.choice(["cg", "pdhg"])), int(rng.integers(1, 300)) if rng.random() < 0.2 else None
    )
    objective = SaddleObjective(
        problem.model, problem.truth, problem.y, loss.project, solver, piggyback, max_adjoint_iterations=500
    )
    accuracy = float(problem.truth.double().norm()) * 10.0 ** rng.uniform(-13, 0)
    goal = Accuracy(accuracy, objective._modulus() * accuracy * 10.0 ** rng.uniform(-2, 2))
    evaluation = objective.evaluate(goal, None, bool(rng.random() < 0.8))
    at, _ = reference(problem, evaluation.x[:, :unknowns])
    note = (
        f"{problem.name} {type(loss.project).__name__} {piggyback.method} {piggyback.iterations} asked {accuracy:.3g}"
    )
    distance = norm(extended(evaluation.x)[:, :n] - at.x[:, :n])
    for i in range(batch):
        yield Check("error", float(evaluation.error[i]), float(distance[i]), float(at.accuracy[i]), note)
    exact, own, value = loss.value(at.x).mean(), loss.uncertainty(at), LD(evaluation.value)
    if not math.isfinite(own):
        return
    yield Check("below", float(value - LD(evaluation.lower)), float(value - exact), own, note)
    yield Check("above", float(LD(evaluation.upper) - value), float(exact - value), own, note)
    found = objective.hypergradient(evaluation, goal, bound=True)
    gradient, own = _hypergradient(problem, loss, at)
    true = float(np.sqrt(((extended(found.z) - gradient) ** 2).sum()))
    label = f"{note} |z| {float(found.z.norm()):.3g}{'' if found.certified else ' not certified'}"
    yield Check("omega", found.error, true, own, label, counts=found.certified)


def _hypergradient(problem: SaddleProblem, loss: Loss, at: Minimum) -> tuple[Array, float]:
    theta = problem.theta
    w, error = solve_linear(problem.build(theta)[0], at, loss.slope(at.x))
    weighted = loss.weight(at.x)[:, None] * w / len(w)

    def paired(flat: Array) -> Any:
        return (problem.build(formulas.like(theta, flat))[0].grad(at.x) * weighted).sum()

    gradient, own = derivative(paired, formulas.flattened(theta))
    relative = (at.accuracy / norm(at.x) + error / np.maximum(norm(w), LD(1e-300))).max()
    return -gradient, own + 1e3 * float(relative) * float(np.sqrt((gradient**2).sum()))
