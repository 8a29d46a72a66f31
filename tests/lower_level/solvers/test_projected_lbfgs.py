"""Minimizers over x >= 0 against scipy and dense Newton steps on the free pixels; the certificate is true."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recon.bilevel import BilevelObjective
from recon.lower_level import LBFGS, Energy, ProjectedLBFGS, Regularizer, Status, projected_gradient
from recon.operators import Blur, LinearOperator, ParallelBeam, RayTransform
from tests.lower_level.problems import Quadratic, energy_hessians, make, normal, norms, smooth_image


def frozen(regularizer: Regularizer) -> Regularizer:
    return regularizer.requires_grad_(False)


def quadratic(seed: int) -> tuple[Energy, Tensor]:
    """Energies 1/2 <x, (1 + H) x> - <y, x>, and their minimizers over x >= 0 by scipy's active sets (NNLS)."""
    regularizer, y = Quadratic(seed=seed), normal(3, 1, 3, 4, seed=seed + 9)
    root = torch.linalg.cholesky(torch.eye(12, dtype=torch.float64) + regularizer.h)
    right = torch.linalg.solve_triangular(root, y.flatten(1).T, upper=False).T
    exact = np.stack([scipy.optimize.nnls(root.T.numpy(), b.numpy())[0] for b in right])
    return Energy(y, frozen(regularizer)), torch.from_numpy(exact).view_as(y)


def energies() -> dict[str, Energy]:
    image = smooth_image(2, 1, 8, 8, seed=3)  # about half of it is negative
    blur, rays = Blur(0.7, (1, 8, 8), "reflect"), RayTransform(ParallelBeam.equispaced((8, 8), 1.0, 6))

    def data(operator: LinearOperator) -> Tensor:
        clean = operator(image.clamp_min(0))
        return clean + normal(*clean.shape, scale=0.2)

    return {
        "denoising": Energy(image, frozen(make("tv"))),
        "blur": Energy(data(blur), frozen(make("crr")), blur, mu=0.05),
        "ct": Energy(data(rays), frozen(make("tv")), rays, mu=0.2),
    }


def start_of(energy: Energy) -> Tensor:
    return torch.zeros_like(energy.operator.adjoint(energy.y))


def reference(energy: Energy) -> Tensor:
    """scipy's L-BFGS-B, image by image, and Newton's method on its free pixels."""
    results = []
    for i in range(len(energy.y)):
        one = energy.select(torch.tensor([i]))
        shape = start_of(one).shape

        def both(v: np.ndarray, one: Energy = one, shape: torch.Size = shape) -> tuple[float, np.ndarray]:
            value, grad = one.value_and_grad(torch.from_numpy(v.copy()).view(shape))
            return float(value), grad.flatten().numpy().copy()

        n = math.prod(shape)
        options = {"maxiter": 5000, "maxfun": 10_000, "ftol": 1e-16, "gtol": 1e-10}
        found = scipy.optimize.minimize(
            both, np.ones(n), jac=True, method="L-BFGS-B", bounds=[(0, None)] * n, options=options
        )
        x = torch.from_numpy(found.x).view(shape)
        grad = one.grad(x)
        free = (x > 1e-7).flatten()
        x = torch.where(x > 1e-7, x, 0.0)
        for _ in range(5):
            grad = one.grad(x)
            hessian = energy_hessians(one, x)[0][free][:, free]
            x = x.flatten()
            x[free] -= torch.linalg.solve(hessian, grad.flatten()[free])
            x = x.view(shape)
        grad = one.grad(x)
        assert bool((x >= 0).all())
        assert bool((grad.flatten()[~free] >= -1e-12).all())  # optimal, and not only for these free pixels
        assert float(grad.flatten()[free].abs().max()) <= 1e-11
        results.append(x)
    return torch.cat(results)


