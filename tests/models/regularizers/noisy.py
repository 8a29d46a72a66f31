"""Regularizers for all noise levels of order one, with random gains that differ much."""

from __future__ import annotations

from collections.abc import Callable

import torch

from models import (
    ICNN,
    ConvexRidge,
    FieldsOfExperts,
    InitialFilters,
    LeakyReLU,
    MultivariateFieldsOfExperts,
    NoiseConditioned,
    WeaklyConvexRidge,
)
from models.regularizers.rescalable import Rescalable
from tests.lower_level.problems import normal, perturb

#: what :func:`conditioned` takes
INNER: dict[str, Callable[[], Rescalable]] = {
    "foe_l1": lambda: FieldsOfExperts(3, 3, "smoothed_l1", log_weight=-1, log_width=-1.5),
    "foe_student": lambda: FieldsOfExperts(3, 3, "student_t", log_weight=-1, log_width=-1),
    "foe_weak": lambda: FieldsOfExperts(
        3, 3, "log_cosh", log_weight=-1, log_width=-1.5, weak_convexity=0.7, unit_norm=True
    ),
    "multi_weak": lambda: MultivariateFieldsOfExperts(
        8, 3, "soft_maximum", log_weight=-1, log_width=-2.5, weak_convexity=0.7, unit_norm=True
    ),
    "crr": lambda: ConvexRidge(3, 3, knots=6, spacing=0.15, log_weight=-0.5, log_width=-1),
    "wcrr": lambda: WeaklyConvexRidge(3, 3, knots=6, spacing=0.15, log_weight=-0.5, log_width=-1, weak_convexity=0.7),
    "composed": lambda: ConvexRidge(
        3, 3, knots=6, spacing=0.15, log_weight=-0.5, log_width=-1, initial_filters=InitialFilters(channels=(2,))
    ),
    "icnn": lambda: ICNN(4, 3, 2, 1, LeakyReLU(0.2, 0.5, "smooth"), 0.0, -0.5),
}


def conditioned(
    name: str, seed: int = 0, scale: float = 0.3, spread: float = 0.7, dtype: torch.dtype = torch.float64
) -> NoiseConditioned:
    """For noise levels from 0.02 to 0.5, with noise of the scale ``scale`` on all and ``spread`` on log s_k."""
    found = NoiseConditioned(perturb(INNER[name]().to(dtype), seed, scale), 0.5, 0.02, knots=4).to(dtype)
    with torch.no_grad():
        found.log_gains.add_(normal(*found.log_gains.shape, seed=seed + 50, scale=spread, dtype=dtype))
    return found
