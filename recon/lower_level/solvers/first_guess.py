"""Where solvers of the lower level start without a better idea."""

from __future__ import annotations

import torch
from torch import Tensor

from recon.lower_level.batch import over_image, per_image_norm
from recon.operators import Identity, LinearOperator


@torch.no_grad()
def first_guess(operator: LinearOperator, y: Tensor) -> Tensor:
    r"""t A^T y with the t >= 0 that fits the data best, t = \|\|A^T y\|\|^2 / \|\|A A^T y\|\|^2, image by image.

    The scale matters where ||A|| is far from 1: line integrals in mm have ||A||^2 of 10^4.
    """
    x = operator.adjoint(y)
    if isinstance(operator, Identity):
        return x.clone()
    norm, image = per_image_norm(x), per_image_norm(operator(x))
    t = torch.where(image > 0, (norm / image).square(), torch.ones_like(norm))
    return over_image(t, x) * x
