"""What a bound rests on: a proof, a model of rounding errors, or an estimate."""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor

#: share of a bound in double precision up to which its rounding errors, which are modelled, leave it proved
SHARE = 1e-3


class Grade(IntEnum):
    """What a bound rests on; of several, the largest counts.

    PROVED: constants with proofs, in double precision, and at most ``SHARE`` of the bound is the model of rounding
    errors. MODELLED: the model is more than that, or the computation in single precision, where models of first order
    decide. ESTIMATED: a constant in it is a guess, or measured on samples.
    """

    PROVED = 0
    MODELLED = 1
    ESTIMATED = 2

    @property
    def word(self) -> str:
        """As reports and tables say it."""
        return self.name.lower()


def grade_bounds(bound: Tensor, rounding: Tensor, dtype: torch.dtype, basis: Grade) -> Tensor:
    """The grade of every bound, int64 of the shape of ``bound``; ESTIMATED where it is infinite and says nothing.

    ``rounding``: its modelled part; ``dtype``: of the computation; ``basis``: of the constants of bound and model,
    ESTIMATED if one of them is an estimate, else PROVED.
    """
    grade = torch.full_like(bound, int(basis), dtype=torch.int64)
    modelled = ~(rounding <= SHARE * bound) | (torch.finfo(dtype).eps > torch.finfo(torch.float64).eps)
    grade = grade.clamp_min(modelled.to(torch.int64) * int(Grade.MODELLED))
    return torch.where(torch.isfinite(bound), grade, int(Grade.ESTIMATED))


def proved_part(bound: Tensor, rounding: Tensor | None) -> Tensor:
    """``bound`` without ``rounding``, its modelled part: zero where that is all of it (None), or infinite."""
    if rounding is None:
        return torch.zeros_like(bound)
    return torch.nan_to_num(bound - rounding, nan=0.0, posinf=math.inf).clamp_min(0)


def modelled_part(bound: Tensor, proved: Tensor) -> Tensor:
    """The reverse: ``bound`` less ``proved``, which is what it is without the model of rounding errors.

    All of the bound where it is infinite, or nothing is known to be proved (NaN).
    """
    rest = bound - proved
    return torch.where(rest.isnan(), bound, rest).clamp_min(0)


def worst(*grades: Tensor | Grade) -> Grade:
    """The largest of all grades."""
    values = [int(Grade.PROVED)]
    for grade in grades:
        if not isinstance(grade, Tensor) or grade.numel():
            values.append(int(grade.max()) if isinstance(grade, Tensor) else int(grade))
    return Grade(max(values))
