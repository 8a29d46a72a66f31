"""Callbacks, limits and saved states of the solvers that share one loop."""

from __future__ import annotations

import io
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from models import ICNN, Convexity, LeakyReLU, LearnedTV, PrimalDual
from recon.lower_level import (
    FISTA,
    LBFGS,
    PDHG,
    Energy,
    KullbackLeibler,
    ProjectedLBFGS,
    SaddlePoint,
    Snapshot,
    Status,
    SteppedSolver,
    first_guess,
)
from recon.lower_level.solvers.descent import descend
from recon.operators import Blur, ParallelBeam, RayTransform
from tests.lower_level.problems import exact_minimizer, make, normal, norms, smooth_image

SOLVERS: dict[str, SteppedSolver[Any]] = {
    "fista": FISTA(),
    "fista_backtracking": FISTA(backtracking=True),
    "lbfgs": LBFGS(),
    "lbfgs_short": LBFGS(memory=2, precondition=False),
    "projected": ProjectedLBFGS(),
    "projected_short": ProjectedLBFGS(memory=2, precondition=False),
}
LIMITED: list[type[FISTA] | type[LBFGS] | type[ProjectedLBFGS]] = [FISTA, LBFGS, ProjectedLBFGS]
#: the images of the batch leave the loop at different times
ACCURACY = torch.tensor([1e-1, 1e-7, 1e-3], dtype=torch.float64)


def energies() -> dict[str, Energy]:
    y = smooth_image(3, 1, 8, 7, seed=3) + normal(3, 1, 8, 7, scale=0.2)
    rays = RayTransform(ParallelBeam.equispaced((8, 7), 8.0, 6), cache=False)
    return {
        "tv": Energy(y, make("tv")),
        "blur": Energy(y, make("crr"), Blur(0.7, (1, 8, 7), "periodic"), mu=0.1),
        "rays": Energy(rays(y.abs()), make("tv"), rays, KullbackLeibler(5.0), mu=20.0),  # has a preconditioner
    }


def kept(snapshots: list[Snapshot]) -> list[Snapshot]:
    return [Snapshot(s.iteration, s.x.clone(), s.evaluations.clone(), s.error.clone()) for s in snapshots]


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_callbacks_are_told_every_iteration_and_the_solution_at_last(solver: str) -> None:
    energy, seen, copies = energies()["tv"], [], []

    def note(snapshot: Snapshot) -> None:
        seen.append(snapshot)
        copies.extend(kept([snapshot]))

    solution = SOLVERS[solver](energy, energy.y, ACCURACY, note)
    assert [s.iteration for s in seen] == list(range(len(seen)))
    assert seen[0].evaluations.tolist() == [1, 1, 1]
    for before, after in itertools.pairwise(seen):
        assert bool((after.evaluations >= before.evaluations).all())
    if "backtracking" not in solver:
        assert [int(s.evaluations.max()) for s in seen] == list(range(1, len(seen) + 1))
    for s, copy in zip(seen, copies, strict=True):  # snapshots may be kept: nothing changes in them afterwards
        assert torch.equal(s.x, copy.x)
        assert torch.equal(s.evaluations, copy.evaluations)
        assert torch.equal(s.error, copy.error)
    for name in ("x", "error", "evaluations"):
        assert torch.equal(getattr(seen[-1], name), getattr(solution, name))
    alone = SOLVERS[solver](energy, energy.y, ACCURACY)
    assert torch.equal(alone.x, solution.x)
    assert torch.equal(alone.evaluations, solution.evaluations)


