"""What is compared: one claim of the project with what the references say."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from recon.lower_level import Status
from recon.lower_level.grade import Grade


@dataclass(frozen=True)
class Check:
    """``claimed`` >= ``true`` - ``own`` (the error of the reference), or not.

    what: the kind of the claim. counts: False for what is called an estimate and no bound.
    grade: what the claim rests on, by its own account.
    """

    what: str
    claimed: float
    true: float
    own: float
    note: str = ""
    grade: str = ""
    counts: bool = True

    @property
    def margin(self) -> float:
        """claimed / (true - own) - 1: how much larger than the truth; infinite where the reference cannot say."""
        least = self.true - self.own
        if math.isnan(self.claimed):
            return -1.0
        return self.claimed / least - 1 if least > 0 else math.inf

    @property
    def refuted(self) -> bool:
        """Whether the truth is larger than what was claimed, by more than the reference may be wrong."""
        return self.counts and self.margin < 0


def check_errors(
    error: Tensor, rounding: Tensor, grade: Tensor | int, true: Iterable[float], own: Iterable[float], note: str
) -> Iterable[Check]:
    """Certified distances, one per image; the modelled part of a bound is no more than the bound."""
    grades = torch.as_tensor(grade).expand(len(error))
    numbers = zip(error.tolist(), rounding.tolist(), grades.tolist(), true, own, strict=True)
    for i, (claimed, modelled, basis, distance, accuracy) in enumerate(numbers):
        word = Grade(basis).word
        yield Check("error", claimed, float(distance), float(accuracy), f"{note} image {i}", word)
        yield Check("rounding", claimed, modelled, 0.0, f"{note} image {i}", counts=math.isfinite(claimed))


def check_converged(status: Tensor, asked: Tensor, claimed: Tensor, note: str) -> Iterable[Check]:
    """CONVERGED says that what is certified is what was asked for."""
    for i in (status == Status.CONVERGED).nonzero().flatten().tolist():
        yield Check("converged", float(asked[i]), float(claimed[i]), 0.0, f"{note} image {i}")
