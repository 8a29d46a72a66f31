"""Input convex networks in primal-dual form: the same minimizers, certificates and hypergradients as in primal form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models import ICNN, FieldsOfExperts, ICNNSaddle, PrimalDual
from models.files.arguments import typed_arguments
from recon.bilevel import Accuracy, BilevelObjective, Piggyback, SaddleObjective
from recon.lower_level import LBFGS, PDHG, Energy, KullbackLeibler, NotStronglyConvexError, Status
from recon.lower_level.saddle.maps import check_transpose
from recon.operators import LinearOperator
from tests.lower_level.problems import exact_minimizer, normal, norms, perturb

SHAPE = (1, 6, 6)


class DenseMatrix(LinearOperator):
    """A matrix from images to vectors."""

    def __init__(self, matrix: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__(shape, (matrix.shape[0],), float(torch.linalg.matrix_norm(matrix, 2)) * (1 + 1e-12))
        self.register_buffer("matrix", matrix)

    def _forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.T

    def _adjoint(self, y: Tensor) -> Tensor:
        assert self.domain_shape is not None
        return (y @ self.matrix).view(-1, *self.domain_shape)


def network(seed: int = 0, **options: object) -> ICNN:
    arguments = {"filters": 3, "size": 3, "width": 0.3, "log_weight": -1.0} | options
    made = perturb(ICNN(**typed_arguments(ICNN, arguments)).double(), seed, 0.3)  # type: ignore[arg-type]
    assert isinstance(made, ICNN)
    return made


OPTIONS = [{}, {"layers": 2, "inner_size": 2}, {"slope": 0.0, "layers": 3}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("matrix", [False, True])
def test_map(options: dict[str, object], matrix: bool) -> None:
    """Its transpose, that its norm bound holds, and that its steps are safe."""
    operator = DenseMatrix(normal(9, 36, seed=3, scale=0.3), SHAPE) if matrix else None
    model = ICNNSaddle(network(1, **options), SHAPE, operator)
    with torch.no_grad():
        k = model.saddle_point(normal(1, *((9,) if matrix else SHAPE))).operator
        check_transpose(k)
        dense = k(torch.eye(k.domain_size, dtype=torch.float64)).T
        norm = float(torch.linalg.matrix_norm(dense, 2))
        assert norm <= k.norm_bound <= 2 * norm
        sums = k.absolute_sums()
        assert sums is not None
        scaled = dense / sums[1].sqrt()[:, None] / sums[0].sqrt()
        assert float(torch.linalg.matrix_norm(scaled, 2)) <= 1 + 1e-12


@pytest.mark.parametrize("options", OPTIONS)
def test_agrees_with_the_smooth_solve(options: dict[str, object]) -> None:
    """Both certify a distance to the same minimizer, which Newton's method finds to 1e-11."""
    y = normal(2, *SHAPE, seed=4)
    energy = Energy(y, network(2, **options))
    best = exact_minimizer(energy, y, 1e-10)
    for accuracy in (1e-2, 1e-6):
        found = PrimalDual()(energy, y, accuracy)
        assert found.converged
        assert bool((norms(found.x - best) <= found.error + 1e-10).all())
        assert bool((found.error <= accuracy).all())
        smooth = LBFGS()(energy, y, accuracy)
        assert bool((norms(found.x - smooth.x) <= found.error + smooth.error).all())


def test_agrees_with_an_operator_and_channels() -> None:
    y, operator = normal(2, 9, seed=4), DenseMatrix(normal(9, 72, seed=3, scale=0.2), (2, 6, 6))
    energy = Energy(y, network(3), operator, mu=0.2)
    x0 = torch.zeros(2, 2, 6, 6, dtype=torch.float64)
    found, best = PrimalDual()(energy, x0, 1e-5), LBFGS()(energy, x0, 1e-9)
    assert found.converged
    assert best.converged
    assert bool((norms(found.x - best.x) <= found.error + 1e-9).all())


def test_kinks() -> None:
    """Width 0: optimal for the energy itself, seen from its values nearby and from smoothed networks."""
    sharp, y = network(4, width=0.0), normal(1, *SHAPE, seed=5)
    energy = Energy(y, sharp)
    found = PrimalDual(certified=False)(energy, y, 1e-8)
    assert found.converged
    value = energy.value_and_grad(found.x)[0]
    for k in range(40):
        move = normal(1, *SHAPE, seed=k, scale=10.0 ** -(k % 5))
        # strong convexity of modulus 1 around the minimizer
        assert float(energy.value_and_grad(found.x + move)[0] - value) >= 0.5 * float(move.square().sum()) - 1e-6
    smoothed = network(4, width=1e-3)
    smoothed.load_state_dict(sharp.state_dict())
    near = LBFGS()(Energy(y, smoothed), y, 1e-4)
    assert float(norms(near.x - found.x)) <= 0.05


