"""What certificates say they rest on."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from recon.bilevel import MAID, Accuracy, BilevelObjective, NegativePSNR, SaddleObjective
from recon.bilevel.evaluation import Evaluation
from recon.lower_level import FISTA, LBFGS, PDHG, Energy, Grade, LinearSolution, ProjectedLBFGS, Solution
from recon.lower_level.grade import SHARE, grade_bounds, modelled_part, proved_part, worst
from tests.lower_level.problems import make, normal, norms, smooth_image
from tests.lower_level.saddle.saddle_problems import FilterModel
from tests.lower_level.test_precision import Dense, Ridge, SinglePrecision

SOLVERS: list[Callable[[], FISTA | LBFGS | ProjectedLBFGS]] = [LBFGS, FISTA, ProjectedLBFGS]


def grades(*values: Grade) -> list[int]:
    return [int(v) for v in values]


def test_of_a_bound() -> None:
    bound = torch.tensor([1.0, 1.0, 1.0, math.inf, math.nan], dtype=torch.float64)
    rounding = torch.tensor([0.5 * SHARE, 2 * SHARE, math.nan, 0.0, 0.0], dtype=torch.float64)
    unknown = [Grade.ESTIMATED] * 2
    found = grade_bounds(bound, rounding, torch.float64, Grade.PROVED)
    assert found.tolist() == grades(Grade.PROVED, Grade.MODELLED, Grade.MODELLED, *unknown)
    found = grade_bounds(bound, rounding, torch.float32, Grade.PROVED)
    assert found.tolist() == grades(*[Grade.MODELLED] * 3, *unknown)
    assert grade_bounds(bound, rounding, torch.float64, Grade.ESTIMATED).tolist() == grades(*[Grade.ESTIMATED] * 5)


def test_parts_of_a_bound() -> None:
    bound = torch.tensor([1.0, 1.0, 1.0, math.inf, math.inf, 1.0, math.nan], dtype=torch.float64)
    rounding = torch.tensor([0.25, 1.0, 2.0, math.inf, 0.0, math.inf, 0.0], dtype=torch.float64)
    proved = proved_part(bound, rounding)
    assert proved.tolist() == [0.75, 0.0, 0.0, 0.0, math.inf, 0.0, 0.0]
    assert modelled_part(bound, proved)[:-1].tolist() == [0.25, 1.0, 1.0, math.inf, math.inf, 1.0]
    assert modelled_part(bound, bound + math.nan)[:-1].tolist() == bound[:-1].tolist()
    assert proved_part(bound, None).tolist() == [0.0] * 7  # of which nothing is said: all of it is modelled
    assert float(modelled_part(bound[:1], bound[:1] * (1 + 1e-15))) == 0


def test_linear_solutions_that_say_nothing() -> None:
    one = torch.ones(2, dtype=torch.float64)
    assert LinearSolution(one, one, 3 * one, one.long(), one.long()).rounding.tolist() == [3.0, 3.0]


def test_the_worst_counts() -> None:
    assert worst(torch.tensor([0, 1]), Grade.PROVED) is Grade.MODELLED
    assert worst(torch.tensor([0, 1]), Grade.ESTIMATED) is Grade.ESTIMATED
    assert worst(torch.tensor([], dtype=torch.int64)) is worst() is Grade.PROVED
    assert [g.word for g in Grade] == ["proved", "modelled", "estimated"]


@pytest.mark.parametrize("solver", SOLVERS)
def test_solutions(solver: Callable[[], FISTA | LBFGS | ProjectedLBFGS]) -> None:
    y, regularizer = smooth_image(2, 1, 8, 8), make("tv")
    loose, floor = (solver()(Energy(y, regularizer), y, accuracy) for accuracy in (1e-3, 1e-300))
    assert loose.grade.tolist() == grades(Grade.PROVED, Grade.PROVED)
    assert bool((loose.rounding <= SHARE * loose.error).all())
    # at the floor of the type rounding is what is left
    assert floor.grade.tolist() == grades(Grade.MODELLED, Grade.MODELLED)
    assert bool((floor.rounding > 0.1 * floor.error).all())
    single = solver()(Energy(y.float(), make("tv", dtype=torch.float32)), y.float(), 1e-3)
    assert single.grade.tolist() == grades(Grade.MODELLED, Grade.MODELLED)
    # the proved part: the residual over the modulus
    if solver is not ProjectedLBFGS:
        exact = norms(loose.gradient) / Energy(y, regularizer).strong_convexity
        torch.testing.assert_close(loose.error - loose.rounding, exact)


def test_operators_decide() -> None:
    y = normal(2, 1, 1, 40)
    for operator, grade in ((Dense(40), Grade.PROVED), (SinglePrecision(40), Grade.MODELLED)):
        found = LBFGS()(Energy(y, Ridge(0.3), operator), y, 1e-3)
        assert found.grade.tolist() == grades(grade, grade)
    guessed = Dense(40)
    guessed.norm_bound_certified = False
    for operator in (guessed, Dense(40, skew=1e-9)):
        found = LBFGS()(Energy(y, Ridge(0.3), operator), y, 1e-3)
        assert found.grade.tolist() == grades(Grade.ESTIMATED, Grade.ESTIMATED)


class Unknown(Ridge):
    """Convex, and nothing else is known of it: how rounding errors grow in it is a guess."""

    def smoothness(self) -> float:
        return math.inf


def test_guesses_are_estimates() -> None:
    y = normal(2, 1, 4, 4)
    assert LBFGS()(Energy(y, Unknown(0.3)), y, 1e-3).grade.tolist() == grades(Grade.ESTIMATED, Grade.ESTIMATED)


def test_solvers_that_say_nothing() -> None:
    one = torch.ones(2, dtype=torch.float64)
    found = Solution(normal(2, 1, 4, 4), normal(2, 1, 4, 4), one, one.long(), one.long())
    assert found.rounding.tolist() == [1.0, 1.0]
    assert found.grade.tolist() == grades(Grade.ESTIMATED, Grade.ESTIMATED)


# --- losses, hypergradients, records --------------------------------------------------------------------------------


def objective(dtype: torch.dtype = torch.float64, **options: object) -> BilevelObjective:
    target = smooth_image(2, 1, 8, 8).to(dtype)
    y = target + normal(2, 1, 8, 8, scale=0.1).to(dtype)
    return BilevelObjective(make("tv", dtype=dtype), target, y, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("second", [True, False])
@pytest.mark.parametrize("psnr", [True, False])
def test_intervals(second: bool, psnr: bool) -> None:
    loss = NegativePSNR() if psnr else None
    for dtype, accuracy, expected in (
        (torch.float64, 1e-3, Grade.PROVED),
        (torch.float64, 1e-300, Grade.MODELLED),
        (torch.float32, 1e-3, Grade.MODELLED),
    ):
        at = objective(dtype, loss=loss).evaluate(Accuracy(accuracy, accuracy), None, second)
        assert at.grade == expected
        length = max(at.value - at.lower, at.upper - at.value)
        assert 0 < at.rounding <= length + 1e-14 * abs(at.value)  # lower and upper are rounded
        assert (at.rounding <= SHARE * length) == (expected is Grade.PROVED and dtype is torch.float64)
        assert bool((at.error_rounding <= at.error).all())


def test_hypergradients() -> None:
    for dtype, accuracy, expected in (
        (torch.float64, 1e-3, Grade.PROVED),
        (torch.float64, 1e-300, Grade.MODELLED),
        (torch.float32, 1e-3, Grade.MODELLED),
    ):
        problem, wanted = objective(dtype), Accuracy(accuracy, accuracy)
        gradient = problem.hypergradient(problem.evaluate(wanted), wanted, bound=True)
        assert gradient.grade is expected
        assert gradient.certified
        assert 0 < gradient.rounding <= gradient.error
        assert (gradient.rounding <= SHARE * gradient.error) == (expected is Grade.PROVED)
        without = problem.hypergradient(problem.evaluate(wanted), wanted)
        assert (without.grade, without.error, without.certified) == (Grade.ESTIMATED, math.inf, False)


def test_records_and_older_checkpoints() -> None:
    problem = objective()
    record = MAID(problem.params).step(objective=problem)
    assert record.grade is Grade.PROVED or record.grade == Grade.PROVED
    assert 0 < record.rounding <= record.upper - record.lower
    at = problem.evaluate(Accuracy(1e-3, 1e-3))
    new = ("error_rounding", "adjoint_rounding", "rounding", "grade")
    loaded = Evaluation.from_state({name: value for name, value in at.state_dict().items() if name not in new})
    assert (loaded.grade, loaded.rounding) == (Grade.ESTIMATED, math.inf)
    assert torch.equal(loaded.error_rounding, at.error)
    assert torch.equal(loaded.adjoint.rounding, at.adjoint.residual)


def test_saddle_points() -> None:
    model, y = FilterModel((4, 3)), smooth_image(2, 1, 4, 3)
    saddle = model.saddle_point(y)
    start = saddle.split(model.initial(y))
    loose, floor = (PDHG()(saddle, *start, accuracy) for accuracy in (1e-3, 1e-300))
    basis = saddle.basis
    assert loose.grade.tolist() == grades(basis, basis)
    assert bool((loose.rounding > 0).all())
    assert bool((loose.rounding <= SHARE * loose.error).all())
    assert bool((floor.grade >= int(Grade.MODELLED)).all())
    problem, wanted = SaddleObjective(model, y, y), Accuracy(1e-3, 1e-3)
    at = problem.evaluate(wanted)
    assert at.grade == max(basis, Grade.PROVED)
    assert 0 < at.rounding < SHARE * (at.upper - at.lower)
    gradient = problem.hypergradient(at, wanted, bound=True)
    assert 0 < gradient.rounding < SHARE * gradient.error
    single: Tensor = y.float()
    at = SaddleObjective(FilterModel((4, 3)).float(), single, single).evaluate(wanted)
    assert at.grade >= Grade.MODELLED