@pytest.mark.parametrize("solver", ["fista", "lbfgs"])
def test_errors_that_callbacks_are_told_are_true(solver: str) -> None:
    energy, seen = energies()["blur"], list[Snapshot]()
    exact = exact_minimizer(energy, energy.y.clone())
    SOLVERS[solver](energy, energy.y, ACCURACY, seen.append)
    assert len(seen) > 5
    for s in seen:
        assert bool((norms(s.x - exact) <= s.error + 1e-12).all())


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_a_callback_ends_the_solve_by_stop_iteration(solver: str) -> None:
    energy, seen = energies()["tv"], list[Snapshot]()

    def until(snapshot: Snapshot) -> None:
        seen.append(snapshot)
        if float(snapshot.error[1]) <= 1e-2:
            raise StopIteration

    solution = SOLVERS[solver](energy, energy.y, ACCURACY, until)
    assert solution.status.tolist()[:2] == [Status.CONVERGED, Status.ITERATION_LIMIT]
    assert 1e-7 < float(solution.error[1]) <= 1e-2
    assert torch.equal(solution.x, seen[-1].x)
    assert torch.equal(solution.error, seen[-1].error)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_else_a_callback_raises_comes_out(error: type[BaseException]) -> None:
    energy = energies()["tv"]

    def fail(snapshot: Snapshot) -> None:
        raise error("mine")

    with pytest.raises(error, match="mine"):
        LBFGS()(energy, energy.y, 1e-3, fail)


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
@pytest.mark.parametrize("solver", LIMITED)
def test_a_limit_is_the_number_of_evaluations_for_every_solver(
    solver: type[FISTA] | type[LBFGS] | type[ProjectedLBFGS], limit: int
) -> None:
    counted = CountedEnergy(energies()["tv"].y, make("tv"))
    solution = solver(max_iterations=limit)(counted, counted.y, 1e-9)
    assert solution.status.tolist() == [Status.ITERATION_LIMIT] * 3
    assert solution.evaluations.tolist() == [limit] * 3
    assert counted.calls == limit


