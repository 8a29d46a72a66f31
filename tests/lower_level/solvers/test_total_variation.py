"""Total variation without smoothing: the minimizers are right, for everything that can be asked for."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.optimize import lsq_linear

from recon.lower_level import Grade, Snapshot, Status, TotalVariationProblem, TotalVariationSolver
from recon.lower_level.solvers.total_variation import iteration as iterations
from recon.native import library
from recon.operators import FiniteDifferences
from tests.lower_level.solvers.exact_tv import dense, noise, objective, reference

SOLVER = TotalVariationSolver(20_000)


# --- minimizers that are known ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("turned", [False, True])
def test_two_levels_move_towards_each_other_by_alpha_over_their_lengths(turned: bool, engine: str) -> None:
    y = torch.tensor([1.0] * 5 + [4.0] * 3, dtype=torch.float64).view(1, 1, 1, 8)
    x = torch.tensor([1.0 + 0.6 / 5] * 5 + [4.0 - 0.6 / 3] * 3, dtype=torch.float64).view(1, 1, 1, 8)
    if turned:
        y, x = y.mT, x.mT
    solution = SOLVER(TotalVariationProblem(y, 0.6), 1e-6)
    assert solution.converged
    assert float((solution.x - x).norm()) <= float(solution.error) <= 1e-6


def test_constant_images_stay_as_they_are(engine: str) -> None:
    y = torch.full((1, 2, 4, 5), 3.7)
    solution = SOLVER(TotalVariationProblem(y, 0.5), 1e-5)
    assert torch.equal(solution.x, y)
    assert float(solution.error) < 1e-5


def test_large_weights_leave_the_mean_of_every_channel(engine: str) -> None:
    y = noise(1, 2, 6, 7)
    solution = SOLVER(TotalVariationProblem(y, 20.0), 1e-8)
    assert solution.converged
    assert float((solution.x - y.mean((2, 3), keepdim=True)).norm()) <= 1e-8


def test_without_weight_the_data_stay_as_they_are(engine: str) -> None:
    y = noise(2, 1, 5, 5)
    solution = SOLVER(TotalVariationProblem(y, 0.0), 1e-12)
    assert solution.converged
    assert torch.equal(solution.x, y)


def test_small_weights_move_the_data_along_the_signs_of_their_differences(engine: str) -> None:
    y = noise(1, 1, 6, 5)
    operator = FiniteDifferences((1, 6, 5))
    x = y - 1e-4 * operator.adjoint(operator(y).sign())
    solution = SOLVER(TotalVariationProblem(y, 1e-4, isotropic=False), 1e-8)
    assert float((solution.x - x).norm()) <= float(solution.error) <= 1e-8


@pytest.mark.parametrize("shape", [(1, 9), (7, 1), (1, 1), (5, 6)])
def test_anisotropic_minimizers_are_those_of_bounded_least_squares(shape: tuple[int, int], engine: str) -> None:
    y, weights = noise(1, 1, *shape), noise(1, 1, *shape, seed=1).abs() + 0.2
    root = weights.sqrt().numpy().ravel()
    matrix = 0.3 * dense(*shape).T / root[:, None]
    found = lsq_linear(matrix, root * y.numpy().ravel(), (-1, 1), tol=1e-14, method="bvls")
    x = torch.from_numpy((root * y.numpy().ravel() - matrix @ found.x) / root).view(y.shape)
    solution = SOLVER(TotalVariationProblem(y, 0.3, weights, isotropic=False), 1e-6)
    assert solution.converged
    assert float((solution.x - x).norm()) <= 1e-6


# --- what is asked for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isotropic", [False, True])
def test_x_is_not_negative_where_that_is_asked_for(isotropic: bool, engine: str) -> None:
    y = noise(1, 1, 6, 8)
    problem = TotalVariationProblem(y, 0.2, isotropic=isotropic, low=0.0)
    solution = SOLVER(problem, 1e-5)
    x, slack = reference(problem, 0)
    assert solution.converged
    assert float(solution.x.min()) == 0.0
    assert float((solution.x[0] - torch.from_numpy(x)).norm()) <= 1e-5 + slack


def test_pixels_without_weight_are_inpainted_and_only_the_gap_and_the_others_are_certified(engine: str) -> None:
    y, mask = noise(1, 1, 6, 8), torch.ones(1, 1, 6, 8, dtype=torch.float64)
    mask[..., 1:4, 2:6] = 0
    wild = torch.where(mask > 0, y, math.nan)
    problem = TotalVariationProblem(wild, 0.2, mask)
    solution = SOLVER(problem, 1e-3)
    assert solution.converged
    assert math.isinf(float(solution.error))
    assert int(solution.grade) == Grade.ESTIMATED
    assert float(solution.error_weighted) <= 1e-3
    best = SOLVER(problem, 1e-5)
    assert float((mask * (solution.x - best.x)).norm()) <= 1e-3 + 1e-5
    filled = dataclasses.replace(problem, y=torch.where(mask > 0, y, 0.0))
    values = objective(filled, solution.x) - objective(filled, best.x)
    assert float(values) <= float(solution.gap) < 0.1
    assert solution.x.min() >= y[mask > 0].min()
    assert solution.x.max() <= y[mask > 0].max()


def test_weights_of_all_pixels_are_a_smaller_alpha() -> None:
    y = noise(1, 1, 6, 8)
    weighted = SOLVER(TotalVariationProblem(y, 0.6, torch.full((1,), 3.0, dtype=torch.float64)), 1e-6)
    plain = SOLVER(TotalVariationProblem(y, 0.2), 1e-6)
    assert float((weighted.x - plain.x).norm()) <= 2e-6
    assert torch.allclose(weighted.gap, 3 * plain.gap, rtol=0.5)
    assert float(weighted.error_weighted) == pytest.approx(math.sqrt(3) * float(weighted.error), rel=1e-6)


def test_what_is_left_of_the_gradient_is_that_of_the_pair() -> None:
    y, w = noise(1, 1, 6, 8), noise(1, 1, 6, 8, seed=2).abs() + 0.1
    problem = TotalVariationProblem(y, 0.2, w)
    solution = SOLVER(problem, 1e-4)
    pull = FiniteDifferences((1, 6, 8)).adjoint(solution.dual[:, :, 0])
    assert torch.allclose(solution.gradient, w * (solution.x - y) + 0.2 * pull, atol=1e-14)
    assert float(solution.gradient.norm()) < 1e-3


def test_every_image_of_a_batch_is_solved_as_if_it_were_alone(engine: str) -> None:
    y, alphas = noise(4, 2, 9, 11).float(), torch.tensor([0.01, 0.1, 0.5, 2.0])
    goals = torch.tensor([1e-2, 1e-1, 1e-2, 1e-3], dtype=torch.float64)
    weights = noise(4, 2, 9, 11, seed=1).abs().float() + 0.1
    whole = SOLVER(TotalVariationProblem(y, alphas, weights), goals)
    for i in range(4):
        alone = SOLVER(TotalVariationProblem(y[i : i + 1], float(alphas[i]), weights[i : i + 1]), float(goals[i]))
        for field in dataclasses.fields(alone):
            assert torch.equal(getattr(whole, field.name)[i : i + 1], getattr(alone, field.name)), field.name
    assert len(set(whole.evaluations.tolist())) > 1


def test_bits_do_not_depend_on_the_number_of_threads(engine: str) -> None:
    y, threads = noise(3, 1, 190, 200).float(), torch.get_num_threads()
    try:
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(TotalVariationSolver(40)(TotalVariationProblem(y, 0.2), 1e-9))
    finally:
        torch.set_num_threads(threads)
    for field in dataclasses.fields(results[0]):
        assert torch.equal(getattr(results[0], field.name), getattr(results[1], field.name)), field.name


def test_kernels_compute_what_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    y = noise(1, 2, 40, 33)
    weights = noise(1, 2, 40, 33, seed=1).abs() + 0.1
    results = []
    for choice in ("best", "off"):
        monkeypatch.setenv("RECON_KERNELS", choice)
        problem = TotalVariationProblem(y, 0.2, weights, low=-0.5)
        results.append(TotalVariationSolver(60)(problem, 1e-9))
    for name in ("x", "dual", "error", "gap", "gradient"):
        assert torch.allclose(*(getattr(r, name) for r in results), rtol=1e-9, atol=1e-11), name


@pytest.mark.parametrize("width", [3, 5000])
def test_steps_that_follow_one_another_through_the_rows_are_steps_one_by_one(width: int) -> None:
    y = noise(1, 1, 9, width)
    image, _ = TotalVariationProblem(y, 0.2).image(0)
    steps = [iterations.Step(1 / (8 * t * 0.2), t, 0.8) for t in (1.0, 0.8, 0.6, 0.4, 0.3)] * 8
    runs = [iterations.stepper(image, y[0], torch.zeros(2, 1, 9, width, dtype=torch.float64)) for _ in range(2)]
    runs[0].advance(steps)
    for step in steps:
        runs[1].advance([step])
    assert torch.equal(runs[0].x, runs[1].x)
    assert torch.equal(runs[0].p, runs[1].p)


# --- when it stops ---------------------------------------------------------------------------------------------------


def test_a_solve_goes_on_from_another_solution() -> None:
    y = noise(1, 1, 24, 24)
    before = SOLVER(TotalVariationProblem(y, 0.30), 1e-3)
    cold = SOLVER(TotalVariationProblem(y, 0.29), 1e-3)
    warm = SOLVER(TotalVariationProblem(y, 0.29), 1e-3, start=before)
    assert warm.converged
    assert int(warm.evaluations) < int(cold.evaluations)
    again = SOLVER(TotalVariationProblem(y, 0.30), 1e-3, start=before)
    assert int(again.evaluations) < 0.7 * int(before.evaluations)


def test_limits_are_said(engine: str) -> None:
    solution = TotalVariationSolver(7)(TotalVariationProblem(noise(1, 1, 9, 9), 0.3), 1e-9)
    assert int(solution.status) == Status.ITERATION_LIMIT
    assert int(solution.evaluations) == 8  # steps, and one look at the certificate
    assert not solution.converged


def test_a_callback_sees_the_batch_and_may_end_it() -> None:
    seen: list[Snapshot] = []

    def watch(snapshot: Snapshot) -> None:
        seen.append(snapshot)
        if len(seen) == 3:
            raise StopIteration

    solution = SOLVER(TotalVariationProblem(noise(2, 1, 16, 16), 0.3), 1e-12, callback=watch)
    assert len(seen) == 3
    assert solution.status.tolist() == [Status.ITERATION_LIMIT] * 2
    assert seen[-1].x.shape == (2, 1, 16, 16)
    assert float(seen[-1].error[0]) < float(seen[0].error[0])


def test_an_empty_batch_has_an_empty_solution() -> None:
    solution = SOLVER(TotalVariationProblem(torch.zeros(0, 1, 4, 4), 0.3), 1e-3)
    assert solution.x.shape == (0, 1, 4, 4)
    assert solution.dual.shape == (0, 2, 1, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": torch.zeros(1, 4, 4)}, r"y has the shape \(1, 4, 4\)"),
        ({"y": torch.zeros(1, 1, 4, 4, dtype=torch.float16)}, "float16"),
        ({"y": torch.full((1, 1, 4, 4), math.nan)}, "y holds 16 values that are NaN or infinite"),
        ({"alpha": -0.1}, "alpha is -0.1, but must be finite and not negative"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"alpha": torch.tensor([0.1, 0.2, 0.3])}, r"alpha has the shape \(3,\)"),
        ({"weights": -torch.ones(1, 1, 4, 4)}, "weights are -1"),
        ({"weights": torch.full((1,), math.nan)}, "weights are -inf or NaN"),
        ({"weights": torch.zeros(1)}, "weights of an image are all zero"),
        ({"weights": torch.ones(1, 1, 3, 4)}, r"weights have the shape \(1, 1, 3, 4\)"),
        ({"low": 1.0, "high": 0.0}, "low is 1.0 and high 0.0"),
    ],
)
def test_what_is_no_problem_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TotalVariationProblem(**{"y": torch.zeros(1, 1, 4, 4), "alpha": 0.1, **arguments})


def test_accuracies_and_starts_that_do_not_fit_are_refused() -> None:
    problem = TotalVariationProblem(torch.zeros(1, 1, 4, 4), 0.1)
    with pytest.raises(ValueError, match="accuracy asked for is 0"):
        SOLVER(problem, 0.0)
    with pytest.raises(ValueError, match="one for each of 1 images"):
        SOLVER(problem, torch.ones(2))
    with pytest.raises(ValueError, match="start is for images"):
        SOLVER(problem, 1.0, start=SOLVER(TotalVariationProblem(torch.zeros(1, 1, 5, 4), 0.1), 1.0))
    with pytest.raises(ValueError, match="max_iterations"):
        TotalVariationSolver(0)


def test_the_environment_chooses_and_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECON_KERNELS", "fastest")
    with pytest.raises(ValueError, match="RECON_KERNELS is 'fastest', but must be one of best, off"):
        SOLVER(TotalVariationProblem(torch.zeros(1, 1, 4, 4), 0.1), 1.0)


def test_a_missing_library_is_said(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="no compiled library _nothing"):
        assert library(tmp_path, "_nothing", 1) is None
