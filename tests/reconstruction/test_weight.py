"""Searches for the best weight, and for one that fits the noise."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from torch import Tensor

from recon.lower_level import LBFGS
from recon.reconstruction import NoiseLevel, Origin, Problem
from recon.reconstruction.variational import Energies
from recon.reconstruction.weight import best_point, best_weight, discrepancy, sweep
from tests.lower_level.problems import make, normal, smooth_image


@pytest.mark.parametrize("top", [(1.3, -2.2), (-3.9, 0.1), (0.0,), (2.2, 1.1, -0.7)])
def test_the_best_point_is_found_within_half_of_the_last_step(top: tuple[float, ...]) -> None:
    tried: list[tuple[float, ...]] = []

    def quality(point: tuple[float, ...]) -> float:
        tried.append(point)
        return -sum((p - t) ** 2 for p, t in zip(point, top, strict=True))

    found, value = best_point(quality, (0.0,) * len(top), (1.0, 0.5), 0.0, 6.0)
    assert max(abs(p - t) for p, t in zip(found, top, strict=True)) <= 0.25 + 1e-12
    assert value == quality(found)
    assert len(set(tried[:-1])) == len(tried) - 1  # none twice


def test_the_search_stays_where_it_may_go_and_asks_for_a_gain() -> None:
    assert best_point(lambda p: p[0], (0.0,), (1.0,), 0.0, 3.0)[0] == (3.0,)
    assert best_point(lambda p: 0.1 * p[0], (0.0,), (1.0,), 0.2, 3.0)[0] == (0.0,)
    assert best_point(lambda p: -math.inf, (0.0,), (1.0,), 0.01, 3.0) == ((0.0,), -math.inf)


def _denoising(deviation: float = 0.1) -> tuple[Energies, Problem, Tensor]:
    """Energies of TV by weight, their problem, and the true image."""
    x = 0.5 + 0.3 * smooth_image(1, 1, 14, 12, seed=3)
    y = x + normal(1, 1, 14, 12, seed=4, scale=0.1)
    noise = NoiseLevel(deviation, "given", y.numel())
    problem = Problem(origin=Origin(Path("a.npy"), "a", "1"), noise=noise, y=y, start=y, baseline=y[0])
    return Energies(problem, make("tv").requires_grad_(False), 0.0, LBFGS(), None), problem, x


def test_a_sweep_is_the_search_for_the_best_weight() -> None:
    solver, _, x = _denoising()

    def quality(z: Tensor) -> float:
        return -float((z - x).norm())

    made = sweep(solver, True, quality)
    weight, tried = best_weight(lambda w: quality(solver.certified(w, None, 1e-5).x), 1.0)
    assert made.weight == weight
    assert sorted(trial.weight for trial in made.trials) == [w for w, _ in tried]


@pytest.mark.parametrize("trained", [False, True])
def test_the_residual_of_the_weight_that_is_chosen_is_the_noise(trained: bool) -> None:
    solver, problem, _ = _denoising()
    made = discrepancy(solver, trained)
    assert made.start is not None
    assert problem.residual(made.start) == pytest.approx(0.1, rel=0.02)
    assert (made.weight, problem.residual(made.start)) in [(t.weight, t.value) for t in made.trials]


def test_noise_that_no_residual_reaches_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"a\.npy: the residual stays below the noise of 10 "):
        discrepancy(_denoising(10.0)[0], True)
    with pytest.raises(ValueError, match=r"a\.npy: the noise is 0 .* asks for no regularization at all"):
        discrepancy(_denoising(0.0)[0], True)
