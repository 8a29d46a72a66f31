"""Saddle-point problems in their primal form: learned discretisations of total variation, and what is checked.

min_x max_y <Kx, y> + g(x) - f*(y) is min_x g(x) + f(Kx), with y^ = f'(K x^): both are written down here as energies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.certified import formulas
from benchmarks.certified.checks import Check, check_converged, check_errors
from benchmarks.certified.learning import Learned, random_loss
from benchmarks.certified.matrices import difference_matrices, same_correlation
from benchmarks.certified.newton import minimize_near
from benchmarks.certified.operators import OPERATORS, Measured, Rng, small
from benchmarks.certified.problems import randomize
from benchmarks.certified.terms import LD, Array, Energy, Grouped, extended, norm, quadratic
from models.saddle_points.learned_tv import Convexity, InitialKernels, LearnedTV
from recon.bilevel.piggyback import Piggyback
from recon.bilevel.saddle_objective import SaddleObjective
from recon.lower_level import PDHG, SaddleModel
from recon.operators import Identity


@dataclass(frozen=True)
class SaddleProblem:
    """A model of the project with data, and for any parameters its primal energy and the dual point of a primal one."""

    model: SaddleModel
    y: Tensor
    truth: Tensor
    build: Callable[[formulas.Parameters], tuple[Energy, Callable[[Array], Array]]]
    unknowns: int
    name: str


def _norm_profile(kind: str, weight: Any, nu: Any) -> Callable[[Array], tuple[Array, Array]]:
    def smoothed(r: Array) -> tuple[Array, Array]:
        root = np.sqrt(r**2 + nu**2)
        return weight / root, weight * nu**2 / root**3

    def fair(r: Array) -> tuple[Array, Array]:
        return weight / (nu + r), weight * nu / (nu + r) ** 2

    def huber(r: Array) -> tuple[Array, Array]:
        inside = r <= nu * weight
        return np.where(inside, 1 / nu, weight / np.where(inside, LD(1), r)), np.where(inside, 1 / nu, LD(0))

    return {"smoothed": smoothed, "fair": fair, "huber": huber}[kind]


def learned_tv(rng: Rng, dtype: torch.dtype, batch: int) -> SaddleProblem:
    """Random kernels, weights and moduli, with the identity or an operator."""
    name = str(rng.choice(["identity", "identity", "blur", "mask", "own_matrix", "ray_matrix", "odl_single"]))
    measured = OPERATORS[name](rng)
    if measured.image[0] > 1 or math.prod(measured.image) > 42:
        image = small(rng, 4, 6)
        measured = Measured(Identity(), np.eye(math.prod(image), dtype=LD), image)
    plain = isinstance(measured.operator, Identity)
    e, mu_v, mu = (float(10.0 ** rng.uniform(-2, 0)) for _ in range(3))
    count, kind = int(rng.integers(1, 4)), str(rng.choice(["averages", "random"]))
    model = LearnedTV(
        kernels=count,
        size=3,
        log_weight=rng.uniform(-4, 0),
        sum_constraint=bool(rng.integers(2)),
        convexity=Convexity(e, mu_v, 0.0 if plain else mu * measured.singular_values[1] ** 2),
        norm=str(rng.choice(["smoothed", "fair", "huber"])),  # type: ignore[arg-type]
        smoothing=float(10.0 ** rng.uniform(-2, 0)),
        initial=InitialKernels(kind, int(rng.integers(1000))),  # type: ignore[arg-type]
    ).to(dtype)
    randomize(rng, model, 0.1)
    model.measured_by(measured.operator)
    truth, y = random_data(rng, measured, batch, dtype)
    unknowns = math.prod(measured.image) * (1 + 2 * model.raw.shape[1])
    note = f"learned TV {model.norm} {type(measured.operator).__name__} mu={model.image_convexity:.3g}"
    return SaddleProblem(model, y, truth, _tv_builder(model, measured, extended(y.flatten(1))), unknowns, note)


def _tv_builder(
    model: LearnedTV, measured: Measured, data: Array
) -> Callable[[formulas.Parameters], tuple[Energy, Callable[[Array], Array]]]:
    """x = (u, v), v two components of J fields each; p^ = (Du - K^T v) / e is the dual solution, with Au - y."""
    n, shape, count = math.prod(measured.image), measured.image[1:], model.raw.shape[1]
    unknowns, e = n * (1 + 2 * count), LD(model.dual_convexity)
    first = np.eye(n, unknowns, dtype=LD)
    fields = np.stack([np.eye(count * n, unknowns, n + c * count * n, dtype=LD) for c in range(2)])
    a = measured.matrix @ first

    def build(theta: formulas.Parameters) -> tuple[Energy, Callable[[Array], Array]]:
        k = theta["raw"]
        if model.sum_constraint:
            k = k - k.mean((2, 3), keepdims=True) + LD(1) / k[0, 0].size
        gather = [np.concatenate([same_correlation(kernel, shape) for kernel in k[c]]).T for c in range(2)]
        differences = difference_matrices(shape)
        flux = np.concatenate([d @ first - g @ v for d, g, v in zip(differences, gather, fields, strict=True)])
        energy = Energy(
            quadratic(flux, LD(0), 1 / e),
            Grouped(fields, _norm_profile(model.norm, np.exp(theta["log_weight"]), LD(model.smoothing))),
            quadratic(np.concatenate(fields), LD(0), LD(model.field_convexity)),
            quadratic(a, data),
            quadratic(first, LD(0), LD(model.image_convexity)),
        )

        def dual(x: Array) -> Array:
            fit = [] if isinstance(measured.operator, Identity) else [x @ a.T - data]
            return np.concatenate([x @ flux.T / e, *fit], 1)

        return energy, dual

    return build


def random_data(rng: Rng, measured: Measured, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    truth = rng.random((batch, *measured.image))
    clean = (measured.matrix @ truth.reshape(batch, -1).T).T.astype(np.float64)
    clean = clean + 0.2 * np.abs(clean).mean() * rng.normal(size=clean.shape)
    shape = measured.operator.range_shape or measured.image
    return torch.from_numpy(truth).to(dtype), torch.from_numpy(clean.reshape(batch, *shape)).to(dtype)


def check_saddle(rng: Rng, problem: SaddleProblem) -> Iterable[Check]:
    """PDHG from a random start to a random accuracy: image, all of x, and y."""
    saddle = problem.model.saddle_point(problem.y)
    z = torch.from_numpy(rng.normal(size=(len(problem.y), saddle.operator.domain_size + saddle.operator.range_size)))
    x0, y0 = saddle.split((z * float(rng.choice([0.0, 1.0]))).to(problem.y))
    diagonal = bool(rng.random() < 0.3) and saddle.operator.absolute_sums() is not None
    solver = PDHG(int(rng.choice([20, 3000])), adaptive=bool(rng.integers(2)), diagonal=diagonal)
    goal = torch.from_numpy(float(problem.truth.double().norm()) * 10.0 ** rng.uniform(-15, 0, len(problem.y)))
    found = solver(saddle, x0, y0, goal)
    x, n = extended(found.x), math.prod(saddle.image_shape)
    energy, dual = problem.build(formulas.as_parameters(problem.model))
    at = minimize_near(energy, x)
    image = norm(x[:, :n] - at.x[:, :n])
    yield from check_errors(found.error, found.rounding, found.grade, image, at.accuracy, problem.name)
    yield from check_converged(found.status, goal, found.error, problem.name)
    # ||f''|| ||K|| bounds how the error of x^ becomes one of y^
    gain = saddle.norm / saddle.dual_convexity
    whole, other = norm(x - at.x), norm(extended(found.y) - dual(at.x))
    for i in range(len(x)):
        claimed, own = float(found.error[i]) * saddle.spread, float(at.accuracy[i])
        yield Check("error of x", claimed, float(whole[i]), own, f"{problem.name} image {i}")
        yield Check("dual error", float(found.dual_error[i]), float(other[i]), gain * own, f"{problem.name} image {i}")


def learned_saddle(rng: Rng, problem: SaddleProblem) -> Learned:
    """The objective of a saddle-point problem, with random options."""
    loss = random_loss(rng, extended(problem.truth.flatten(1)), tuple(problem.truth.shape[1:]), problem.unknowns)
    solver = PDHG(3000)
    iterations = int(rng.integers(1, 300)) if rng.random() < 0.2 else None
    piggyback = Piggyback(solver, str(rng.choice(["cg", "pdhg"])), iterations)
    objective = SaddleObjective(
        problem.model, problem.truth, problem.y, loss.project, solver, piggyback, max_adjoint_iterations=500
    )
    note = f"{problem.name} {type(loss.project).__name__} {piggyback.method} {piggyback.iterations}"

    def build(theta: formulas.Parameters) -> Energy:
        return problem.build(theta)[0]

    return Learned(objective, problem.model, loss, build, problem.unknowns, note)
