"""FISTA and L-BFGS: what they certify is true, every image is on its own, and they end where precision ends."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.regularizers.fields_of_experts import FieldsOfExperts
from models.regularizers.total_variation import TotalVariation
from recon.bilevel import BilevelObjective
from recon.lower_level import (
    FISTA,
    LBFGS,
    Energy,
    KullbackLeibler,
    ProjectedLBFGS,
    Regularizer,
    Solution,
    Solver,
    Status,
)
from recon.operators import Blur
from tests.lower_level.problems import Quadratic, exact_minimizer, make, normal, norms, smooth_image

SOLVERS: dict[str, Solver] = {
    "fista": FISTA(),
    "fista_backtracking": FISTA(backtracking=True),
    "fista_low_guess": FISTA(backtracking=True, initial_lipschitz=1e-3),
    "gradient": FISTA(accelerated=False),
    "lbfgs": LBFGS(),
    "lbfgs_short": LBFGS(memory=2),
}
FAST = ["fista", "fista_backtracking", "lbfgs"]


class HiddenSmoothness(TotalVariation):
    """A regularizer whose author knows no Lipschitz constant."""

    def smoothness(self) -> float:
        return math.inf


def energies() -> dict[str, Energy]:
    y = smooth_image(3, 1, 6, 5, seed=3) + normal(3, 1, 6, 5, scale=0.2)
    blur = Blur(0.7, (1, 6, 5), "reflect")
    return {
        "tv": Energy(y, TotalVariation(-1.0, -3.0).double()),
        "foe": Energy(y, make("foe_l1", 1, 0.5)),
        "weak": Energy(y, make("foe_weak_log_cosh")),
        "spline": Energy(y, make("wcrr")),
        "blur": Energy(y, make("tv"), blur, mu=0.1),
        "student": Energy(y, make("foe_student"), mu=0.3),
        "counts": Energy(y.abs(), make("foe_log_cosh"), blur, KullbackLeibler(0.5), mu=0.1),
        "unknown": Energy(y, HiddenSmoothness(-1.0, -3.0).double()),
    }


ENERGIES = sorted(energies())
REFERENCE: dict[str, Tensor] = {}


def reference(name: str) -> Tensor:
    if name not in REFERENCE:
        energy = energies()[name]
        REFERENCE[name] = exact_minimizer(energy, energy.y.clone())
    return REFERENCE[name]


def assert_truthful(solution: Solution, energy: Energy, exact: Tensor, accuracy: Tensor | float) -> None:
    """The gradient belongs to the point, the error is no smaller than the true one, and decides the status."""
    gradient = energy.grad(solution.x)
    torch.testing.assert_close(solution.gradient, gradient, rtol=1e-6, atol=1e-12)
    assert bool((norms(solution.x - exact) <= solution.error + 1e-12).all())
    norm = norms(gradient)
    certified = (
        norm + energy.rounding(solution.x, norm)
    ) / energy.strong_convexity  # a computed zero is no certificate
    assert bool((solution.error >= certified * (1 - 1e-6)).all())
    met = solution.error <= accuracy
    assert torch.equal(met, solution.status == Status.CONVERGED)
    assert bool((solution.evaluations >= 1).all())


@pytest.mark.parametrize(
    ("name", "solver"),
    [(name, solver) for name in ENERGIES for solver in FAST]
    + [("foe", "gradient"), ("tv", "fista_low_guess"), ("student", "fista_low_guess"), ("blur", "lbfgs_short")],
)
def test_reported_error_is_true_and_decides_the_status(name: str, solver: str) -> None:
    energy, exact = energies()[name], reference(name)
    for accuracy in (1.0, 1e-3) if solver == "gradient" else (1.0, 1e-3, 1e-8):
        for start in (energy.y, 30 * normal(*energy.y.shape, seed=8)):
            solution = SOLVERS[solver](energy, start, accuracy)
            assert solution.converged
            assert_truthful(solution, energy, exact, accuracy)


@pytest.mark.parametrize("solver", FAST)
@pytest.mark.parametrize("limit", [1, 2, 7])
def test_iteration_limit_is_reported_and_the_error_stays_true(solver: str, limit: int) -> None:
    made: dict[str, Solver] = {
        "fista": FISTA(limit),
        "fista_backtracking": FISTA(limit, backtracking=True),
        "lbfgs": LBFGS(max_iterations=limit),
    }
    energy = energies()["tv"]
    solution = made[solver](energy, energy.y, 1e-9)
    assert solution.status.tolist() == [Status.ITERATION_LIMIT] * 3
    assert not solution.converged
    assert int(solution.evaluations.max()) <= limit + 1 + (100 if "back" in solver else 0)
    assert_truthful(solution, energy, reference("tv"), 1e-9)


@pytest.mark.parametrize("solver", FAST)
def test_every_image_has_its_own_accuracy_and_leaves_when_done(solver: str) -> None:
    energy, accuracy = energies()["foe"], torch.tensor([1e-1, 1e-9, 1e-4], dtype=torch.float64)
    together = SOLVERS[solver](energy, energy.y, accuracy)
    assert_truthful(together, energy, reference("foe"), accuracy)
    evaluations = together.evaluations.tolist()
    assert evaluations[0] < evaluations[2] < evaluations[1]
    for i in range(3):
        one = torch.tensor([i])
        alone = SOLVERS[solver](energy.select(one), energy.y[one], float(accuracy[i]))
        assert int(alone.evaluations) == pytest.approx(evaluations[i], abs=2)
        torch.testing.assert_close(alone.x, together.x[one], rtol=1e-4, atol=float(accuracy[i]))


@pytest.mark.parametrize("solver", FAST)
def test_evaluations_are_those_that_were_made(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    energy, made = energies()["tv"], []
    plain = TotalVariation.value_and_grad
    monkeypatch.setattr(TotalVariation, "value_and_grad", lambda self, x: (made.append(len(x)), plain(self, x))[1])
    solution = SOLVERS[solver](energy, energy.y, torch.tensor([1e-1, 1e-9, 1e-4]))
    assert int(solution.evaluations.sum()) == sum(made)


@pytest.mark.parametrize("bad", [math.nan, 1e200])
@pytest.mark.parametrize("solver", FAST)
@pytest.mark.parametrize("name", ["tv", "spline", "foe", "counts", "unknown"])
def test_one_bad_image_does_not_spoil_or_stop_the_others(name: str, solver: str, bad: float) -> None:
    energy = energies()[name]
    start = energy.y.clone()
    start[1, 0, 3, 3] = bad
    limited: dict[str, Solver] = {
        "fista": FISTA(20_000),
        "fista_backtracking": FISTA(3_000, backtracking=True),
        "lbfgs": LBFGS(max_iterations=3_000),
    }
    solution = limited[solver](energy, start, 1e-6)
    if not math.isfinite(bad):
        assert solution.status[1] == Status.NOT_FINITE
    if solution.status[1] != Status.CONVERGED:
        assert solution.error[1] > 1e-6
    if solution.status[1] == Status.NOT_FINITE:
        assert solution.error[1] == math.inf
    good = torch.tensor([0, 2])
    alone = SOLVERS[solver](energy.select(good), start[good], 1e-6)
    assert solution.status[good].tolist() == [Status.CONVERGED] * 2
    torch.testing.assert_close(solution.x[good], alone.x, rtol=0, atol=2e-6)
    assert bool((norms(solution.x[good] - reference(name)[good]) <= solution.error[good]).all())


@pytest.mark.parametrize("solver", FAST)
@pytest.mark.parametrize("name", ["tv", "foe", "blur", "unknown"])
def test_single_precision_ends_at_its_floor(name: str, solver: str) -> None:
    """Impossible accuracies end soon, and the reported error is true against a reference in double precision."""
    double = energies()[name]
    regularizer = energies()[name].regularizer.float()
    y = double.y.float()
    energy = Energy(y, regularizer, double.operator, mu=double.mu)
    exact_energy = Energy(y.double(), double.regularizer.double(), double.operator, mu=double.mu)
    with torch.no_grad():
        for p, q in zip(exact_energy.regularizer.parameters(), energy.regularizer.parameters(), strict=True):
            p.copy_(q)
    exact_energy = Energy(y.double(), exact_energy.regularizer, double.operator, mu=double.mu)
    exact = exact_minimizer(exact_energy, y.double())
    solution = SOLVERS[solver](energy, y, 1e-30)
    assert solution.x.dtype == torch.float32
    assert solution.status.tolist() == [Status.PRECISION_FLOOR] * 3
    assert int(solution.evaluations.max()) <= 1500
    truth = norms(solution.x.double() - exact)
    assert bool((truth <= solution.error).all())
    # no earlier than where rounding is a good part of the gradient
    floor = energy.rounding(solution.x, norms(solution.gradient).double()) / energy.strong_convexity
    assert bool((solution.error <= 20 * floor).all())
    possible = SOLVERS[solver](energy, y, 1e-2)
    assert possible.converged
    assert bool((norms(possible.x.double() - exact) <= possible.error).all())


@pytest.mark.parametrize("solver", FAST)
def test_double_precision_has_a_floor_too(solver: str) -> None:
    energy = energies()["tv"]
    solution = SOLVERS[solver](energy, energy.y, 1e-300)
    assert solution.status.tolist() == [Status.PRECISION_FLOOR] * 3
    assert int(solution.evaluations.max()) <= 3000
    assert float(solution.error.max()) <= 1e-11


def test_ill_conditioned_problems_need_few_evaluations() -> None:
    """At kappa >= 500: L-BFGS at most 0.6 times the evaluations of FISTA, gradient descent at least 10 times."""
    y = smooth_image(1, 1, 12, 12, seed=5) * 0.4 + normal(1, 1, 12, 12, scale=0.1)
    for regularizer, accuracy in (
        (FieldsOfExperts(8, 3, log_weight=-2, log_width=-8.5).double(), 1e-2),
        (TotalVariation(-2, -6.5).double(), 1e-3),
    ):
        energy = Energy(y, regularizer)
        assert energy.smoothness / energy.strong_convexity >= 500
        counts = {}
        for name in ("fista", "lbfgs"):
            solution = SOLVERS[name](energy, y, accuracy)
            assert solution.converged
            counts[name] = float(solution.evaluations.double().mean())
        limit = FISTA(int(10 * counts["fista"]), accelerated=False)
        assert counts["lbfgs"] <= 0.6 * counts["fista"]
        assert limit(energy, y, accuracy).status.tolist() == [Status.ITERATION_LIMIT]


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_energies_without_strong_convexity_are_refused(solver: str) -> None:
    class Unknown(Regularizer):
        def forward(self, x: Tensor) -> Tensor:
            return x.square().flatten(1).sum(1)

    y = normal(1, 1, 5, 5)
    for energy in (Energy(y, Unknown()), Energy(y, make("foe_student", 1, 2.0))):
        with pytest.raises(ValueError, match=r"needs a strongly convex energy"):
            SOLVERS[solver](energy, y, 1e-3)


def test_without_a_certificate_the_gradient_is_what_stops() -> None:
    class Unknown(Regularizer):
        def forward(self, x: Tensor) -> Tensor:
            return x.square().flatten(1).sum(1)

    y = normal(2, 1, 5, 5)
    energy = Energy(y, Unknown())
    solution = LBFGS(certified=False)(energy, y, 1e-6)
    assert solution.converged
    assert bool((norms(energy.grad(solution.x)) <= 1e-6).all())
    assert bool(torch.isinf(solution.error).all())


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_accuracies_that_are_not_positive_are_refused(solver: str) -> None:
    energy = energies()["tv"]
    for bad in (0.0, -1e-3, math.nan, torch.tensor([1.0, 0.0, 1.0])):
        with pytest.raises(ValueError, match=r"accuracy asked for is .*, but must be positive"):
            SOLVERS[solver](energy, energy.y, bad)


def test_bad_options_are_refused() -> None:
    for make_solver, message in (
        (lambda: FISTA(max_iterations=0), "max_iterations is 0"),
        (lambda: FISTA(initial_lipschitz=0.0), "initial_lipschitz is 0"),
        (lambda: LBFGS(memory=0), "memory is 0"),
        (lambda: LBFGS(max_iterations=0), "max_iterations is 0"),
        (lambda: LBFGS(armijo=0.5), r"armijo is 0\.5"),
    ):
        with pytest.raises(ValueError, match=message):
            make_solver()


def test_start_is_not_changed_and_the_exact_solution_costs_one_evaluation() -> None:
    regularizer, y = Quadratic(), normal(2, 1, 3, 4)
    energy, exact = Energy(y, regularizer), regularizer.solve(y)
    for solver in FAST:
        start = y.clone()
        SOLVERS[solver](energy, start, 1e-8)
        assert torch.equal(start, y)
        solution = SOLVERS[solver](energy, exact, 1e-8)
        assert solution.evaluations.tolist() == [1, 1]
        assert torch.equal(solution.x, exact)


def test_images_that_are_constant_or_zero() -> None:
    for value in (0.0, 1.0):
        for name in FAST:
            y = torch.full((2, 1, 6, 6), value, dtype=torch.float64)
            solution = SOLVERS[name](Energy(y, make("tv")), y, 1e-6)
            assert solution.converged
            assert float((solution.x - y).abs().max()) <= 1e-6


EVERY: list[Solver] = [LBFGS(), FISTA(), ProjectedLBFGS()]


@pytest.mark.parametrize("solver", EVERY, ids=lambda s: type(s).__name__)
def test_what_would_be_broadcast_is_refused(solver: Solver) -> None:
    """One column for all, one image for two, a missing batch axis: none of these is the problem that was meant."""
    blur, y = Blur(0.7, (1, 6, 5), "periodic"), normal(2, 1, 6, 5)
    for bad in (y[..., :1], y[0], y[:0], y[:, 0]):
        with pytest.raises(ValueError, match=r"the data have the shape .* Blur maps to \(batch, 1, 6, 5\)"):
            Energy(bad, make("tv"), blur, mu=1.0)
    for dtype in (torch.float16, torch.bfloat16, torch.int64):
        with pytest.raises(ValueError, match="must be float32 or float64"):
            Energy(y.to(dtype), make("tv"), blur, mu=1.0)
    energy = Energy(y, make("tv"), blur, mu=1.0)
    for start in (y[:1], y[:0]):
        with pytest.raises(ValueError, match="needs one image for each of the data"):
            solver(energy, start, 1e-2)
    with pytest.raises(ValueError, match="both must be the same"):
        solver(Energy(y[..., :1], make("tv")), y, 1e-2)
    with pytest.raises(ValueError, match=r"the start is torch.float32, but the data are torch.float64"):
        solver(energy, y.float(), 1e-2)
    with pytest.raises(ValueError, match=r"one for each of 2 images, got \(3,\)"):
        solver(energy, y, torch.ones(3))


@pytest.mark.parametrize("solver", EVERY, ids=lambda s: type(s).__name__)
def test_no_graph_of_the_iteration_is_kept(solver: Solver) -> None:
    y = normal(2, 1, 6, 5).requires_grad_()
    solution = solver(Energy(y, make("tv")), y, 1e-2)
    assert solution.converged
    assert not solution.x.requires_grad
    assert not solution.gradient.requires_grad


@pytest.mark.parametrize("solver", EVERY, ids=lambda s: type(s).__name__)
def test_nothing_is_certified_where_the_adjoint_is_not_exact(solver: Solver) -> None:
    blur, y = Blur(0.7, (1, 6, 5), "periodic"), normal(2, 1, 6, 5)
    blur.adjoint_exact = False
    solution = solver(Energy(y, make("tv"), blur, mu=1.0), y, 1e-2)
    assert solution.error.tolist() == [math.inf] * 2
    with pytest.raises(ValueError, match="adjoint is not the exact transpose"):
        BilevelObjective(make("tv"), y, y, blur, mu=1.0)
