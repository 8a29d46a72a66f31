"""What is asked of an evaluation of the objective, and what it returns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recon.bilevel.certificate import Interval
from recon.lower_level import Status
from recon.lower_level.grade import Grade, worst


@dataclass(frozen=True)
class Accuracy:
    """What is asked of a lower-level solve: ||x - x^|| <= solution, and ||Bw - b|| <= adjoint, per image.

    Numbers for all images, or tensors ``(images,)`` with one for each.
    """

    solution: float | Tensor
    adjoint: float | Tensor

    def __post_init__(self) -> None:
        for value in (self.solution, self.adjoint):
            if not (bool((value > 0).all()) if isinstance(value, Tensor) else value > 0):
                raise ValueError(f"accuracies must be positive, got {_least(self.solution)} and {_least(self.adjoint)}")

    def scaled(self, factor: float) -> Accuracy:
        """Both accuracies times ``factor``."""
        return Accuracy(factor * self.solution, factor * self.adjoint)

    def select(self, c: slice | Tensor) -> Accuracy:
        """That of the images ``c``."""
        return Accuracy(*(v[c] if isinstance(v, Tensor) else v for v in (self.solution, self.adjoint)))


def _least(value: float | Tensor) -> str:
    return f"{float(value.min()) if isinstance(value, Tensor) else value:g}"


class Adjoint(NamedTuple):
    """Adjoint solutions w of some images, bounds of their residuals, and the modelled parts of those; per image."""

    w: Tensor
    residual: Tensor
    rounding: Tensor

    @classmethod
    def of(cls, parts: Sequence[Adjoint]) -> Adjoint:
        """Those of all images, from those of the chunks."""
        return cls(*(torch.cat(chunks) for chunks in zip(*parts, strict=True)))

    def select(self, c: slice | Tensor) -> Adjoint:
        """Those of the images ``c``."""
        return Adjoint(*(part[c] for part in self))

    def satisfies(self, accuracy: Accuracy) -> bool:
        """Whether every image has the accuracy asked for."""
        return bool((self.residual <= accuracy.adjoint).all())


@dataclass(frozen=True)
class Chunk:
    """What an evaluation found of the images that were solved together, per image.

    interval, grade: of the loss, and what both it and ``error`` rest on. The others go into an :class:`Evaluation`
    under the same name.
    """

    x: Tensor
    adjoint: Adjoint
    error: Tensor
    error_rounding: Tensor
    slope: Tensor
    sensitivity: Tensor
    weight: Tensor
    status: Tensor
    interval: Interval
    grade: Tensor


@dataclass(frozen=True)
class CertifiedLoss:
    """f(theta) within [lower, upper], about ``value``.

    rounding: the part of the interval (below, and above ``value``, at most) that a model of rounding errors adds;
    grade: what the interval rests on, a value of :class:`recon.lower_level.Grade`. Where nothing is said: all of it,
    and ESTIMATED.
    """

    value: float
    lower: float
    upper: float
    rounding: float = math.inf
    grade: int = int(Grade.ESTIMATED)

    @classmethod
    def mean(cls, interval: Interval, grade: int) -> CertifiedLoss:
        """That of the mean of the losses of some images, from their intervals."""
        mean, below, above, rounding = (float(part.mean()) for part in interval)
        return cls(mean, lower=mean - below, upper=mean + above, rounding=rounding, grade=grade)


class Certified:
    """What has a certified loss, and shows its interval as its own."""

    certified: CertifiedLoss

    @property
    def lower(self) -> float:
        """The lower end of the interval."""
        return self.certified.lower

    @property
    def upper(self) -> float:
        """The upper end of the interval."""
        return self.certified.upper

    @property
    def rounding(self) -> float:
        """How much of the interval, on either side of the loss at most, is a model of rounding errors."""
        return self.certified.rounding

    @property
    def grade(self) -> int:
        """What the interval rests on."""
        return self.certified.grade


@dataclass(frozen=True)
class Evaluation(Certified):
    """The objective at one theta: a value, an interval that holds the exact f(theta), and the way to go on from it.

    x: minimizers of all images; adjoint: their adjoint solutions w, and ||grad q - Bw|| (infinite where not known).
    error: certified ||x - x^||, and error_rounding the part of it that a model of rounding errors adds; slope:
    ||grad q(x)||; sensitivity: C_i with interval length of q_i about C_i eps^2 (infinite without a goal-oriented
    certificate); weight: dg/dq, see :class:`UpperLoss`; status: of the lower-level solves. All per image in float64.
    certified: means of g over the images; its grade is that of ``error``, too, the worst of all images.
    interval: that of g of every image; older checkpoints have none.
    """

    x: Tensor
    adjoint: Adjoint
    error: Tensor
    error_rounding: Tensor
    slope: Tensor
    sensitivity: Tensor
    weight: Tensor
    status: Tensor
    certified: CertifiedLoss
    interval: Interval | None = None

    @property
    def value(self) -> float:
        """f(theta) as it was computed."""
        return self.certified.value

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> Evaluation:
        """The evaluation of all images, from those of the chunks."""
        joined = {name: torch.cat([vars(chunk)[name] for chunk in chunks]) for name in _PER_IMAGE}
        interval = Interval(*map(torch.cat, zip(*(chunk.interval for chunk in chunks), strict=True)))
        loss = CertifiedLoss.mean(interval, int(worst(torch.cat([chunk.grade for chunk in chunks]))))
        return cls(**joined, adjoint=Adjoint.of([chunk.adjoint for chunk in chunks]), certified=loss, interval=interval)

    @property
    def intervals(self) -> Interval:
        """Those of all images. Raises ``ValueError`` where an older version left only their mean."""
        if self.interval is None:
            raise ValueError("an evaluation by an older version has no intervals of single images: evaluate again")
        return self.interval

    def select(self, index: Tensor) -> Evaluation:
        """That of some of the images; its grade stays that of all."""
        interval = Interval(*(part[index] for part in self.intervals))
        rest = {name: vars(self)[name][index] for name in _PER_IMAGE}
        loss = CertifiedLoss.mean(interval, self.grade)
        return Evaluation(**rest, adjoint=self.adjoint.select(index), certified=loss, interval=interval)

    def with_images(self, index: Tensor, part: Evaluation) -> Evaluation:
        """The same, but for the images ``index``, of which all is known from ``part``."""

        def put(whole: Tensor, some: Tensor) -> Tensor:
            return whole.index_copy(0, index, some.to(whole))

        interval = Interval(*map(put, self.intervals, part.intervals))
        adjoint = Adjoint(*map(put, self.adjoint, part.adjoint))
        rest = {name: put(vars(self)[name], vars(part)[name]) for name in _PER_IMAGE}
        loss = CertifiedLoss.mean(interval, max(self.grade, part.grade))
        return Evaluation(**rest, adjoint=adjoint, certified=loss, interval=interval)

    def state_dict(self) -> dict[str, Tensor | float]:
        """Everything by name, on one level, as checkpoints keep it."""
        w, residual, rounding = self.adjoint
        rest = {"w": w, "adjoint_residual": residual, "adjoint_rounding": rounding}
        if self.interval is not None:
            rest["interval"] = torch.stack(self.interval)
        return {name: vars(self)[name] for name in _PER_IMAGE} | rest | vars(self.certified)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Evaluation:
        """What :meth:`state_dict` returned, in this version or an older one, which said nothing of rounding errors."""
        known = {"error_rounding": state["error"], "adjoint_rounding": state["adjoint_residual"]} | dict(state)
        adjoint = Adjoint(known["w"], known["adjoint_residual"], known["adjoint_rounding"])
        loss = CertifiedLoss(**{f.name: known[f.name] for f in fields(CertifiedLoss) if f.name in known})
        interval = Interval(*known["interval"]) if "interval" in known else None
        return cls(**{name: known[name] for name in _PER_IMAGE}, adjoint=adjoint, certified=loss, interval=interval)

    def satisfies(self, accuracy: Accuracy) -> bool:
        """Whether every image has the accuracy asked for."""
        return bool((self.error <= accuracy.solution).all()) and self.adjoint.satisfies(accuracy)

    @property
    def finite(self) -> bool:
        """Whether every energy, and the value, was finite."""
        return math.isfinite(self.value) and not bool((self.status == Status.NOT_FINITE).any())

    @property
    def at_precision_floor(self) -> bool:
        """Whether some image could not be solved more accurately in its floating-point type."""
        return bool((self.status == Status.PRECISION_FLOOR).any())


#: what chunks and an evaluation have of every image, beside the adjoints
_PER_IMAGE = ("x", "error", "error_rounding", "slope", "sensitivity", "weight", "status")