def test_feasible_start() -> None:
    model = ICNNSaddle(network(1, layers=2), SHAPE)
    x = normal(2, *SHAPE, seed=2)
    z = model.hidden(x)
    with torch.no_grad():
        saddle = model.saddle_point(x)
        # slightly raised, z_0 less than z_1, it violates no constraint, and f is R
        one = (len(z[0]) - 36) // 2
        z[:, 36 : 36 + one] += 1e-12
        z[:, 36 + one :] += 1e-10
        total = saddle.f.value(saddle.operator(z))
        torch.testing.assert_close(total, model.network(x).double(), rtol=1e-7, atol=1e-7)
        z[:, 36] -= 1e-6
        assert bool((saddle.f.value(saddle.operator(z)) == math.inf).all())


def relaxed(seed: int = 2, eps: float = 0.05, weight: float = 0.05, **options: object) -> ICNNSaddle:
    return ICNNSaddle(network(seed, **options), SHAPE, relaxation=eps, z_convexity=weight)


@pytest.mark.parametrize("options", [{}, {"layers": 2}])
def test_piggyback_against_finite_differences(options: dict[str, object]) -> None:
    """To 1e-6 relative, parameter by parameter: V, W, b, a. By both ways to the adjoint."""
    y, target = normal(1, *SHAPE, seed=7), normal(1, *SHAPE, seed=8)
    model = relaxed(**options)
    fine, found = Accuracy(1e-11, 1e-10), []
    for method in ("cg", "pdhg"):
        objective = SaddleObjective(model, target, y, piggyback=Piggyback(adjoint=method))
        at = objective.evaluate(fine)
        found.append(objective.hypergradient(at, fine).z)
        assert bool((at.status == Status.CONVERGED).all())
    assert float((found[0] - found[1]).norm()) <= 1e-8 * float(found[0].norm())
    compare(objective.params, found[0], lambda: values(objective, at))


def values(objective: SaddleObjective, at: object) -> float:
    image = objective.image(objective.evaluate(Accuracy(1e-12, 1.0), at, goal_oriented=False))  # type: ignore[arg-type]
    return float(objective.loss.value(image, objective.target).mean())


