"""The learned tensors as one vector, and checks that all upper-level methods make."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def flat(params: Sequence[Tensor]) -> Tensor:
    """theta, flat, in float64; a copy."""
    return torch.cat([p.detach().flatten().double() for p in params])


@torch.no_grad()
def assign(params: Sequence[Tensor], theta: Tensor) -> Tensor:
    """Set the tensors to the flat ``theta``; returns what they are after rounding to their dtype."""
    for p, part in zip(params, theta.split([p.numel() for p in params]), strict=True):
        p.copy_(part.view_as(p))
    return flat(params)


def check_positive(**values: float) -> None:
    """Raise ``ValueError`` for an option that is not positive and finite."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}, but must be positive and finite")


def check_one_group(optimizer: torch.optim.Optimizer) -> None:
    """Raise ``ValueError`` if the parameters are in several groups."""
    if len(optimizer.param_groups) != 1:
        raise ValueError(f"{type(optimizer).__name__} takes one group of parameters, got {len(optimizer.param_groups)}")


def check_fraction(place: str = "", /, **values: float) -> None:
    """Raise ``ValueError`` for an option, of the group ``place``, that is not between 0 and 1."""
    for name, value in values.items():
        if not 0 < value < 1:
            raise ValueError(f"{place}{name} is {value}, but must be between 0 and 1")


def check_at_least(least: float, place: str = "", /, **values: float) -> None:
    """Raise ``ValueError`` for an option, of the group ``place``, that is less than ``least``."""
    for name, value in values.items():
        if not value >= least:
            raise ValueError(f"{place}{name} is {value}, but must be at least {least}")


def check_choice(name: str, value: str, valid: tuple[str, ...]) -> None:
    """Raise ``ValueError`` for an option that is not one of the ``valid`` ones."""
    if value not in valid:
        raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(valid)}")


def check_not_negative(**values: float) -> None:
    """Raise ``ValueError`` for an option that is negative or not finite."""
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}, but must be finite and not negative")