@settings(max_examples=10)
@given(seed=st.integers(0, 10_000), log_accuracy=st.floats(-9, 0))
def test_quadratic_problems_have_the_solutions_of_active_set_methods(seed: int, log_accuracy: float) -> None:
    energy, exact = quadratic(seed)
    accuracy = 10**log_accuracy
    solution = ProjectedLBFGS()(energy, normal(*energy.y.shape, seed=seed + 1), accuracy)
    assert solution.converged
    assert bool((solution.x >= 0).all())
    assert bool((norms(solution.x - exact) <= solution.error + 1e-13).all())
    assert bool((solution.error <= accuracy).all())


@settings(max_examples=10)
@given(seed=st.integers(0, 10_000), zeros=st.floats(0, 1))
def test_the_certificate_holds_at_any_point(seed: int, zeros: float) -> None:
    energy, exact = quadratic(seed)
    keep = torch.rand(exact.shape, generator=torch.Generator().manual_seed(seed)) > zeros
    for x in (normal(*exact.shape, seed=seed + 2).clamp_min(0) * keep, exact + 0.1 * keep, exact):
        p = projected_gradient(x, energy.grad(x))
        assert bool((norms(x - exact) <= norms(p) / energy.strong_convexity + 1e-12).all())
    assert float(norms(projected_gradient(exact, energy.grad(exact))).max()) < 1e-10


@pytest.mark.parametrize("name", ["denoising", "blur", "ct"])
def test_reported_error_is_true(name: str) -> None:
    energy = energies()[name]
    exact = reference(energy)
    active = (exact == 0).flatten(1).sum(1)
    assert bool(((active > 3) & (active < exact[0].numel() - 3)).all())
    start = start_of(energy)
    assert float((LBFGS()(energy, start, 1e-3).x - exact).abs().max()) > 0.01  # the constraint matters
    for precondition in (False, True):
        accuracy = torch.tensor([1e-8, 1e-2], dtype=torch.float64)
        solution = ProjectedLBFGS(precondition=precondition)(energy, start, accuracy)
        assert solution.converged
        assert bool((solution.x >= 0).all())
        assert bool((norms(solution.x - exact) <= solution.error + 1e-11).all())
        assert bool((solution.error <= accuracy).all())
        torch.testing.assert_close(solution.gradient, energy.grad(solution.x), rtol=1e-6, atol=1e-10)
        evaluations = solution.evaluations.tolist()
        assert evaluations[1] < evaluations[0] <= 400
        one = torch.tensor([1])
        alone = ProjectedLBFGS(precondition=precondition)(energy.select(one), start[one], 1e-2)
        assert int(alone.evaluations) == pytest.approx(evaluations[1], abs=2)


def test_without_active_constraints_it_is_the_unconstrained_minimizer() -> None:
    y = smooth_image(2, 1, 7, 6).abs() + 2
    energy = Energy(y, frozen(make("tv")))
    free, bound = LBFGS()(energy, y, 1e-9), ProjectedLBFGS()(energy, y, 1e-9)
    torch.testing.assert_close(free.x, bound.x, rtol=0, atol=2e-9)
    torch.testing.assert_close(free.error, bound.error, rtol=1, atol=1e-9)


def test_limits_and_floors_are_reported_and_the_error_stays_true() -> None:
    energy = energies()["denoising"]
    exact = reference(energy)
    start = torch.stack((30 * normal(1, 8, 8), torch.full((1, 8, 8), math.nan, dtype=torch.float64)))
    for limit in (1, 4):
        solution = ProjectedLBFGS(max_iterations=limit)(energy, start, 1e-9)
        assert solution.status.tolist() == [Status.ITERATION_LIMIT, Status.NOT_FINITE]
        assert float(norms(solution.x - exact)[0]) <= float(solution.error[0])
        assert float(solution.error[1]) == math.inf
    floor = ProjectedLBFGS()(energy, start_of(energy), 1e-300)
    assert floor.status.tolist() == [Status.PRECISION_FLOOR] * 2
    assert bool((norms(floor.x - exact) <= floor.error + 1e-11).all())
    assert float(floor.error.max()) < 1e-10