def compare(params: list[torch.nn.Parameter], z: Tensor, value, h: float = 3e-5) -> None:  # type: ignore[no-untyped-def]
    """Central differences; h is small because second derivatives of Huber functions jump."""
    start = 0
    for p in params:
        direction, found = normal(p.numel(), seed=1).view_as(p), []
        before = p.detach().clone()
        for k in (1, -1):
            with torch.no_grad():
                p.copy_(before + k * h * direction)
            found.append(value())
        with torch.no_grad():
            p.copy_(before)
        part = float(z[start : start + p.numel()] @ direction.flatten())
        start += p.numel()
        assert part == pytest.approx((found[0] - found[1]) / (2 * h), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize(
    "options", [{}, {"layers": 2}, {"activation": "smooth"}, {"activation": "smooth", "layers": 2}]
)
def test_implicit_hypergradient_against_finite_differences(options: dict[str, object]) -> None:
    y, target = normal(1, *SHAPE, seed=7), normal(1, *SHAPE, seed=8)
    regularizer, fine = network(2, **options), Accuracy(1e-11, 1e-10)
    objective = BilevelObjective(regularizer, target, y)
    at = objective.evaluate(fine)
    z = objective.hypergradient(at, fine).z

    def value() -> float:
        x = LBFGS()(Energy(y, regularizer), y, 1e-11).x
        return float(objective.loss.value(x, target).mean())

    compare(objective.params, z, value)


@pytest.mark.slow
def test_same_hypergradient_by_both_solvers_and_by_piggyback() -> None:
    """Of the same network: implicit with L-BFGS and with the primal-dual solver, and by piggyback as eps -> 0.

    The relaxed problem is another one, by O(eps); two hypergradients of it extrapolate to that of the network.
    """
    y, target = normal(1, *SHAPE, seed=7), normal(1, *SHAPE, seed=8)
    regularizer, fine = network(2), Accuracy(1e-9, 1e-9)
    found = []
    for solver in (LBFGS(), PrimalDual()):
        objective = BilevelObjective(regularizer, target, y, solver=solver)
        found.append(objective.hypergradient(objective.evaluate(fine), fine).z)
    exact = found[0]
    assert float((found[1] - exact).norm()) <= 1e-6 * float(exact.norm())
    gaps = []
    for eps in (4e-3, 2e-3, 1e-3):
        model = ICNNSaddle(regularizer, SHAPE, relaxation=eps, z_convexity=eps)
        objective = SaddleObjective(model, target, y)
        fine = Accuracy(1e-6, 1e-6)
        z = objective.hypergradient(objective.evaluate(fine, goal_oriented=False), fine).z
        order = [name for name, _ in model.network.named_parameters()]
        assert order == [name for name, _ in regularizer.named_parameters()]
        gaps.append(z - exact)
    sizes = [float(g.norm() / exact.norm()) for g in gaps]
    assert sizes[2] <= 0.02
    assert sizes[1] == pytest.approx(0.5 * sizes[0], rel=0.2)
    assert sizes[2] == pytest.approx(0.5 * sizes[1], rel=0.2)
    assert float((2 * gaps[2] - gaps[1]).norm()) <= 0.1 * float(gaps[2].norm())


def test_bad_input() -> None:
    y = normal(1, *SHAPE, seed=1)
    with pytest.raises(ValueError, match="not 'smooth'"):
        ICNNSaddle(network(activation="smooth"), SHAPE)
    for name in ("mu", "relaxation", "z_convexity"):
        with pytest.raises(ValueError, match=f"{name} is -1"):
            ICNNSaddle(network(), SHAPE, **{name: -1.0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="data_weight is 0"):
        ICNNSaddle(network(), SHAPE, data_weight=0.0)
    with pytest.raises(ValueError, match="smaller than the network"):
        ICNNSaddle(network(), (1, 2, 9)).saddle_point(normal(1, 1, 2, 9))
    with pytest.raises(ValueError, match="not of FieldsOfExperts"):
        PrimalDual()(Energy(y, FieldsOfExperts(3, 3).double()), y, 1e-3)
    with pytest.raises(ValueError, match="not KullbackLeibler"):
        PrimalDual()(Energy(y.abs(), network(), fidelity=KullbackLeibler(1.0), mu=1.0), y, 1e-3)
    with pytest.raises(ValueError, match="networks of width 0"):
        PrimalDual()(Energy(y, network(width=0.0)), y, 1e-3)
    with pytest.raises(ValueError, match="must be positive"):
        PrimalDual()(Energy(y, network()), y, 0.0)
    with pytest.raises(ValueError, match="max_iterations is 0"):
        PrimalDual(0)
    with pytest.raises(NotStronglyConvexError, match="needs a strongly convex energy"):
        PrimalDual()(Energy(normal(1, 9), network(), DenseMatrix(normal(9, 36), SHAPE)), y, 1e-3)
    exact = ICNNSaddle(network(), SHAPE).saddle_point(y)
    with pytest.raises(NotStronglyConvexError, match="strongly convex g"):
        PDHG()(exact, *exact.split(ICNNSaddle(network(), SHAPE).initial(y)), 1e-3)


def test_nan_in_the_dual_and_iteration_limit_are_reported() -> None:
    """One bad image does not spoil the other."""
    energy = Energy(normal(2, *SHAPE, seed=1), network())
    saddle = ICNNSaddle(network(), SHAPE).saddle_point(energy.y)
    with torch.no_grad():
        z = ICNNSaddle(network(), SHAPE).initial(energy.y)
        x, y = (t.clone() for t in saddle.split(z))
        y[0, 0] = math.nan
        found = PDHG(certified=False)(saddle, x, y, 1e-6)
    assert found.status.tolist() == [Status.NOT_FINITE, Status.CONVERGED]
    few = PrimalDual(max_iterations=3)(energy, energy.y, 1e-9)
    assert few.status.tolist() == [Status.ITERATION_LIMIT] * 2
    assert bool((few.error > 1e-9).all())
    assert bool(few.error.isfinite().all())
    broken = network()
    with torch.no_grad():
        broken.log_inner[0].fill_(math.inf)
    with pytest.raises(NotStronglyConvexError, match="norms of the layers"):
        PrimalDual()(Energy(energy.y, broken), energy.y, 1e-3)
