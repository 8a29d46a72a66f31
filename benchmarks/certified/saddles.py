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