class CountedEnergy(Energy):
    """Counts the evaluations of all energies that it was split into."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.made = [0]

    @property
    def calls(self) -> int:
        return self.made[0]

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.made[0] += 1
        return super().value_and_grad(x)


def test_a_subclass_of_energies_survives_select() -> None:
    energy = CountedEnergy(energies()["tv"].y, make("tv"))
    part = energy.select(torch.tensor([2, 0]))
    assert type(part) is CountedEnergy
    assert torch.equal(part.y, energy.y[[2, 0]])
    x = normal(3, 1, 8, 7)
    expected = energies()["tv"].value_and_grad(x)
    for mine, whole in zip(part.value_and_grad(x[[2, 0]]), expected, strict=True):
        torch.testing.assert_close(mine, whole[[2, 0]])
    solution = LBFGS()(energy, energy.y, ACCURACY)  # and so in solvers, whose images leave one by one
    assert energy.calls == 1 + int(solution.evaluations.max())


@pytest.mark.parametrize("name", ["tv", "rays"])
@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_a_solve_that_was_saved_goes_on_bit_for_bit(solver: str, name: str) -> None:
    """From any iteration, through a file that holds nothing but tensors, on an energy that was made anew."""
    energy, method, files = energies()[name], SOLVERS[solver], list[bytes]()
    start = first_guess(energy.operator, energy.y)
    assert (energy.preconditioner(start) is not None) == (name == "rays")
    solve = method.start(energy, start, ACCURACY)

    def save(snapshot: Snapshot) -> None:
        file = io.BytesIO()
        torch.save(solve.state_dict(), file)
        files.append(file.getvalue())

    expected, told = solve.run(save), method(energy, start, ACCURACY)
    assert len(files) > 5
    for file in (*files[:: max(1, len(files) // 6)], files[-1]):
        saved, seen = torch.load(io.BytesIO(file), weights_only=True), list[Snapshot]()
        again = method.resume(energies()[name], saved).run(seen.append)
        assert seen[0].iteration == int(saved["progress"]["iteration"])
        for other in (expected, told):
            for field, value in vars(other).items():
                assert torch.equal(getattr(again, field), value), field
    finished = method.resume(energies()[name], solve.state_dict())
    assert torch.equal(finished.run().x, expected.x)


@pytest.mark.parametrize("solver", LIMITED)
def test_a_solve_that_met_its_limit_goes_on_with_a_larger_one(
    solver: type[FISTA] | type[LBFGS] | type[ProjectedLBFGS],
) -> None:
    energy, saved = energies()["tv"], list[Any]()
    short = solver(max_iterations=4).start(energy, energy.y, 1e-6)
    assert short.run(lambda snapshot: saved.append(short.state_dict())).status.tolist() == [Status.ITERATION_LIMIT] * 3
    again, whole = solver().resume(energy, saved[-1]).run(), solver()(energy, energy.y, 1e-6)
    assert again.converged
    assert torch.equal(again.x, whole.x)
    assert torch.equal(again.evaluations, whole.evaluations)


def test_states_that_belong_to_something_else_are_refused() -> None:
    energy = energies()["tv"]
    saved = LBFGS().start(energy, energy.y, 1e-3).state_dict()
    with pytest.raises(ValueError, match="this is not what a solve of FISTA saved"):
        FISTA().resume(energy, saved)
    with pytest.raises(ValueError, match="this is not what a solve of LBFGS saved"):
        LBFGS().resume(energy, {name: part for name, part in saved.items() if name != "stopping"})
    with pytest.raises(ValueError, match="the start has the shape"):
        LBFGS().resume(energy.select(torch.tensor([0, 1])), saved)


def saddle_problem(y: Tensor) -> tuple[SaddlePoint, tuple[Tensor, Tensor]]:
    """Learned total variation, and where to start."""
    model = LearnedTV(log_weight=-1.5, convexity=Convexity(0.3, 0.2), smoothing=0.1).double()
    with torch.no_grad():
        saddle = model.saddle_point(y)
        return saddle, saddle.split(model.initial(y))


def test_primal_dual_steps_are_told_with_their_certificates() -> None:
    saddle, start = saddle_problem(smooth_image(2, 1, 6, 5, seed=1))
    seen: list[Snapshot] = []
    goal = torch.tensor([1e-1, 1e-4], dtype=torch.float64)
    solution = PDHG()(saddle, *start, goal, seen.append)
    assert [s.iteration for s in seen] == list(range(1, len(seen) + 1))
    assert torch.equal(seen[-1].x, saddle.image(solution.x))
    assert torch.equal(seen[-1].error, solution.error)
    assert torch.equal(seen[-1].evaluations, solution.evaluations)
    for s in seen:
        assert bool((norms(s.x - seen[-1].x) <= s.error + solution.error).all())

    def until(snapshot: Snapshot) -> None:
        if snapshot.iteration == 7:
            raise StopIteration

    stopped = PDHG()(saddle, *start, 1e-9, until)
    assert stopped.status.tolist() == [Status.ITERATION_LIMIT] * 2
    assert stopped.evaluations.tolist() == [8] * 2
    assert torch.equal(saddle.image(stopped.x), saddle.image(PDHG(7)(saddle, *start, 1e-9).x))


@pytest.mark.parametrize("kind", ["adaptive", "fixed", "diagonal", "bare"])
def test_a_primal_dual_solve_that_was_saved_goes_on_bit_for_bit(kind: str) -> None:
    """From any step, through a file that holds nothing but tensors, on a problem that was made anew."""
    y = smooth_image(3, 1, 6, 5, seed=1) + normal(3, 1, 6, 5, scale=0.1)
    saddle, start = saddle_problem(y)
    solver = PDHG(adaptive=kind != "fixed", diagonal=kind == "diagonal", certified=kind != "bare")
    solve, files = solver.start(saddle, *start, ACCURACY), list[bytes]()

    def save(snapshot: Snapshot) -> None:
        file = io.BytesIO()
        torch.save(solve.state_dict(), file)
        files.append(file.getvalue())

    expected, told = solve.run(save), solver(saddle, *start, ACCURACY)
    assert len(set(expected.evaluations.tolist())) == 3  # the images left at different times
    anew, _ = saddle_problem(y)
    for file in (*files[:: max(1, len(files) // 12)], files[-1]):
        saved, seen = torch.load(io.BytesIO(file), weights_only=True), list[Snapshot]()
        again = solver.resume(anew, saved).run(seen.append)
        assert seen[0].iteration == int(saved["progress"]["iteration"])
        for other in (expected, told):
            for field, value in vars(other).items():
                assert torch.equal(getattr(again, field), value), field
    assert torch.equal(solver.resume(anew, solve.state_dict()).run().x, expected.x)


def test_a_primal_dual_solve_that_met_its_limit_goes_on_with_a_larger_one() -> None:
    (saddle, start), saved = saddle_problem(smooth_image(2, 1, 6, 5, seed=1)), list[Any]()
    short = PDHG(6).start(saddle, *start, 1e-6)
    assert short.run(lambda snapshot: saved.append(short.state_dict())).status.tolist() == [Status.ITERATION_LIMIT] * 2
    again, whole = PDHG().resume(saddle, saved[-1]).run(), PDHG()(saddle, *start, 1e-6)
    assert again.converged
    assert torch.equal(again.x, whole.x)
    assert torch.equal(again.evaluations, whole.evaluations)


def test_primal_dual_states_that_belong_to_something_else_are_refused() -> None:
    saddle, start = saddle_problem(smooth_image(2, 1, 6, 5, seed=1))
    saved = PDHG().start(saddle, *start, 1e-3).state_dict()
    with pytest.raises(ValueError, match=r"the saved x has \d+ components, but K takes \d+"):
        PDHG().resume(saddle_problem(smooth_image(2, 1, 7, 5))[0], saved)
    with pytest.raises(ValueError, match="this is not what a solve of PDHG saved: 'track'"):
        PDHG().resume(saddle, {name: part for name, part in saved.items() if name != "track"})
    del saved["state"]["kty"]
    with pytest.raises(ValueError, match="this is not what a solve of PDHG saved: 'kty'"):
        PDHG().resume(saddle, saved)


def test_all_runs_of_the_primal_dual_solver_are_one_to_callbacks() -> None:
    y = smooth_image(2, 1, 6, 5, seed=1) + normal(2, 1, 6, 5, scale=0.1)
    energy, seen = Energy(y, ICNN(3, 3, 2, activation=LeakyReLU(width=0.05), log_weight=-2).double()), list[Snapshot]()
    solution = PrimalDual()(energy, y, 1e-5, seen.append)
    assert solution.converged
    assert [s.iteration for s in seen] == list(range(1, len(seen) + 1))
    assert torch.equal(seen[-1].x, solution.x)
    assert torch.equal(seen[-1].evaluations + 1, solution.evaluations)  # and the gradient that certifies


def test_descent_stops_early_where_its_callback_says_so() -> None:
    energy = energies()["blur"]
    seen: list[Snapshot] = []

    def until(snapshot: Snapshot) -> None:
        seen.append(snapshot)
        if snapshot.iteration == 5:
            raise StopIteration

    x, grad = descend(energy, energy.y, 100, until)
    assert [s.iteration for s in seen] == list(range(6))
    assert [int(s.evaluations[0]) for s in seen] == list(range(1, 7))
    expected = descend(energy, energy.y, 5)
    assert torch.equal(x, expected[0])
    assert torch.equal(grad, expected[1])
    exact = exact_minimizer(energy, energy.y.clone())
    assert all(bool((norms(s.x - exact) <= s.error).all()) for s in seen)
    unknown = Energy(energy.y, make("foe_student", 1, 2.0))
    descend(unknown, energy.y, 1, seen.append)
    assert seen[-1].error.tolist() == [math.inf] * 3
