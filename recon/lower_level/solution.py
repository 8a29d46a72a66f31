"""What every solver returns: a point, a certificate for it, and why the solver stopped."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from recon.lower_level.grade import Grade

#: not a status yet: the iteration goes on
RUNNING = -1
#: what a solver says nothing of
UNSAID = torch.empty(0)


class Status(IntEnum):
    """Why the iteration of one image ended. Only ``CONVERGED`` means that the accuracy asked for was reached.

    It is certified then, unless ``error`` is infinite: solvers with ``certified=False``, and operators whose adjoint is
    not the exact transpose, ask the accuracy of a gradient.
    """

    CONVERGED = 0
    ITERATION_LIMIT = 1
    PRECISION_FLOOR = 2
    NOT_FINITE = 3


class Solved:
    """What has a :class:`Status` for every image."""

    status: Tensor

    @property
    def converged(self) -> bool:
        """Whether every image reached the accuracy asked for."""
        return bool((self.status == Status.CONVERGED).all())


@dataclass(frozen=True)
class Solution(Solved):
    """Approximate minimizers of a batch of energies.

    x: ``(batch, channel, height, width)``; gradient: grad h at this very x.
    error: certified ||x - argmin h|| per image, at this x; infinite where nothing is certified.
    status: ``(batch,)``, values of :class:`Status`. evaluations: gradients evaluated per image, ``(batch,)``.
    rounding: the part of ``error`` that a model of rounding errors adds; grade: values of :class:`Grade`, what
    ``error`` rests on. Where a solver does not say: all of it, and ESTIMATED.
    """

    x: Tensor
    gradient: Tensor
    error: Tensor
    status: Tensor
    evaluations: Tensor
    rounding: Tensor = UNSAID
    grade: Tensor = UNSAID

    def __post_init__(self) -> None:
        if self.rounding is UNSAID:
            object.__setattr__(self, "rounding", self.error)
        if self.grade is UNSAID:
            object.__setattr__(self, "grade", torch.full_like(self.status, int(Grade.ESTIMATED)))


@dataclass(frozen=True)
class LinearSolution(Solved):
    """Approximate solutions of a batch of linear systems B w = b.

    residual: b - Bw at the returned w, recomputed, or recurred where the gap between both is negligible;
    residual_norm: a bound of its norm per image, ``(batch,)``, in which this gap is counted.
    rounding: the part of ``residual_norm`` that a model of rounding errors adds; all of it where a solver does not say.
    """

    w: Tensor
    residual: Tensor
    residual_norm: Tensor
    status: Tensor
    evaluations: Tensor
    rounding: Tensor = UNSAID

    def __post_init__(self) -> None:
        if self.rounding is UNSAID:
            object.__setattr__(self, "rounding", self.residual_norm)
