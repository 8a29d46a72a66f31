"""What is asked of an evaluation of the objective, and what it returns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recon.bilevel.hypergradient import ErrorBound, Hypergradient
from recon.lower_level import Status
from recon.lower_level.grade import Grade, grade_bounds, modelled_part, proved_part, worst
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

    def satisfies(self, accuracy: Accuracy) -> bool:
        """Whether every image has the accuracy asked for."""
        solved = (self.error <= accuracy.solution) & (self.adjoint_residual <= accuracy.adjoint)
        return bool(solved.all())

    def with_adjoints(self, parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Evaluation:
        """The same with other adjoints: w, ``adjoint_residual`` and ``adjoint_rounding``, chunk by chunk."""
        w, residual, rounding = (torch.cat(chunks) for chunks in zip(*parts, strict=True))
        return replace(self, w=w, adjoint_residual=residual, adjoint_rounding=rounding)

    @property
    def at_precision_floor(self) -> bool:
        """Whether some image could not be solved more accurately in its floating-point type."""
        return bool((self.status == Status.PRECISION_FLOOR).any())


class Errors:
    """omega of the mean over all images, chunk by chunk."""

    def __init__(self) -> None:
        self.omegas: list[Tensor] = []
        self.modelled: list[Tensor] = []
        self.grade = Grade.PROVED

    def add(self, found: ErrorBound, weight: Tensor, weight_error: Tensor, dtype: torch.dtype) -> None:
        """``found`` bounds the derivative of q, which g multiplies by ``weight``.

        ``weight_error``: of the weight; two rows, with the model of rounding errors and without.
        """
        whole, exact = weight_error
        omega = weight * found.omega + whole * (found.size + found.omega)
        proved = proved_part(found.omega, found.rounding)
        proved = weight * proved + exact * (proved_part(found.size, found.size_rounding) + proved)
        modelled = modelled_part(omega, proved)
        self.omegas.append(omega)
        self.modelled.append(modelled)
        self.grade = worst(self.grade, grade_bounds(omega, modelled, dtype, found.basis))

    def hypergradient(self, z: Tensor, evaluation: Evaluation) -> Hypergradient:
        """z with the mean omega, infinite where none was added; not better than what ``evaluation`` rests on."""
        if not self.omegas:
            return Hypergradient(z, math.inf, math.inf, Grade.ESTIMATED, evaluation)
        omega, modelled = (float(torch.cat(v).mean()) for v in (self.omegas, self.modelled))
        return Hypergradient(z, omega, modelled, worst(self.grade, Grade(evaluation.grade)), evaluation)
