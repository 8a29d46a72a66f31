"""Hypergradients against finite differences and closed forms, and the bound of their error."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from recon.bilevel import Accuracy, BilevelObjective, SquaredError
from recon.bilevel.hypergradient import error_bound
from recon.lower_level import FISTA, Energy, Grade, KullbackLeibler, Regularizer, WeightedSquaredL2
from recon.operators import Blur
from tests.bilevel.known import KnownQuadratic
from tests.lower_level.problems import (
    REGULARIZERS,
    Quadratic,
    energy_hessians,
    exact_minimizer,
    make,
    normal,
    norms,
    smooth_image,
)

SHAPE = (3, 1, 5, 6)
TIGHT = Accuracy(1e-10, 1e-11)


def flat(regularizer: Regularizer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in regularizer.trainable()])


def assign(regularizer: Regularizer, theta: Tensor) -> None:
    params = regularizer.trainable()
    with torch.no_grad():
        for p, part in zip(params, theta.split([p.numel() for p in params]), strict=True):
            p.copy_(part.view_as(p))


def problem(name: str, seed: int = 0, kind: str = "denoising", spread: float = 0.3) -> BilevelObjective:
    target = smooth_image(*SHAPE, seed=seed)
    regularizer = make(name, seed, spread)
    if kind == "deblurring":
        operator = Blur(0.6, SHAPE[1:], "reflect")
        y = operator(target) + normal(*SHAPE, seed=seed + 9, scale=0.1)
        mu = 0.3 + max(0.0, -regularizer.convexity())
        return BilevelObjective(regularizer, target, y, operator, mu=mu)
    y = target + normal(*SHAPE, seed=seed + 9, scale=0.3)
    if kind == "counts":
        return BilevelObjective(
            regularizer, target.abs(), y.abs(), fidelity=KullbackLeibler(0.5), mu=0.3 - regularizer.convexity()
        )
    if kind == "weights":
        weights = 0.3 + normal(*SHAPE[2:], seed=3).abs()
        mu = max(0.0, -regularizer.convexity())
        return BilevelObjective(regularizer, target, y, fidelity=WeightedSquaredL2(weights), mu=mu)
    mu = 0.3 + max(0.0, -regularizer.convexity()) if name == "foe_student" else 0.0
    return BilevelObjective(regularizer, target, y, mu=mu)


def energy_of(objective: BilevelObjective) -> Energy:
    return Energy(objective.y, objective.regularizer, objective.operator, objective.fidelity, objective.mu)


def exact_loss(objective: BilevelObjective) -> float:
    x = exact_minimizer(energy_of(objective), objective.target.clone())
    return float(objective.loss.value(x, objective.target).mean())


def exact_gradient(objective: BilevelObjective) -> Tensor:
    """By dense linear algebra at exact minimizers."""
    energy = energy_of(objective)
    x = exact_minimizer(energy, objective.target.clone())
    b = (x - objective.target).flatten(1)
    w = torch.linalg.solve(energy_hessians(energy, x), b).view_as(x)
    return -torch.cat([g.flatten() for g in energy.parameter_vjp(x, w)]) / len(x)


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "denoising") for name in REGULARIZERS]
    + [("tv", "deblurring"), ("foe_weak_l1", "deblurring"), ("foe_l1", "counts"), ("wcrr", "weights")],
)
def test_against_finite_differences_of_the_exact_loss(name: str, kind: str) -> None:
    objective = problem(name, kind=kind)
    z = objective.hypergradient(objective.evaluate(TIGHT), TIGHT).z
    assert z.dtype == torch.float64
    theta, h = flat(objective.regularizer), 1e-5
    torch.testing.assert_close(z, exact_gradient(objective), rtol=1e-6, atol=1e-8)
    for seed in range(2):
        d = normal(len(theta), seed=seed)
        values = []
        for factor in (h, -h):
            assign(objective.regularizer, theta + factor * d)
            values.append(exact_loss(objective))
        assign(objective.regularizer, theta)
        slope = (values[0] - values[1]) / (2 * h)
        # values are exact to about 1e-13, and so the quotient to 1e-8
        assert slope == pytest.approx(float(z @ d), rel=1e-6, abs=3e-8)


@pytest.mark.parametrize("solver", [FISTA(), None])
def test_closed_form_for_a_regularizer_with_automatic_derivatives(solver: FISTA | None) -> None:
    regularizer = Quadratic()
    with torch.no_grad():
        regularizer.theta.copy_(normal(3, seed=5))
    y, target = normal(4, 1, 3, 4, seed=6), normal(4, 1, 3, 4, seed=7)
    objective = BilevelObjective(regularizer, target, y, solver=solver)
    x = regularizer.solve(y)
    a = torch.eye(12, dtype=torch.float64) + regularizer.h
    w = torch.linalg.solve(a, (x - target).flatten(1).T)
    expected = (regularizer.p.T @ w).mean(1)
    gradient = objective.hypergradient(objective.evaluate(TIGHT), TIGHT, bound=True)
    torch.testing.assert_close(gradient.z, expected, rtol=1e-8, atol=1e-9)
    assert not gradient.certified  # its constants are estimates
    evaluation = objective.evaluate(Accuracy(1e-2, 1e-2))
    assert evaluation.lower <= float(objective.loss.value(x, target).mean()) <= evaluation.upper


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tv", "denoising"),
        ("tv", "deblurring"),
        ("foe_l1", "denoising"),
        ("foe_log_cosh", "weights"),
        ("foe_student", "denoising"),
    ],
)
def test_bound_is_above_the_true_error(name: str, kind: str) -> None:
    """5 kinds of problems x 7 parameters x 6 accuracies: 210 problems, all of them certified."""
    looseness = []
    for seed in range(7):
        objective = problem(name, seed, kind, spread=0.2 + 0.1 * seed)
        exact = exact_gradient(objective)
        for solution, adjoint in ((1.0, 1.0), (0.3, 1e-6), (1e-6, 0.3), (1e-2, 1e-2), (1e-4, 1e-3), (1e-6, 1e-6)):
            accuracy = Accuracy(solution, adjoint)
            gradient = objective.hypergradient(objective.evaluate(accuracy), accuracy, bound=True)
            assert gradient.certified
            error = float((gradient.z - exact).norm())
            assert error <= gradient.error + 1e-9, (solution, adjoint)
            looseness.append(gradient.error / max(error, 1e-300))
    assert min(looseness) < 200  # a bound, not infinity


def test_every_part_of_the_bound_is_needed() -> None:
    """For a quadratic energy omega = ||P|| (eps + ||r_w||) / mu: each part alone, and attained in one direction."""
    regularizer = KnownQuadratic()
    y, target = normal(1, 1, 3, 4, seed=6), normal(1, 1, 3, 4, seed=7)
    exact = regularizer.solve(y)
    objective = BilevelObjective(regularizer, target, y)
    truth = exact_gradient(objective)
    u, _, _ = torch.linalg.svd(regularizer.p)
    a = torch.eye(12, dtype=torch.float64) + regularizer.h
    energy = energy_of(objective)
    for lower, adjoint in ((0.3, 0.0), (0.0, 0.3), (0.2, 0.1)):
        shift = (a @ u[:, 0]).view_as(y)  # moves w along the largest singular vector of P
        x = exact + lower * shift
        w = torch.linalg.solve(a, (x - target).flatten()).view_as(y) + adjoint * u[:, 0].view_as(y)
        residual = (energy.hessian(x)(w) - (x - target)).flatten().norm().view(1)
        error = energy.grad(x).flatten().norm().view(1) / energy.strong_convexity
        omega, _, _, grade, _ = error_bound(energy, 1.0, x, w, error, residual)
        true_error = (-torch.cat([g.flatten() for g in energy.parameter_vjp(x, w)]) - truth).norm()
        assert grade is Grade.PROVED
        assert float(true_error) <= float(omega)
        parts = torch.linalg.matrix_norm(regularizer.p, 2) * (error + residual) / energy.strong_convexity
        torch.testing.assert_close(omega, parts, rtol=1e-9, atol=1e-12)
        assert float(true_error) >= 0.05 * float(omega)


def test_bound_vanishes_with_the_accuracies() -> None:
    objective = problem("tv")
    errors = []
    for accuracy in (1e-3, 1e-5, 1e-7):
        goal = Accuracy(accuracy, accuracy)
        errors.append(objective.hypergradient(objective.evaluate(goal), goal, bound=True).error)
    assert errors[1] <= 0.05 * errors[0]
    assert errors[2] <= 0.05 * errors[1]


@pytest.mark.parametrize(("name", "kind"), [("crr", "denoising"), ("foe_weak_l1", "denoising"), ("foe_l1", "counts")])
def test_what_is_not_proved_is_not_called_certified(name: str, kind: str) -> None:
    objective = problem(name, kind=kind)
    accuracy = Accuracy(1e-2, 1e-2)
    evaluation = objective.evaluate(accuracy)
    gradient = objective.hypergradient(evaluation, accuracy, bound=True)
    assert not gradient.certified
    assert 0 < gradient.error < math.inf
    without = objective.hypergradient(evaluation, accuracy)
    assert without.error == math.inf
    assert not without.certified


@pytest.mark.parametrize("name", ["crr", "wcrr", "foe_l1"])
def test_estimated_bounds_of_single_precision_are_near_those_of_double_precision(name: str) -> None:
    """Kernels and convolutions take images of one precision only, and norms are in double precision."""
    errors = []
    for dtype in (torch.float64, torch.float32):
        target = smooth_image(*SHAPE).to(dtype)
        y = target.abs() + 0.3 * normal(*SHAPE, seed=9, dtype=dtype).abs()
        objective = BilevelObjective(make(name, dtype=dtype), target, y, fidelity=KullbackLeibler(0.5), mu=1.0)
        accuracy = Accuracy(1e-2, 1e-2)
        gradient = objective.hypergradient(objective.evaluate(accuracy), accuracy, bound=True)
        assert not gradient.certified
        errors.append(gradient.error)
    assert 0.5 * errors[0] < errors[1] < 2 * errors[0]


def test_adjoints_are_improved_only_where_needed() -> None:
    objective = problem("tv")
    evaluation = objective.evaluate(Accuracy(1e-6, 1e-2))
    before = objective.evaluations
    loose = objective.hypergradient(evaluation, Accuracy(1e-6, 1e-2))
    assert objective.evaluations == before
    assert torch.equal(loose.evaluation.adjoint.w, evaluation.adjoint.w)
    tight = objective.hypergradient(evaluation, Accuracy(1e-6, 1e-8))
    assert objective.evaluations > before
    assert bool((tight.evaluation.adjoint.residual <= 1e-8).all())
    assert bool((evaluation.adjoint.residual > 1e-8).all())  # the argument is not changed


def test_loss_of_the_upper_level() -> None:
    loss, x, target = SquaredError(), normal(3, 1, 4, 4).requires_grad_(), normal(3, 1, 4, 4, seed=1)
    value = loss.value(x, target)
    torch.testing.assert_close(value, 0.5 * (x - target).square().sum((1, 2, 3)))
    torch.testing.assert_close(torch.autograd.grad(value.sum(), x)[0], loss.grad(x, target).detach())
    assert loss.value(x.float(), target.float()).dtype == torch.float64


@pytest.mark.parametrize("name", ["foe_l1", "foe_log_cosh", "tv", "crr"])
def test_adjoint_rounding_covers_images_that_are_large_against_the_width_of_the_potential(name: str) -> None:
    """B(x) w in single precision is that of another x, at a distance of the rounding errors of x in its filters."""
    regularizer = make(name, 0, 0.1)
    single = copy.deepcopy(regularizer).float()
    double = copy.deepcopy(single).double()
    for offset in (0.0, 10.0, 1000.0):
        x = (smooth_image(*SHAPE) + offset).float()
        w = normal(*SHAPE, seed=3, dtype=torch.float32)
        low, high = Energy(x, single), Energy(x.double(), double)
        error = norms(low.hessian(x)(w).double() - high.hessian(x.double())(w.double()))
        variation = single.hessian_variation(w)
        assert variation is not None
        bound = low.adjoint_rounding(x, w, torch.zeros(len(x), dtype=torch.float64), variation.lipschitz)
        assert bool((error <= bound).all()), (offset, (error / bound).tolist())
        if offset == 1000.0 and name.startswith("foe"):
            assert bool((error > low.product_rounding(w, torch.zeros(len(x)))).any())
