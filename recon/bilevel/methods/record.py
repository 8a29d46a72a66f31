"""What an upper-level method reports of its iterations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from recon.lower_level.grade import Grade


class Progress(StrEnum):
    """How an upper-level iteration ended."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    LINE_SEARCH_FAILED = "line search failed"
    CONVERGED = "converged"
    PRECISION_FLOOR = "precision floor"


@dataclass(frozen=True)
class Record:
    """One upper-level iteration.

    loss in [lower, upper], certified; epsilon, delta: largest certified lower-level and adjoint errors of the images;
    omega: bound of the hypergradient's error (infinite if not computed); step: the accepted alpha; trials: points
    tried; evaluations: so far, per image; gradient_norm: ||z|| at the new point; progress: see :class:`Progress`.
    rounding: how much of the interval, on either side of the loss at most, is a model of rounding errors; grade: what
    the interval and epsilon rest on, a value of :class:`recon.lower_level.Grade`.
    """

    iteration: int
    loss: float
    lower: float
    upper: float
    epsilon: float
    delta: float
    omega: float
    step: float
    trials: int
    evaluations: float
    gradient_norm: float
    progress: Progress
    rounding: float = math.inf
    grade: int = int(Grade.ESTIMATED)

    @property
    def finished(self) -> bool:
        """Whether another iteration cannot do anything."""
        return self.progress in (Progress.CONVERGED, Progress.PRECISION_FLOOR)
