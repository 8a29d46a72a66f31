"""Exact total variation as a method of reconstruction: images, masks, weights of data."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from recon.lower_level import KullbackLeibler, SquaredL2, TotalVariationProblem, TotalVariationSolver
from recon.operators import Blur, Mask, gaussian_kernel
from recon.reconstruction import Data, ExactTotalVariation, NoiseLevel, Origin, PlainTotalVariation, Problem, Request
from tests.lower_level.problems import normal, smooth_image


def solved(y: Tensor, weight: float, weights: Tensor | None = None) -> Tensor:
    return TotalVariationSolver()(TotalVariationProblem(y, weight, weights), 1e-6).x


def denoising(deviation: float = 0.1) -> Problem:
    y = 0.5 + 0.3 * smooth_image(1, 1, 24, 22, seed=3) + normal(1, 1, 24, 22, seed=4, scale=0.1)
    noise = NoiseLevel(deviation, "given", y.numel())
    return Problem(origin=Origin(Path("a.npy"), "a", "1"), noise=noise, y=y, start=y, baseline=y[0])


@pytest.mark.parametrize("isotropic", [True, False])
def test_the_regularizer_is_the_sum_of_the_lengths_of_differences(isotropic: bool) -> None:
    x = torch.zeros(2, 2, 3, 4, dtype=torch.float64)
    x[0, 0, 1, 1], x[1, 1, 2, 3] = 3.0, 5.0
    # the differences to the pixel from above and from the left, and both of its own
    expected = [3 + 3 + (3 * math.sqrt(2) if isotropic else 6), 10.0]
    assert PlainTotalVariation(isotropic)(x).tolist() == pytest.approx(expected)


def test_data_of_no_problem_are_denoised_to_one_per_cent() -> None:
    y = normal(1, 1, 12, 12, seed=1)
    made = ExactTotalVariation().reconstruct(Data(y=y), Request(weight=0.2))
    assert made.accuracy == pytest.approx(0.01 * float(y.norm()))
    assert float((made.solution.x - solved(y, 0.2)).norm()) <= float(made.solution.error) <= made.accuracy
    assert made.status == "converged"


def test_the_residual_of_the_weight_that_is_chosen_is_the_noise() -> None:
    problem = denoising()
    seen: list[tuple[str, int, float]] = []
    made = ExactTotalVariation().reconstruct(problem, Request(1e-3), lambda *what: seen.append(what))
    assert problem.residual(made.solution.x) == pytest.approx(0.1, rel=0.03)
    assert len(made.choice.trials) > 1
    assert {phase for phase, _, _ in seen} == {"choosing the weight", "final solution"}
    assert seen[-1][2] == pytest.approx(float(made.solution.error))


def test_weights_of_data_and_of_the_fidelity_count() -> None:
    y, weights = normal(1, 1, 12, 12, seed=1), normal(1, 1, 12, 12, seed=2).abs() + 0.1
    data = Data(y=y, weights=weights, term=SquaredL2(2.0))
    made = ExactTotalVariation(mu=0.5).reconstruct(data, Request(1e-4, weight=0.2))
    whole = 2 * weights + 0.5
    assert float((made.solution.x - solved(2 * weights * y / whole, 0.2, whole)).norm()) <= 1e-4 + 1e-6
    assert made.solver.strong_convexity(0.2) == pytest.approx(float(whole.min()))


def test_a_mask_is_inpainted() -> None:
    y, mask = normal(1, 1, 12, 12, seed=1), torch.ones(1, 12, 12, dtype=torch.bool)
    mask[:, 3:6, 4:9] = False
    data = Data(y=torch.where(mask, y, math.nan), operator=Mask(mask), start=torch.zeros_like(y))
    made = ExactTotalVariation().reconstruct(data, Request(1e-3, weight=0.2))
    assert made.status == "converged"
    assert math.isinf(float(made.solution.error))
    assert made.solver.strong_convexity(0.2) is None
    expected = solved(y, 0.2, mask[None].double())
    assert float((mask * (made.solution.x - expected)).norm()) <= 1e-3 + 1e-6
    regularized = ExactTotalVariation(mu=0.01).reconstruct(data, Request(1e-3, weight=0.2))
    assert float(regularized.solution.error) <= 1e-3


def test_only_images_with_squared_distances_are_taken() -> None:
    y = torch.ones(1, 1, 12, 12, dtype=torch.float64)
    blur = Blur(gaussian_kernel(1.0), (1, 12, 12)).double()
    for data, name in ((Data(y=y, operator=blur), "Blur"), (Data(y=y, term=KullbackLeibler(1.0)), "KullbackLeibler")):
        with pytest.raises(ValueError, match=f"without smoothing takes images .* have .*{name}"):
            ExactTotalVariation().reconstruct(data, Request(1.0, weight=0.2))
