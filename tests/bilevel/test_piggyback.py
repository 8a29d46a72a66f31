"""Hypergradients of saddle-point problems: against finite differences, and their error bound against the true error."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from recon.bilevel import Accuracy, Piggyback, SaddleObjective
from recon.bilevel.piggyback import AdjointPoint, DualLoss, error_bound, parameter_gradient, reduced_hessian
from recon.lower_level import Grade, NotStronglyConvexError, SaddleModel, SaddlePoint, Status
from tests.lower_level.problems import normal
from tests.lower_level.saddle.saddle_problems import FieldModel, FilterModel, ReLUModel, solved

FINE = Accuracy(1e-12, 1e-11)


def problem(kind: str, seed: int = 3, batch: int = 2) -> tuple[SaddleModel, Tensor, Tensor]:
    """A model, data and true images: denoising, a matrix, blocks u and v, a layer of a convex network."""
    if kind in ("filters", "nonsmooth"):
        shape = (batch, 1, 5, 4)
        return (
            FilterModel((5, 4), kind == "filters", None, seed),
            normal(*shape, seed=seed + 50),
            normal(*shape, seed=1),
        )
    if kind == "matrix":
        model = FilterModel((5, 4), matrix=normal(7, 20, seed=seed + 60, scale=0.3), seed=seed)
        return model, normal(batch, 7, seed=seed + 50), normal(batch, 1, 5, 4, seed=1)
    if kind == "field":
        return FieldModel(4, seed), normal(batch, 1, 1, 4, seed=seed + 50), normal(batch, 1, 1, 4, seed=1)
    return ReLUModel(6, seed), normal(batch, 1, 1, 6, seed=seed + 50, scale=2), normal(batch, 1, 1, 6, seed=1)


@pytest.mark.parametrize("kind", ["filters", "nonsmooth", "matrix", "field", "relu"])
def test_hypergradient_against_finite_differences(kind: str) -> None:
    """To 1e-6 relative, tensor by tensor, along random directions: K, and weights of g and f."""
    model, y, target = problem(kind)
    objective = SaddleObjective(model, target, y)
    at = objective.evaluate(FINE)
    gradient = objective.hypergradient(at, FINE)
    start, h = 0, 2e-3
    for p in objective.params:
        direction, values = normal(p.numel(), seed=1).view_as(p), []
        before = p.detach().clone()
        with torch.no_grad():
            for k in (1, -1, 2, -2, 3, -3):
                p.copy_(before + k * h * direction)
                image = objective.image(objective.evaluate(FINE, at, goal_oriented=False))
                values.append(float(objective.loss.value(image, target).mean()))
            p.copy_(before)
        a, b, c, d, e, f = values
        expected = (45 * (a - b) - 9 * (c - d) + (e - f)) / (60 * h)
        part = float(gradient.z[start : start + p.numel()] @ direction.flatten())
        start += p.numel()
        assert part == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["filters", "nonsmooth", "matrix", "relu"])
def test_all_ways_to_the_adjoint_agree(kind: str) -> None:
    model, y, target = problem(kind)
    fine, found = Accuracy(1e-11, 1e-10), []
    for piggyback in (Piggyback(), Piggyback(adjoint="pdhg"), Piggyback(iterations=400)):
        objective = SaddleObjective(model, target, y, piggyback=piggyback)
        gradient = objective.hypergradient(objective.evaluate(fine), fine)
        found.append(gradient.z)
        assert bool((gradient.evaluation.adjoint.residual <= 1e-9).all())
    for z in found[1:]:
        assert float((z - found[0]).norm()) <= 1e-8 * float(z.norm())


def test_together_reaches_both_accuracies() -> None:
    """Against the dense solution of the linearized equations."""
    model, y, target = problem("filters", batch=3)
    with torch.no_grad():
        saddle = model.saddle_point(y)

    def slope(x: Tensor, index: Tensor) -> Tensor:
        return x - target.flatten(1)[index]

    z = model.initial(y)
    for method in ("cg", "pdhg"):
        solution, adjoint = Piggyback(adjoint=method).together(saddle, z, 0 * z, slope, 1e-2, 1e-3)
        assert bool((solution.error <= 1e-2).all())
        assert bool((adjoint.residual <= 1e-3).all())
        exact_x, exact_y = dense_adjoint(saddle, solution.x, slope(solution.x, torch.arange(3)), None)
        mu, nu = saddle.convexity, saddle.dual_convexity
        assert bool(((adjoint.X - exact_x).norm(dim=1) <= adjoint.residual / mu).all())
        assert bool(((adjoint.Y - exact_y).norm(dim=1) <= 2 * adjoint.residual / math.sqrt(mu * nu)).all())


def dense_adjoint(saddle: SaddlePoint, x: Tensor, slope: Tensor, dual_slope: Tensor | None) -> tuple[Tensor, Tensor]:
    """(g'' + K^T f'' K) X = -grad l_1 - K^T f'' grad l_2 and Y = f''(KX + grad l_2), by dense matrices."""
    n = x.shape[1]
    with torch.no_grad():
        g, f = saddle.g.hessian(x), saddle.f.hessian(saddle.operator(x))
        hessian = reduced_hessian(saddle, g, f)
        eye = torch.eye(n, dtype=x.dtype)
        matrix = torch.stack([hessian(eye[j].expand(len(x), n)) for j in range(n)], 2)
        right = -slope if dual_slope is None else -slope - saddle.operator.transpose(f(dual_slope))
        big_x = torch.linalg.solve(matrix, right)
        inner = saddle.operator(big_x)
        return big_x, f(inner if dual_slope is None else inner + dual_slope)


@pytest.mark.parametrize(("kind", "certified"), [("filters", True), ("matrix", True), ("field", True), ("relu", False)])
def test_bound_of_the_error_in_random_cases(kind: str, certified: bool) -> None:
    """4 problems x 48 perturbed points, of 4 models: 768 cases, 576 certified, with losses of x and y, at all scales.

    The points are the exact ones plus random errors, and the bound is told nothing but the length of these: the least
    that any certificate can say. Hessians of the smoothed norms move; weights, widths and kernels are parameters.
    """
    cases, tight = 0, 0.0
    for seed in range(4):
        model, data, target = problem(kind, 10 * seed, batch=1)
        with torch.no_grad():
            saddle = model.saddle_point(data)
        best = solved(saddle, 1e-12)
        l_1, l_2 = 1.0, 0.5
        goal = saddle.embed(target), normal(*best.y.shape, seed=seed)
        exact = dense_adjoint(saddle, best.x, l_1 * (best.x - goal[0]), l_2 * (best.y - goal[1]))
        q = saddle.operator(exact[0]).detach() + l_2 * (best.y - goal[1])
        truth = flat(parameter_gradient(model, data, best.x, best.y, *exact, q))
        mu, nu = saddle.convexity, saddle.dual_convexity
        for case in range(48):
            scale, inner = 10.0 ** -(case % 4), 10.0 ** -(case // 4 % 4)
            errors = [normal(1, t.shape[1], seed=97 * case + k) for k, t in enumerate((best.x, best.y, *exact))]
            e_x, e_y, e_big_x, e_big_y = (e / e.norm() for e in errors)
            x = best.x + scale * e_x
            with torch.no_grad():
                # y as good as x, and in the domain of f*
                y = saddle.f.grad(saddle.operator(x) + scale * e_y)
            slope, dual_slope = l_1 * (x - goal[0]), l_2 * (y - goal[1])
            at_x, at_y = dense_adjoint(saddle, x, slope, dual_slope)
            big_x, big_y = at_x + inner * e_big_x, at_y + inner * math.sqrt(mu / nu) * e_big_y
            residual = torch.full((1,), inner * mu, dtype=torch.float64)
            error, dual = (x - best.x).norm(dim=1), DualLoss(dual_slope, l_2)
            at = AdjointPoint(x, y, big_x, big_y, error, residual, l_1, dual)
            omega, size, _, grade, _ = error_bound(model, data, at)
            assert (grade is not Grade.ESTIMATED) == certified
            q = saddle.operator(big_x).detach() + dual_slope
            z = flat(parameter_gradient(model, data, x, y, big_x, big_y, q))
            error = float((z - truth).norm())
            assert error <= float(omega)
            assert float(z.norm()) <= float(size) * (1 + 1e-9)
            tight = max(tight, error / float(omega))
            cases += 1
    assert cases == 192
    assert tight >= 1e-3  # a bound, not an astronomical number


def flat(grads: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([g.flatten() for g in grads])


def test_bound_of_the_error_with_solvers() -> None:
    """What the descent check sees, at the accuracies that it sees."""
    for kind in ("filters", "field"):
        model, y, target = problem(kind, 5)
        exact = SaddleObjective(model, target, y)
        truth = exact.hypergradient(exact.evaluate(FINE), FINE).z
        for accuracy in (Accuracy(1.0, 1.0), Accuracy(0.1, 1e-2), Accuracy(1e-3, 1e-3), Accuracy(1e-5, 1e-5)):
            objective = SaddleObjective(model, target, y)
            gradient = objective.hypergradient(objective.evaluate(accuracy, None, False), accuracy, bound=True)
            assert gradient.certified
            assert float((gradient.z - truth).norm()) <= gradient.error < math.inf
        assert gradient.error <= 1e-2 * float(truth.norm())  # it does go down


def test_loss_of_the_dual_variable() -> None:
    """l(y) = 1/2|y|^2 alone: its derivative in theta against finite differences."""
    model, data, _ = problem("filters", batch=1)
    with torch.no_grad():
        saddle = model.saddle_point(data)
    best = solved(saddle, 1e-12)
    adjoint = Piggyback().adjoint(saddle, best.x, torch.zeros_like(model.initial(data)), 0 * best.x, 1e-12, best.y)
    q = saddle.operator(adjoint.X) + best.y
    gradient = flat(parameter_gradient(model, data, best.x, best.y, adjoint.X, adjoint.Y, q))
    p, values, h = model.trainable()[1], [], 1e-4
    with torch.no_grad():
        for sign in (1, -1):
            p += sign * h
            values.append(float(0.5 * solved(model.saddle_point(data), 1e-12).y.square().sum()))
            p -= sign * h
    start = model.trainable()[0].numel()
    assert float(gradient[start]) == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-6)


def test_bad_input() -> None:
    _, y, target = problem("nonsmooth")
    with pytest.raises(ValueError, match="adjoint is 'exact'"):
        Piggyback(adjoint="exact")
    with pytest.raises(ValueError, match="iterations is 0"):
        Piggyback(iterations=0)
    plain = SaddleObjective(PlainModel(), target, y)
    at = plain.evaluate(Accuracy(1e-2, 1e-2))
    assert bool((at.status == Status.CONVERGED).all())  # the gap certifies x; derivatives need more
    with pytest.raises(NotStronglyConvexError, match="strongly convex f"):
        plain.hypergradient(at, Accuracy(1e-2, 1e-2))


class PlainModel(FilterModel):
    """With the norm itself, whose conjugate is not strongly convex."""

    def __init__(self) -> None:
        super().__init__((5, 4), smooth=False)

    def saddle_point(self, y: Tensor) -> SaddlePoint:
        saddle = super().saddle_point(y)
        norm = saddle.f
        norm.eps, norm.smoothness = 0.0, math.inf  # type: ignore[attr-defined]
        return saddle
