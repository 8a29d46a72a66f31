"""Total variation without smoothing: minimizers, and certificates that are true."""

from __future__ import annotations

import dataclasses
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear
from torch import Tensor

from recon.lower_level import Grade, Snapshot, Status, TotalVariationProblem, TotalVariationSolver
from recon.lower_level.solvers.total_variation import iteration as iterations
from recon.lower_level.solvers.total_variation.certificate import Certificate
from recon.lower_level.solvers.total_variation.iteration import Sums
from recon.native import library
from recon.operators import FiniteDifferences

SOLVER = TotalVariationSolver(20_000)


@pytest.fixture(params=["compiled", "torch"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What computes the steps: the kernel, where it was built, and torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = library(Path(iterations.__file__).parent, iterations.LIBRARY, iterations.VERSION)
    if request.param == "compiled" and found is None:
        pytest.skip("no kernel was built")
    monkeypatch.setenv("RECON_KERNELS", "off" if request.param == "torch" else "best")
    return request.param


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(height: int, width: int) -> np.ndarray:
    """D of one channel as a matrix, columns of both directions one below the other."""
    operator = FiniteDifferences((1, height, width))
    units = torch.eye(height * width, dtype=torch.float64).view(-1, 1, height, width)
    return operator(units).flatten(1).T.numpy()


def reference(problem: TotalVariationProblem, index: int, steps: int = 4000) -> tuple[np.ndarray, float]:
    """The minimizer in the norm of W by projected gradients on the dual, channel by channel, and a bound of its error.

    Plain FISTA with dense matrices, and the gap from its definition: nothing is shared with what is tested.
    """
    parts, square = [], 0.0
    alpha = float(torch.as_tensor(problem.alpha, dtype=torch.float64).expand(len(problem.y))[index])
    whole = torch.ones_like(problem.y) if problem.weights is None else problem.weights.expand(problem.y.shape)
    for y, w in zip(problem.y[index].double().numpy(), whole[index].double().numpy(), strict=True):
        matrix, y, w = dense(*y.shape), y.ravel(), w.ravel()
        lipschitz = 8 * alpha / w.min()
        p = np.zeros(len(matrix))
        q, t = p, 1.0

        def primal(p: np.ndarray, y: np.ndarray = y, w: np.ndarray = w, matrix: np.ndarray = matrix) -> np.ndarray:
            return np.clip(y - alpha * (matrix.T @ p) / w, problem.low, problem.high)

        for _ in range(steps):
            new = project(q + matrix @ primal(q) / lipschitz, problem.isotropic)
            t, before = (1 + math.sqrt(1 + 4 * t * t)) / 2, t
            p, q = new, new + (before - 1) / t * (new - p)
        x = primal(p)
        square += 2 * alpha * (variation(matrix @ x, problem.isotropic) - (matrix @ x) @ p)
        parts.append(x)
    shape = problem.y[index].shape
    return np.stack(parts).reshape(shape), math.sqrt(max(square, 0.0) + 1e-24)


def project(p: np.ndarray, isotropic: bool) -> np.ndarray:
    if not isotropic:
        return np.clip(p, -1, 1)
    pairs = p.reshape(2, -1)
    return (pairs / np.maximum(1, np.sqrt((pairs**2).sum(0)))).ravel()


def variation(z: np.ndarray, isotropic: bool) -> float:
    return float(np.sqrt((z.reshape(2, -1) ** 2).sum(0)).sum() if isotropic else abs(z).sum())


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


# --- certificates ----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 7),
    st.integers(1, 2),
    st.floats(0.01, 3.0),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from([3, 30, 300]),
    st.integers(0, 1000),
)
def test_no_certificate_is_smaller_than_the_error(
    height: int,
    width: int,
    channels: int,
    alpha: float,
    isotropic: bool,
    weighted: bool,
    nonnegative: bool,
    dtype: torch.dtype,
    steps: int,
    seed: int,
) -> None:
    y = noise(1, channels, height, width, seed=seed).to(dtype)
    weights = noise(1, channels, height, width, seed=seed + 1).abs().to(dtype) + 0.1 if weighted else None
    low = 0.0 if nonnegative else -math.inf
    problem = TotalVariationProblem(y, alpha, weights, isotropic, low)
    solution = TotalVariationSolver(steps)(problem, 1e-9)
    x, slack = reference(problem, 0)
    w = np.ones(x.shape) if weights is None else weights[0].double().numpy()
    away = solution.x[0].double().numpy() - x
    assert np.sqrt((w * away**2).sum()) <= float(solution.error_weighted) + slack
    assert np.sqrt((away**2).sum()) <= float(solution.error) + slack / math.sqrt(w.min())
    assert (
        float(objective(problem, solution.x)) - float(objective(problem, torch.from_numpy(x)[None]))
        <= float(solution.gap) + 1e-12
    )
    assert float(solution.rounding) <= float(solution.error)
    assert solution.x.min() >= low


def objective(problem: TotalVariationProblem, x: Tensor) -> Tensor:
    """F, one channel after the other."""
    x, y = x.double(), problem.y.double()
    w = torch.ones_like(y) if problem.weights is None else problem.weights.double()
    total = 0.5 * (w * (x - y).square()).flatten(1).sum(1)
    alpha = torch.as_tensor(problem.alpha, dtype=torch.float64)
    for channel in range(x.shape[1]):
        z = FiniteDifferences((1, *x.shape[2:]))(x[:, channel : channel + 1])
        lengths = z.norm(dim=1) if problem.isotropic else z.abs().sum(1)
        total = total + alpha * lengths.flatten(1).sum(1)
    return total


@pytest.mark.parametrize("isotropic", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_certificate_is_the_gap_less_a_quarter_of_the_distance(
    isotropic: bool, weighted: bool, engine: str
) -> None:
    # early, and with bounds that hold some pixels, so that every term counts
    y = 0.3 + noise(1, 1, 7, 9)
    weights = torch.rand(1, 1, 7, 9, generator=torch.Generator().manual_seed(3)).double() + 0.5 if weighted else None
    problem = TotalVariationProblem(y, 0.4, weights, isotropic, 0.0, 0.8)
    image, scale = problem.image(0)
    begun = iterations.iteration(image, image.y.clamp(0.0, 0.8), torch.zeros(2, 1, 7, 9, dtype=torch.float64))
    begun.advance([iterations.Step(1 / (8 * 0.5 * image.alpha), 0.5, 0.8)] * 3)
    x, p = begun.x[0].numpy().ravel(), begun.p.numpy().ravel()
    middle, sums = begun.certify()
    matrix, w = dense(7, 9), np.ones(63) if weights is None else (weights / scale).numpy().ravel()
    data, alpha = y.numpy().ravel(), image.alpha
    best = np.clip(data - alpha * (matrix.T @ p) / w, 0.0, 0.8)

    def phi(t: np.ndarray) -> float:
        return float(0.5 * (w * (t - data) ** 2).sum() + alpha * (matrix @ t) @ p)

    slack = variation(matrix @ x, isotropic) - float((matrix @ x) @ p)
    distance = float((w * (x - best) ** 2).sum())
    assert sums.variation == pytest.approx(variation(matrix @ x, isotropic), rel=1e-12)
    assert sums.slack == pytest.approx(slack, rel=1e-10)
    assert sums.distance == pytest.approx(distance, rel=1e-10)
    assert sums.bound == pytest.approx(phi(x) - phi(best) - 0.5 * distance, rel=1e-9)
    assert min(slack, distance, sums.bound) > 1e-3
    assert np.allclose(middle.numpy().ravel(), 0.5 * (x + best), atol=1e-15)


def test_bounds_and_gaps_are_made_of_these_sums() -> None:
    y = 0.3 + noise(1, 1, 7, 9)
    problem = TotalVariationProblem(y, 0.4, low=0.0, high=0.8)
    seen: list[Snapshot] = []
    solution = TotalVariationSolver(5)(problem, 1e-9, callback=seen.append)
    x, slack = reference(problem, 0)
    square = float((solution.x[0] - torch.from_numpy(x)).square().sum())
    # the certificate is no more than a few times the truth: a term that is counted twice or not at all is seen
    assert square <= float(solution.error) ** 2 <= 12 * square
    excess = float(objective(problem, solution.x)) - float(objective(problem, torch.from_numpy(x)[None]))
    assert excess <= float(solution.gap) <= 12 * excess
    assert slack < 1e-6
    assert torch.equal(seen[-1].x, solution.x)
    assert torch.equal(seen[-1].error, solution.error)


def test_where_rounding_errors_decide_the_certificate_has_them() -> None:
    # exact in integers: levels of 2^27 that move by alpha / 4; doubles have 26 bits behind the point there
    y = torch.tensor([2.0**27] * 4 + [2.0**27 + 2.0**20] * 4, dtype=torch.float64).view(1, 1, 1, 8)
    solution = TotalVariationSolver(3000)(TotalVariationProblem(y, 3.0), 1e-12)
    exact = torch.tensor([0.75] * 4 + [-0.75] * 4, dtype=torch.float64).view(1, 1, 1, 8)
    assert int(solution.status) == Status.PRECISION_FLOOR
    assert float(((solution.x - y) - exact).norm()) <= float(solution.error)
    assert 0 < float(solution.rounding) <= float(solution.error) < 1e-3
    assert int(solution.grade) == Grade.MODELLED


def test_every_rounding_error_is_in_the_bounds() -> None:
    y, w = 1e3 * noise(2, 1, 5, 6)[:1], noise(1, 1, 5, 6, seed=1).abs() + 0.01
    w[..., 0, 0] = 0
    image, _ = TotalVariationProblem(y, 2.0, w).image(0)
    free, alpha, u = Certificate(image), image.alpha, 2.0**-53
    sure = Certificate(dataclasses.replace(image, weights=None))

    def model(certificate: Certificate, square: float = 0.0, **sums: float) -> float:
        return certificate._rounded(square, Sums(**dict.fromkeys(Sums._fields, 0.0) | sums))[0] ** 2 - square

    field = u * (40 * alpha * math.sqrt(30) + 2 * float(image.y.norm()))
    assert model(sure) == pytest.approx(field**2)
    assert model(sure, distance=1.0) == pytest.approx(3 * field, rel=1e-6)
    assert model(sure, variation=1e9) == pytest.approx(16 * u * alpha * 1e9, rel=1e-6)
    assert model(sure, 1e9) == pytest.approx((16 + 5 + 6) * u * 1e9, rel=0.3)
    least = float(image.weights[image.weights > 0].min())  # type: ignore[index, union-attr]
    field = u * (40 * alpha * math.sqrt(30 / least) + 2 * float(image.y.norm()))
    assert model(free) == pytest.approx(field**2 + 40 * u * alpha * (image.high - image.low))
    root, rounding = sure._rounded(3.0, Sums(1e9, 0.0, 0.0, 0.0, 0.0))
    assert root - rounding == pytest.approx(math.sqrt(3.0), abs=1e-12)
    assert sure._rounded(math.nan, Sums(0.0, 0.0, 0.0, 0.0, 0.0))[0] == math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_errors_of_the_result_count(dtype: torch.dtype, engine: str) -> None:
    # x = y exactly without regularization, so that only the rounding of the middle is left: none here
    y = torch.full((1, 1, 1, 4), 1 / 3, dtype=dtype)
    image, _ = TotalVariationProblem(y, 1.0).image(0)
    begun = iterations.iteration(image, y[0] + torch.finfo(dtype).eps / 4, torch.zeros(2, *y.shape[1:], dtype=dtype))
    x = torch.nextafter(y[0], torch.tensor(1.0, dtype=dtype))
    begun.move(x)
    middle, sums = begun.certify()
    lost = (middle.double() - 0.5 * (x.double() + y[0].double())).norm()
    assert sums.output >= float(lost) ** 2
    assert (sums.output > 1e-18) == (dtype == torch.float32)


def test_single_precision_ends_at_its_floor_and_says_so(engine: str) -> None:
    y = 1 + noise(1, 1, 12, 12)
    solution = SOLVER(TotalVariationProblem(y.float(), 0.3), 1e-9)
    exact = SOLVER(TotalVariationProblem(y.float().double(), 0.3), 1e-6)
    assert int(solution.status) == Status.PRECISION_FLOOR
    assert float((solution.x - exact.x).norm()) <= float(solution.error) + float(exact.error)
    assert float(solution.error) < 1e-3


def test_double_precision_is_proved_where_its_rounding_is_small() -> None:
    solution = SOLVER(TotalVariationProblem(noise(1, 1, 12, 12), 0.3), 1e-3)
    assert int(solution.grade) == Grade.PROVED


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


def test_the_gap_of_inpainting_counts_where_nothing_was_measured(engine: str) -> None:
    # a step between two ends: all monotone fillings are minimizers, so that one with a bump is not
    y = torch.tensor([0.0, 0.5, 0.5, 0.5, 1.0], dtype=torch.float64).view(1, 1, 1, 5)
    mask = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0], dtype=torch.float64).view(1, 1, 1, 5)
    problem = TotalVariationProblem(y, 0.1, mask)
    image, _ = problem.image(0)
    x = torch.tensor([0.1, 0.1, 0.9, 0.3, 0.9], dtype=torch.float64).view(1, 1, 5)
    p = torch.zeros(2, 1, 1, 5, dtype=torch.float64)
    p[1, 0, 0, :4] = torch.tensor([1.0, 0.5, 1.0, 1.0])
    sums = iterations.iteration(image, x, p).certify()[1]
    gap = image.alpha * sums.slack + 0.5 * sums.distance + sums.bound
    best = torch.tensor([0.1, 0.1, 0.5, 0.9, 0.9], dtype=torch.float64).view(1, 1, 1, 5)
    assert sums.bound > 0
    assert float(objective(problem, x[None]) - objective(problem, best)) <= gap + 1e-15


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
    runs = [iterations.iteration(image, y[0], torch.zeros(2, 1, 9, width, dtype=torch.float64)) for _ in range(2)]
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
