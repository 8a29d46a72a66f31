"""Total variation without smoothing: no certificate is smaller than the error, and every term of it counts."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recon.lower_level import Grade, Snapshot, Status, TotalVariationProblem, TotalVariationSolver
from recon.lower_level.solvers.total_variation import iteration as iterations
from recon.lower_level.solvers.total_variation.certificate import GapCertificate
from recon.lower_level.solvers.total_variation.iteration import Sums
from tests.lower_level.solvers.exact_tv import dense, noise, objective, reference, variation

SOLVER = TotalVariationSolver(20_000)


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


@pytest.mark.parametrize("isotropic", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_certificate_is_the_gap_less_a_quarter_of_the_distance(
    isotropic: bool, weighted: bool, engine: str
) -> None:
    # early, and with bounds that hold some pixels, so that every term counts
    y = 0.3 + noise(1, 1, 7, 9)
    weights = noise(1, 1, 7, 9, seed=3).abs() + 0.5 if weighted else None
    image, scale = TotalVariationProblem(y, 0.4, weights, isotropic, 0.0, 0.8).image(0)
    begun = iterations.stepper(image, image.y.clamp(0.0, 0.8), torch.zeros(2, 1, 7, 9, dtype=torch.float64))
    begun.advance([iterations.Step(1 / (8 * 0.5 * image.alpha), 0.5, 0.8)] * 3)
    x, p = begun.x[0].numpy().ravel(), begun.p.numpy().ravel()
    matrix, w = dense(7, 9), np.ones(63) if weights is None else (weights / scale).numpy().ravel()
    data, alpha = y.numpy().ravel(), image.alpha
    best = np.clip(data - alpha * (matrix.T @ p) / w, 0.0, 0.8)

    def phi(t: np.ndarray) -> float:
        return float(0.5 * (w * (t - data) ** 2).sum() + alpha * (matrix @ t) @ p)

    slack, distance = variation(matrix @ x, isotropic) - float((matrix @ x) @ p), float((w * (x - best) ** 2).sum())
    gap = alpha * slack + phi(x) - phi(best)
    sums = begun.certify()[1]
    assert sums.variation == pytest.approx(variation(matrix @ x, isotropic), rel=1e-12)
    assert min(slack, distance, gap - alpha * slack - 0.5 * distance) > 1e-3
    found = GapCertificate(image).look(begun)
    assert found.weighted**2 == pytest.approx(gap - 0.25 * distance, rel=1e-10)
    assert np.allclose(found.x.numpy().ravel(), 0.5 * (x + best), atol=1e-15)
    assert GapCertificate(image).gap(begun.x, begun.p) == pytest.approx(gap, rel=1e-10)


def test_where_weights_are_zero_the_certificate_is_twice_the_gap() -> None:
    y, mask = noise(1, 1, 7, 9), torch.ones(1, 1, 7, 9, dtype=torch.float64)
    mask[..., 2:4, 3:6] = 0
    image, _ = TotalVariationProblem(y, 0.4, mask).image(0)
    begun = iterations.stepper(image, image.y.clamp(-0.5, 0.5), torch.zeros(2, 1, 7, 9, dtype=torch.float64))
    begun.advance([iterations.Step(1 / (8 * 0.5 * image.alpha), 0.5, 0.8)] * 3)
    sums, found = begun.certify()[1], GapCertificate(image).look(begun)
    parts = (image.alpha * sums.slack, 0.5 * sums.distance, sums.bound)
    assert min(parts) > 1e-3
    assert found.weighted**2 == pytest.approx(2 * sum(parts), rel=1e-10)
    assert torch.equal(found.x, begun.x)


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
    y, w = noise(2, 1, 5, 6)[:1], noise(1, 1, 5, 6, seed=1).abs() + 0.01
    w[..., 0, 0] = 0
    image, _ = TotalVariationProblem(y, 2.0, w).image(0)
    free, alpha, u = GapCertificate(image), image.alpha, 2.0**-53
    sure = GapCertificate(dataclasses.replace(image, weights=None))

    def model(certificate: GapCertificate, square: float = 0.0, **sums: float) -> float:
        return certificate._rounded(square, Sums(**dict.fromkeys(Sums._fields, 0.0) | sums))[0] ** 2 - square

    def near(value: float) -> object:
        return pytest.approx(value, rel=1e-6, abs=0.0)

    steep = GapCertificate(dataclasses.replace(image, weights=None, alpha=1e6))
    assert model(steep) == near((u * (40e6 * math.sqrt(30) + 2 * float(image.y.norm()))) ** 2)
    field = u * (40 * alpha * math.sqrt(30) + 2 * float(image.y.norm()))
    assert model(sure) == near(field**2)
    assert model(sure, distance=1.0) == near(3 * field)
    assert model(sure, variation=1e9) == near(16 * u * alpha * 1e9)
    assert model(sure, 1.0) == pytest.approx((16 + 5 + 6) * u, rel=0.1, abs=0.0)
    least = float(image.weights[image.weights > 0].min())  # type: ignore[index, union-attr]
    sign = 40 * u * alpha * (image.high - image.low)
    assert model(free) == near(sign)
    field = u * (40 * alpha * math.sqrt(30 / least) + 2 * float(image.y.norm()))
    assert model(free, distance=1.0) == near(3 * field + sign)
    root, rounding = sure._rounded(3.0, Sums(1e9, 0.0, 0.0, 0.0, 0.0))
    assert root - rounding == pytest.approx(math.sqrt(3.0), abs=1e-12)
    assert sure._rounded(math.nan, Sums(0.0, 0.0, 0.0, 0.0, 0.0))[0] == math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_errors_of_the_result_count(dtype: torch.dtype, engine: str) -> None:
    # x = y exactly without regularization, so that only the rounding of the middle is left: none here
    y = torch.full((1, 1, 1, 4), 1 / 3, dtype=dtype)
    image, _ = TotalVariationProblem(y, 1.0).image(0)
    begun = iterations.stepper(image, y[0] + torch.finfo(dtype).eps / 4, torch.zeros(2, *y.shape[1:], dtype=dtype))
    x = torch.nextafter(y[0], torch.tensor(1.0, dtype=dtype))
    begun.move(x)
    middle, sums = begun.certify()
    lost = (middle.double() - 0.5 * (x.double() + y[0].double())).norm()
    assert sums.output >= float(lost) ** 2
    assert (sums.output > 1e-18) == (dtype == torch.float32)


def test_the_middle_itself_is_rounded_in_double_precision(engine: str) -> None:
    y = noise(1, 1, 3, 11) + 2.0
    image, _ = TotalVariationProblem(y, 0.1).image(0)
    middle, sums = iterations.stepper(image, y[0] + 0.3, torch.zeros(2, *y.shape[1:], dtype=y.dtype)).certify()
    assert sums.output == pytest.approx(2.0**-106 * float(middle.square().sum()), rel=1e-3, abs=0.0)


@pytest.mark.parametrize("isotropic", [False, True])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("axis", [0, 1])
def test_fields_of_length_nearly_one_have_no_slack(isotropic: bool, sign: float, axis: int, engine: str) -> None:
    """In single precision: eight units in the last place are less than what rounding takes or adds."""
    y = sign * torch.arange(12.0).view(1, 1, *((12, 1) if axis == 0 else (1, 12)))
    image, _ = TotalVariationProblem(y, 0.1, isotropic=isotropic).image(0)
    p = torch.zeros(2, *y.shape[1:])
    p[axis].view(-1)[:-1] = sign * (1 - 8 * 2.0**-24)
    assert iterations.stepper(image, y[0], p).certify()[1].slack == 0.0
    p[axis].view(-1)[:-1] = sign * (1 - 64 * 2.0**-24)
    assert iterations.stepper(image, y[0], p).certify()[1].slack == pytest.approx(11 * 64 * 2.0**-24, rel=1e-6)


def test_pixels_that_nothing_pulls_stay_where_they_are(engine: str) -> None:
    y = torch.full((1, 1, 4, 5), 0.25, dtype=torch.float64)
    y[..., 4] = 1.0
    image, _ = TotalVariationProblem(y, 0.1, torch.zeros_like(y) + (torch.arange(5) > 2), low=0.0, high=1.0).image(0)
    middle, sums = iterations.stepper(image, y[0], torch.zeros(2, 1, 4, 5, dtype=y.dtype)).certify()
    assert torch.equal(middle, y[0])
    assert sums.distance == sums.bound == 0


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


def test_the_gap_of_inpainting_counts_where_nothing_was_measured(engine: str) -> None:
    # a step between two ends: all monotone fillings are minimizers, so that one with a bump is not
    y = torch.tensor([0.0, 0.5, 0.5, 0.5, 1.0], dtype=torch.float64).view(1, 1, 1, 5)
    mask = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0], dtype=torch.float64).view(1, 1, 1, 5)
    problem = TotalVariationProblem(y, 0.1, mask)
    image, _ = problem.image(0)
    x = torch.tensor([0.1, 0.1, 0.9, 0.3, 0.9], dtype=torch.float64).view(1, 1, 5)
    p = torch.zeros(2, 1, 1, 5, dtype=torch.float64)
    p[1, 0, 0, :4] = torch.tensor([1.0, 0.5, 1.0, 1.0])
    sums = iterations.stepper(image, x, p).certify()[1]
    gap = image.alpha * sums.slack + 0.5 * sums.distance + sums.bound
    best = torch.tensor([0.1, 0.1, 0.5, 0.9, 0.9], dtype=torch.float64).view(1, 1, 1, 5)
    assert sums.bound > 0
    assert float(objective(problem, x[None]) - objective(problem, best)) <= gap + 1e-15
