from __future__ import annotations

import torch

from recon.lower_level import first_guess
from recon.operators import FiniteDifferences, Identity, ParallelBeam, RayTransform
from tests.lower_level.problems import normal


def test_the_multiple_of_the_adjoint_that_fits_best_image_by_image() -> None:
    operator = RayTransform(ParallelBeam.equispaced((9, 9), 20.0, 5), cache=False)
    y = operator(normal(3, 1, 9, 9).abs()) * torch.tensor([1.0, 10, 0.1], dtype=torch.float64).view(3, 1, 1, 1)
    x, back = first_guess(operator, y), operator.adjoint(y)
    for image, direction, data in zip(x, back, y, strict=True):
        assert torch.allclose(image / image.norm(), direction / direction.norm())
        fit = [float((operator(t * image[None]) - data).norm()) for t in (0.99, 1.0, 1.01)]
        assert fit[1] == min(fit)


def test_no_data_and_the_identity() -> None:
    y = normal(2, 1, 4, 4)
    assert torch.equal(first_guess(Identity(), y), y)
    operator = FiniteDifferences((1, 4, 4))
    zero = torch.zeros_like(operator(y))
    assert torch.equal(first_guess(operator, zero), torch.zeros_like(y))
