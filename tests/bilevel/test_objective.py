"""The objective: intervals, chunks, warm starts, the counter of evaluations, and memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from models import InitialFilters, LeakyReLU
from models.regularizers.icnn import ICNN
from recon.bilevel import Accuracy, BilevelObjective, UpperLoss, energy_objective
from recon.lower_level import FISTA, LBFGS, Energy, KullbackLeibler, Solution, Status, first_guess
from recon.operators import Blur
from tests.bilevel.counting import CountingTV
from tests.lower_level.problems import exact_minimizer, make, normal, norms, smooth_image

SHAPE = (5, 1, 6, 7)


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    target = smooth_image(*SHAPE, seed=seed)
    return target, target + normal(*SHAPE, seed=seed + 9, scale=0.3)


def objective_of(name: str = "tv", **options: object) -> BilevelObjective:
    return BilevelObjective(make(name), *data(), **options)  # type: ignore[arg-type]


def exact_losses(objective: BilevelObjective) -> Tensor:
    energy = Energy(objective.y, objective.regularizer, objective.operator, objective.fidelity, objective.mu)
    return objective.loss.value(exact_minimizer(energy, objective.target.clone()), objective.target)


@pytest.mark.parametrize("second", [True, False])
@pytest.mark.parametrize("name", ["tv", "foe_weak_l1", "wcrr"])
def test_interval_of_the_mean_and_errors_of_the_images(name: str, second: bool) -> None:
    objective = objective_of(name)
    energy = Energy(objective.y, objective.regularizer)
    exact, f = exact_minimizer(energy, objective.y.clone()), float(exact_losses(objective).mean())
    for accuracy in (Accuracy(1.0, 1.0), Accuracy(1e-2, 1e-3), Accuracy(1e-6, 1e-6)):
        at = objective.evaluate(accuracy, None, second)
        assert at.lower <= f <= at.upper
        assert at.lower <= at.value <= at.upper
        assert bool((norms(at.x - exact) <= at.error).all())
        assert bool((at.error <= accuracy.solution).all())
        slope = at.x - objective.target
        torch.testing.assert_close(at.slope, norms(slope))
        if second:
            assert at.satisfies(accuracy)
            assert bool(
                (norms(slope - energy.hessian(at.x)(at.adjoint.w)) <= at.adjoint.residual * (1 + 1e-9) + 1e-14).all()
            )
        else:
            assert bool(torch.isinf(at.adjoint.residual).all())
            assert not at.satisfies(accuracy)
        assert not at.at_precision_floor


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_interval_of_the_mean_is_attained(sign: float) -> None:
    """Solutions that are wrong by a constant, to which the regularizer is blind, and grad g parallel to it."""
    _, y = data()
    energy = Energy(y, make("foe_l1"))
    exact = exact_minimizer(energy, y.clone())

    def solver(energy: Energy, x: Tensor, accuracy: float | Tensor) -> Solution:
        gradient, one = energy.grad(exact + 0.3), torch.ones(5, dtype=torch.int64)
        return Solution(exact + 0.3, gradient, norms(gradient) / energy.strong_convexity, 0 * one, one)

    objective = BilevelObjective(energy.regularizer, exact + 0.3 - 0.5 * sign, y, solver=solver)
    at = objective.evaluate(Accuracy(10.0, 10.0), None, goal_oriented=False)
    f = float(objective.loss.value(exact, objective.target).mean())
    assert at.lower <= f <= at.upper + 1e-9
    spare = 0.5 * 0.3**2 * exact[0].numel() if sign > 0 else 0.0
    assert f - spare == pytest.approx(at.lower if sign > 0 else at.upper, abs=1e-9)


def test_bounds_of_the_first_order_for_losses_and_fidelities_that_are_not_quadratic() -> None:
    class Huber(UpperLoss):
        """Sum of sqrt(1 + d^2) - 1: convex, with gradient of Lipschitz constant one."""

        def value(self, x: Tensor, target: Tensor) -> Tensor:
            return ((1 + (x - target).double().square()).sqrt() - 1).flatten(1).sum(1)

        def grad(self, x: Tensor, target: Tensor) -> Tensor:
            return (x - target) / (1 + (x - target).square()).sqrt()

    target, y = data()
    for objective in (
        BilevelObjective(make("tv"), target, y, loss=Huber()),
        BilevelObjective(make("foe_l1"), target.abs(), y.abs(), fidelity=KullbackLeibler(0.4), mu=0.3),
    ):
        f = float(exact_losses(objective).mean())
        for accuracy in (Accuracy(1.0, 1.0), Accuracy(1e-3, 1e-3)):
            at = objective.evaluate(accuracy)
            assert at.lower <= f <= at.upper
            assert bool(torch.isinf(at.adjoint.residual).all())


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 5, 8])
def test_chunks_do_not_change_the_result(chunk_size: int) -> None:
    sizes = []

    def solver(energy: Energy, x: Tensor, accuracy: float | Tensor) -> Solution:
        sizes.append(len(energy.y))
        return LBFGS()(energy, x, accuracy)

    accuracy = Accuracy(1e-8, 1e-8)
    whole, parts = objective_of("foe_weak_l1"), objective_of("foe_weak_l1", chunk_size=chunk_size, solver=solver)
    expected = whole.hypergradient(whole.evaluate(accuracy), accuracy, bound=True)
    mine = parts.hypergradient(parts.evaluate(accuracy), accuracy, bound=True)
    assert max(sizes) == min(chunk_size, 5)
    assert sum(sizes) == 5
    torch.testing.assert_close(mine.z, expected.z, rtol=1e-6, atol=1e-8)
    assert mine.evaluation.value == pytest.approx(expected.evaluation.value, rel=1e-7)
    torch.testing.assert_close(mine.evaluation.x, expected.evaluation.x, rtol=0, atol=2e-8)
    assert mine.evaluation.x.shape == SHAPE
    assert parts.evaluations == pytest.approx(whole.evaluations, rel=0.05)


def test_evaluations_count_every_gradient_and_product() -> None:
    regularizer = CountingTV(-1.0, -2.0).double()
    objective = BilevelObjective(regularizer, *data(), chunk_size=2)
    regularizer.count = 0  # without the look at its contract
    at = objective.evaluate(Accuracy(1e-2, 1e-2))
    assert objective.evaluations * 5 == pytest.approx(regularizer.count)
    assert regularizer.count > 0
    at = objective.refine(at, Accuracy(1e-4, 1e-4))
    assert objective.evaluations * 5 == pytest.approx(regularizer.count)
    objective.hypergradient(at, Accuracy(1e-4, 1e-7), bound=True)
    assert objective.evaluations * 5 == pytest.approx(regularizer.count)
    before = regularizer.count
    assert objective.refine(at, Accuracy(1e-3, 1e-3)) is at
    assert regularizer.count == before
    other = objective_of()
    other.load_state_dict(objective.state_dict())
    assert other.evaluations == objective.evaluations


def test_warm_starts_save_evaluations_and_are_not_changed() -> None:
    objective = objective_of()
    at = objective.evaluate(Accuracy(1e-6, 1e-6))
    cold = objective.evaluations
    x, w = at.x.clone(), at.adjoint.w.clone()
    objective.evaluate(Accuracy(1e-7, 1e-7), at)
    assert objective.evaluations - cold < 0.6 * cold
    assert torch.equal(at.x, x)
    assert torch.equal(at.adjoint.w, w)


def test_accuracy_for_a_margin() -> None:
    """The interval at the accuracy that is proposed is about as long as the margin, and never much longer."""
    for name in ("tv", "foe_weak_l1", "crr"):
        objective = objective_of(name)
        at = objective.evaluate(Accuracy(1e-2, 1e-2))
        for margin in (1.0, 1e-2, 1e-5):
            for second in (True, False):
                accuracy = objective.accuracy_for(at, margin, second)
                fine = objective.evaluate(accuracy, None, second)
                assert fine.upper - fine.lower <= 2 * margin, (name, margin, second)


def test_images_beyond_the_precision_of_their_type_are_reported() -> None:
    target, y = data()
    objective = BilevelObjective(make("tv", dtype=torch.float32), target.float(), y.float())
    at = objective.evaluate(Accuracy(1e-12, 1e-12))
    assert at.at_precision_floor
    assert at.error.dtype == torch.float64
    limited = objective_of(solver=FISTA(max_iterations=2)).evaluate(Accuracy(1e-9, 1e-9))
    assert not limited.at_precision_floor
    assert limited.status.tolist() == [Status.ITERATION_LIMIT] * 5
    assert not limited.satisfies(Accuracy(1e-9, 1e-9))


def test_bad_data_are_refused() -> None:
    target, y = data()
    bad = target.clone()
    bad[3, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="true images: image 3 holds values that are NaN"):
        BilevelObjective(make("tv"), bad, y)
    with pytest.raises(ValueError, match="values that are NaN or infinite"):
        BilevelObjective(make("tv"), target, bad)
    with pytest.raises(ValueError, match="got 5 and 4"):
        BilevelObjective(make("tv"), target, y[:4])
    with pytest.raises(ValueError, match="got 0 and 0"):
        BilevelObjective(make("tv"), target[:0], y[:0])
    with pytest.raises(ValueError, match="chunk_size is 0"):
        BilevelObjective(make("tv"), target, y, chunk_size=0)
    for values in ((0.0, 1.0), (1.0, -1.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="accuracies must be positive"):
            Accuracy(*values)
    with pytest.raises(ValueError, match="needs a strongly convex energy"):
        BilevelObjective(make("foe_student", 1, 2.0), target, y).evaluate(Accuracy(1.0, 1.0))
    assert Accuracy(1.0, 2.0).scaled(0.5) == Accuracy(0.5, 1.0)


@pytest.mark.parametrize("name", ["tv", "foe_l1", "icnn"])
def test_evaluations_have_no_graph(name: str) -> None:
    """Neither of the parameters, nor copied: outside of no_grad(), too."""
    target, y = data()
    network = ICNN(
        2, 3, activation=LeakyReLU(0.2, 0.2, "smooth"), initial_filters=InitialFilters("normal"), zero_mean=False
    ).double()
    objective = BilevelObjective(network if name == "icnn" else make(name), target, y)
    evaluation = objective.evaluate(Accuracy(1e-6, 1e-6))
    assert bool((evaluation.adjoint.residual <= 1e-6).all())
    for value in vars(evaluation).values():
        assert not (isinstance(value, Tensor) and value.requires_grad)


def test_start_is_the_first_guess() -> None:
    target, y = data()
    blur = Blur(0.6, SHAPE[1:], "reflect")
    objective = BilevelObjective(make("tv"), target, y, blur, mu=0.1)
    assert torch.equal(objective.start().x, first_guess(blur, y))
    assert torch.equal(objective_of().start().x, y)
    assert [p.shape for p in objective.params] == [torch.Size([]), torch.Size([])]


def test_energies_are_made_once_for_every_value_of_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each chunk, which evaluation and hypergradient share; that of a subset is its own."""
    objective, made = objective_of("foe_l1", chunk_size=2), list[Tensor]()

    class Counted(Energy):
        def __init__(self, y: Tensor, *args: Any, **kwargs: Any) -> None:
            made.append(y)
            super().__init__(y, *args, **kwargs)

    monkeypatch.setattr(energy_objective, "Energy", Counted)
    accuracy = Accuracy(1e-3, 1e-3)
    first = objective.hypergradient(objective.evaluate(accuracy), accuracy, bound=True)
    assert [len(y) for y in made] == [2, 2, 1]
    part = objective.subset(torch.tensor([4, 0]))
    part.evaluate(accuracy)
    assert torch.equal(made.pop(), objective.y[[4, 0]])
    objective.params[0].data *= 1.5  # no version counter notices
    second = objective.hypergradient(objective.evaluate(accuracy), accuracy)
    assert len(made) == 6
    other = objective_of("foe_l1", chunk_size=2)
    assert torch.equal(other.hypergradient(other.evaluate(accuracy), accuracy).z, first.z)
    other.params[0].data *= 1.5
    assert torch.equal(other.hypergradient(other.evaluate(accuracy), accuracy).z, second.z)


def test_a_start_may_be_given() -> None:
    objective = objective_of()
    x, w = normal(*SHAPE, seed=1), normal(*SHAPE, seed=2)
    start = objective.start(x, w)
    assert torch.equal(start.x, x)
    assert torch.equal(start.adjoint.w, w)
    assert not start.satisfies(Accuracy(1e6, 1e6))