def test_training_with_it_is_refused_but_no_reconstruction() -> None:
    image = smooth_image(2, 1, 6, 5)
    with pytest.raises(ValueError, match=r"ProjectedLBFGS cannot be used in training"):
        BilevelObjective(make("tv"), image, image, solver=ProjectedLBFGS())
    assert ProjectedLBFGS()(Energy(image, make("tv")), image, 1e-3).converged


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10_000),
    log_condition=st.floats(0, 4),
    log_mu=st.floats(-6, 0),
    noise=st.sampled_from([0.01, 1.0, 10.0]),
    single=st.booleans(),
)
def test_the_certificate_holds_for_ill_conditioned_operators(
    seed: int, log_condition: float, log_mu: float, noise: float, single: bool
) -> None:
    """Data of any size, a modulus that is mu alone, float32: against active sets, refined on the free pixels."""
    generator = np.random.default_rng(seed)
    shape, rows = (1, 4, 5), int(generator.integers(10, 40))
    left, right = (np.linalg.qr(generator.normal(size=(n, n)))[0] for n in (rows, 20))
    count = min(rows, 20)
    a = (left[:, :count] * np.geomspace(1, 10**-log_condition, count)) @ right[:count]
    y = a @ np.abs(generator.normal(size=20)) + noise * generator.normal(size=rows)
    dtype = torch.float32 if single else torch.float64
    operator, data = Dense(torch.from_numpy(a).to(dtype), shape), torch.from_numpy(y).to(dtype)[None]
    energy = Energy(data, Nothing(), operator, mu=10**log_mu)
    exact = active_set(operator.matrix.double().numpy(), data[0].double().numpy(), energy.mu)
    solution = ProjectedLBFGS(max_iterations=150)(energy, torch.ones(1, *shape, dtype=dtype), 1e-5)
    assert bool((solution.x >= 0).all())
    distance = float((solution.x.double().flatten() - exact).norm())
    assert distance <= float(solution.error) + 1e-13 * (1 + float(exact.norm())) / energy.mu


class Nothing(Regularizer):
    """R = 0."""

    def forward(self, x: Tensor) -> Tensor:
        return 0 * x.flatten(1).sum(1)

    def convexity(self) -> float:
        return 0.0

    def smoothness(self) -> float:
        return 0.0


class Dense(LinearOperator):
    def __init__(self, matrix: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__(shape, (len(matrix),), norm_bound=float(torch.linalg.matrix_norm(matrix.double(), 2)) * 1.001)
        self.matrix = matrix

    def _forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.T

    def _adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.matrix).view(len(y), *self.domain_shape)  # type: ignore[misc]


def active_set(a: np.ndarray, y: np.ndarray, mu: float) -> Tensor:
    """argmin over x >= 0 of 1/2 ||Ax - y||^2 + mu/2 ||x||^2, whose optimality is asserted."""
    n = a.shape[1]
    rows, right = np.vstack([a, math.sqrt(mu) * np.eye(n)]), np.concatenate([y, np.zeros(n)])
    free = scipy.optimize.nnls(rows, right)[0] > 0
    x = np.zeros(n)
    x[free] = np.linalg.lstsq(rows[:, free], right, rcond=None)[0]
    grad = rows.T @ (rows @ x - right)
    assert (x >= 0).all()
    assert (grad[~free] >= -1e-10 * np.abs(rows.T @ right).max()).all()
    return torch.from_numpy(x)


def test_bad_options_are_refused() -> None:
    for make_solver, message in (
        (lambda: ProjectedLBFGS(memory=0), "memory is 0, but must be at least 1"),
        (lambda: ProjectedLBFGS(armijo=0.5), r"armijo is 0\.5"),
    ):
        with pytest.raises(ValueError, match=message):
            make_solver()
