"""What an upper-level method reports of its iterations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from recon.bilevel.evaluation import Certified, CertifiedLoss


class Progress(StrEnum):
    """How an upper-level iteration ended."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    LINE_SEARCH_FAILED = "line search failed"
    CONVERGED = "converged"
    PRECISION_FLOOR = "precision floor"


#: what certifies that an accepted iteration has made the loss smaller: nothing, or its certified intervals
NO_GUARANTEE, EXACT = "none", "exact"


@dataclass(frozen=True)
class Record(Certified):
    """One upper-level iteration.

    certified: the loss; epsilon, delta: largest certified lower-level and adjoint errors of the images; omega: bound of
    the hypergradient's error (infinite if not computed); step: the accepted alpha; trials: points tried; evaluations:
    so far, per image; gradient_norm: ||z|| at the new point; progress: see :class:`Progress`; guarantee: with
    which the exact loss has fallen at all points accepted so far, ``exact``, ``with probability 0.95`` or ``none``;
    it rests on what the intervals rest on, see ``grade``.
    """

    iteration: int
    certified: CertifiedLoss
    epsilon: float
    delta: float
    omega: float
    step: float
    trials: int
    evaluations: float
    gradient_norm: float
    progress: Progress
    guarantee: str = NO_GUARANTEE

    @property
    def loss(self) -> float:
        """The loss, as it was computed."""
        return self.certified.value

    @property
    def finished(self) -> bool:
        """Whether another iteration cannot do anything."""
        return self.progress in (Progress.CONVERGED, Progress.PRECISION_FLOOR)

    def line(self) -> dict[str, float | str]:
        """Everything by name, on one level, as tables and checkpoints keep it."""
        own = {"iteration": self.iteration, "loss": self.loss, "lower": self.lower, "upper": self.upper}
        apart = ("iteration", "certified", "guarantee")
        rest = {name: value for name, value in vars(self).items() if name not in apart}
        last = {"rounding": self.rounding, "grade": self.grade, "guarantee": self.guarantee}
        return own | rest | {"progress": self.progress.value} | last

    @classmethod
    def of_line(cls, line: Mapping[str, Any]) -> Record:
        """What :meth:`line` returned, in this version or an older one, which said nothing of rounding errors."""
        rest = dict(line)
        loss = CertifiedLoss(rest.pop("loss"), **{name: rest.pop(name) for name in _OF_LOSS if name in rest})
        return cls(**rest | {"certified": loss, "progress": Progress(rest["progress"])})


#: what a line says of the loss
_OF_LOSS = ("lower", "upper", "rounding", "grade")
