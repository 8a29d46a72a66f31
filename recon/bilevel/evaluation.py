"""What is asked of an evaluation of the objective, and what it returns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from recon.bilevel.certificate import Interval
from recon.lower_level import Status
from recon.lower_level.grade import Grade, worst
from recon.lower_level.solution import UNSAID


@dataclass(frozen=True)
class Accuracy:
    """What is asked of a lower-level solve: ||x - x^|| <= solution, and ||Bw - b|| <= adjoint, per image."""

    solution: float
    adjoint: float

    def __post_init__(self) -> None:
        if not (self.solution > 0 and self.adjoint > 0):
            raise ValueError(f"accuracies must be positive, got {self.solution:g} and {self.adjoint:g}")

    def scaled(self, factor: float) -> Accuracy:
        """Both accuracies times ``factor``."""
        return Accuracy(factor * self.solution, factor * self.adjoint)


class Adjoint(NamedTuple):
    """Adjoint solutions w of some images, bounds of their residuals, and the modelled parts of those; per image."""

    w: Tensor
    residual: Tensor
    rounding: Tensor


@dataclass(frozen=True)
class Chunk:
    """What an evaluation found of the images that were solved together, per image.

    interval, grade: of the loss, and what both it and ``error`` rest on. The others go into an :class:`Evaluation`
    under the same name.
    """

    x: Tensor
    w: Tensor
    error: Tensor
    error_rounding: Tensor
    adjoint_residual: Tensor
    adjoint_rounding: Tensor
    slope: Tensor
    sensitivity: Tensor
    weight: Tensor
    status: Tensor
    interval: Interval
    grade: Tensor


@dataclass(frozen=True)
class Evaluation:
    """The objective at one theta: a value, an interval that holds the exact f(theta), and the way to go on from it.

    x, w: minimizers and adjoint solutions of all images. error: certified ||x - x^||; adjoint_residual: ||grad q - Bw||
    (infinite where not known); slope: ||grad q(x)||; sensitivity: C_i with interval length of q_i about C_i eps^2
    (infinite without a goal-oriented certificate); weight: dg/dq, see :class:`UpperLoss`; status: of the lower-level
    solves. All per image in float64. value, lower, upper: means of g over the images.

    What they rest on: error_rounding, adjoint_rounding, rounding: the parts of ``error``, ``adjoint_residual`` and the
    interval (below, and above ``value``, at most) that a model of rounding errors adds; grade: of ``error`` and the
    interval, the worst of all images.
    """

    x: Tensor
    w: Tensor
    error: Tensor
    adjoint_residual: Tensor
    slope: Tensor
    sensitivity: Tensor
    weight: Tensor
    status: Tensor
    value: float
    lower: float
    upper: float
    error_rounding: Tensor = UNSAID
    adjoint_rounding: Tensor = UNSAID
    rounding: float = math.inf
    grade: int = int(Grade.ESTIMATED)

    def __post_init__(self) -> None:
        for name, whole in (("error_rounding", self.error), ("adjoint_rounding", self.adjoint_residual)):
            if not getattr(self, name).numel():  # older checkpoints
                object.__setattr__(self, name, whole)

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> Evaluation:
        """The evaluation of all images, from those of the chunks."""
        names = [field.name for field in fields(Chunk) if field.name not in ("interval", "grade")]
        joined = {name: torch.cat([vars(chunk)[name] for chunk in chunks]) for name in names}
        ends = zip(*(chunk.interval.parts for chunk in chunks), strict=True)
        mean, below, above, rounding = (float(torch.cat(parts).mean()) for parts in ends)
        grade = int(worst(torch.cat([chunk.grade for chunk in chunks])))
        return cls(**joined, value=mean, lower=mean - below, upper=mean + above, rounding=rounding, grade=grade)

    def satisfies(self, accuracy: Accuracy) -> bool:
        """Whether every image has the accuracy asked for."""
        solved = (self.error <= accuracy.solution) & (self.adjoint_residual <= accuracy.adjoint)
        return bool(solved.all())

    def adjoint(self, c: slice) -> Adjoint:
        """That of the images ``c``."""
        return Adjoint(self.w[c], self.adjoint_residual[c], self.adjoint_rounding[c])

    def with_adjoints(self, parts: Sequence[Adjoint]) -> Evaluation:
        """The same with other adjoints, chunk by chunk."""
        w, residual, rounding = (torch.cat(chunks) for chunks in zip(*parts, strict=True))
        return replace(self, w=w, adjoint_residual=residual, adjoint_rounding=rounding)

    @property
    def at_precision_floor(self) -> bool:
        """Whether some image could not be solved more accurately in its floating-point type."""
        return bool((self.status == Status.PRECISION_FLOOR).any())
