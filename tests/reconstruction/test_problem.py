"""One inverse problem: what is reported while it is solved."""

from __future__ import annotations

from pathlib import Path

import pytest

from recon.operators import Identity
from recon.reconstruction.problem import Problem, Solver
from tests.lower_level.problems import make, smooth_image


@pytest.mark.parametrize("nonnegative", [False, True])
def test_progress_is_the_certified_error_at_every_evaluation(nonnegative: bool) -> None:
    y = smooth_image(1, 1, 9, 8, seed=2)
    problem = Problem("y", Path("y"), "denoising", y, Identity(), y, y[0, 0], "data", 1.0, "1", 0.1, "given", y.numel())
    errors: list[float] = []
    solver = Solver(problem, make("tv").requires_grad_(False), 0.0, 1000, nonnegative, errors.append)
    solution = solver.certified(0.5, y, 1e-6)
    assert solution.converged
    assert len(errors) == int(solution.evaluations)
    assert errors[-1] == float(solution.error)
    assert min(errors[:-1]) > 1e-6
