"""The learned tensors as one vector, and checks that all upper-level methods make."""

from __future__ import annotations

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


def check_one_group(optimizer: torch.optim.Optimizer) -> None:
    """Raise ``ValueError`` if the parameters are in several groups."""
    if len(optimizer.param_groups) != 1:
        raise ValueError(f"{type(optimizer).__name__} takes one group of parameters, got {len(optimizer.param_groups)}")
