"""Regularizers of all kinds of profiles whose filters couple three channels."""

from __future__ import annotations

from collections.abc import Callable

import torch

from models import ConvexRidge, FieldsOfExperts, InitialFilters, WeaklyConvexRidge
from models.regularizers.ridge import RidgeRegularizer
from tests.lower_level.problems import perturb

COLOUR = InitialFilters(in_channels=3)
MAKERS: dict[str, Callable[[], RidgeRegularizer]] = {
    "foe_l1": lambda: FieldsOfExperts(4, 3, log_weight=-1, log_width=-1.5, initial_filters=COLOUR),
    "foe_l1_unit": lambda: FieldsOfExperts(
        4, 3, "log_cosh", log_weight=-1, log_width=-1.5, smallest_width=0.05, initial_filters=COLOUR, unit_norm=True
    ),
    "foe_student": lambda: FieldsOfExperts(4, 3, "student_t", log_weight=-1, log_width=-1, initial_filters=COLOUR),
    "foe_weak": lambda: FieldsOfExperts(
        4, 3, log_weight=-1, log_width=-1.5, weak_convexity=0.7, initial_filters=COLOUR
    ),
    "crr": lambda: ConvexRidge(4, 3, knots=6, spacing=0.15, log_weight=-0.5, log_width=-1, initial_filters=COLOUR),
    "wcrr": lambda: WeaklyConvexRidge(
        4, 3, knots=6, spacing=0.15, log_weight=-0.5, log_width=-1, weak_convexity=0.7, initial_filters=COLOUR
    ),
    "composed": lambda: WeaklyConvexRidge(
        4, 3, 6, 0.15, -0.5, -1, 0.7, InitialFilters("multiscale", channels=(3,), in_channels=3), unit_norm=True
    ),
}
NAMES = list(MAKERS)


def coupled(name: str, seed: int = 0, spread: float = 0.3, dtype: torch.dtype = torch.float64) -> RidgeRegularizer:
    """One of them, with normal noise of this size on all parameters."""
    made = perturb(MAKERS[name]().to(dtype), seed, spread)
    assert isinstance(made, RidgeRegularizer)
    return made
