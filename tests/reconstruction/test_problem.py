"""One inverse problem: what is reported while it is solved."""

from __future__ import annotations

import pytest

from recon.operators import Identity
from recon.reconstruction import Data, Request, Variational
from tests.lower_level.problems import make, smooth_image


@pytest.mark.parametrize("nonnegative", [False, True])
def test_progress_is_the_certified_error_at_every_evaluation(nonnegative: bool) -> None:
    y = smooth_image(1, 1, 9, 8, seed=2)
    errors: list[float] = []

    def watch(phase: str, evaluation: int, error: float) -> None:
        assert (phase, evaluation) == ("final solution", len(errors) + 1)
        errors.append(error)

    request = Request(accuracy=1e-6, weight=0.5, nonnegative=nonnegative)
    method = Variational(make("tv").requires_grad_(False))
    solution = method.reconstruct(Data(y=y, operator=Identity()), request, watch).solution
    assert solution.converged
    assert len(errors) == int(solution.evaluations)
    assert min(errors[:-1]) > 1e-6 >= errors[-1]
