"""What is asked of an evaluation of the objective, and what it returns."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recon.bilevel.hypergradient import ErrorBound, Hypergradient
from recon.lower_level import Status
from recon.lower_level.grade import Grade, grade_bounds, worst
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

    What they rest on: error_rounding, rounding: the parts of ``error`` and of the interval (below, and above ``value``,
    at most) that a model of rounding errors adds; grade: of ``error`` and the interval, the worst of all images.
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
    rounding: float = math.inf
    grade: int = int(Grade.ESTIMATED)

    def __post_init__(self) -> None:
        if not self.error_rounding.numel():  # older checkpoints
            object.__setattr__(self, "error_rounding", self.error)

    def satisfies(self, accuracy: Accuracy) -> bool:
        """Whether every image has the accuracy asked for."""
        solved = (self.error <= accuracy.solution) & (self.adjoint_residual <= accuracy.adjoint)
        return bool(solved.all())

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
        """``found`` bounds the derivative of q, which g multiplies by ``weight``."""
        omega = weight * found.omega + weight_error * (found.size + found.omega)
        modelled = (weight + weight_error) * found.rounding
        self.omegas.append(omega)
        self.modelled.append(modelled)
        self.grade = worst(self.grade, grade_bounds(omega, modelled, dtype, found.basis))

    def hypergradient(self, z: Tensor, evaluation: Evaluation) -> Hypergradient:
        """z with the mean omega, infinite where none was added; not better than what ``evaluation`` rests on."""
        if not self.omegas:
            return Hypergradient(z, math.inf, math.inf, Grade.ESTIMATED, evaluation)
        omega, modelled = (float(torch.cat(v).mean()) for v in (self.omegas, self.modelled))
        return Hypergradient(z, omega, modelled, worst(self.grade, Grade(evaluation.grade)), evaluation)
