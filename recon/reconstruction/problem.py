"""One inverse problem of ``recon reconstruct``: data with their operator and noise, and its certified solution."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from recon.lower_level import (
    LBFGS,
    DataFidelity,
    Energy,
    HessianMap,
    ProjectedLBFGS,
    Regularizer,
    Solution,
    SquaredL2,
    Status,
    WeightedSquaredL2,
)
from recon.operators import LinearOperator

#: what is certified and what is not, as every report says it
CERTIFICATE = (
    "||x - x^|| <= error in the Euclidean norm over all pixels, on the scale of the output, for the minimizer x^ of "
    "1/2 ||A x - y||^2 + weight R(x) + mu/2 ||x||^2 with the mu given here (over x >= 0 if nonnegative; rays are "
    "weighted by their inverse variances if photons are given; those that were not measured weigh 0). error = "
    "||gradient|| / modulus plus error_rounding, and grade says what it rests on. Where A is not injective "
    "the modulus is mu alone: the bound is then a worst case over directions that the data hardly see, often "
    "far above the true error. It says nothing about the minimizer for mu = 0, nor about the truth."
)
NOT_EXACT = "nothing is certified: this backend's back-projection is not the exact transpose of its projection"


@dataclass(frozen=True)
class DicomTarget:
    """What a result needs to become a slice derived from ``source``."""

    source: Path
    pixel_size: tuple[float, float]
    """Distances between rows and between columns in mm, of the result."""


@dataclass(frozen=True)
class Problem:
    """Data y of one slice, ``y = A x + noise``, and all that is needed to reconstruct, show and report it.

    x is on the scale that models are trained on; ``scale * operator.display(x)`` is in ``unit``.
    """

    name: str
    data: Path
    task: str
    y: Tensor
    """(1, ...), on the device and of the type to be computed with."""
    operator: LinearOperator
    start: Tensor
    """First guess for x, (1, channels, H, W)."""
    baseline: Tensor
    """What the plain method gives, (H, W) in ``unit``: filtered back-projection or zero-filled."""
    method: str
    """Name of the plain method: fbp or zero_filled."""
    scale: float
    unit: str
    noise: float
    """Standard deviation of the noise of y (real parts and imaginary parts alike), given or estimated."""
    noise_rule: str
    measured: int
    """How many numbers of y were measured."""
    weights: Tensor | None = None
    """Inverse variances of the noise relative to their mean over what was measured, of the shape of y without the
    batch; ``noise`` is then the standard deviation where the weight is 1. None: the noise is the same everywhere."""
    exact: bool = True
    """Whether the adjoint is the exact transpose, so that certificates hold."""
    reference: Tensor | None = None
    """(H, W) in ``unit``."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Geometry, sampling and what else the report says."""
    simulated: str | None = None
    """How y was simulated from the picture ``data``; None: y was measured."""
    dicom: DicomTarget | None = None
    """The slice that the result belongs to, if it can be written as DICOM."""
    warnings: tuple[str, ...] = ()
    """What was noticed in the data and may make the result wrong, for the screen and the report."""

    def fidelity(self) -> DataFidelity:
        """The squared L2 norm of A x - y, weighted by the inverse variances where these differ."""
        return SquaredL2() if self.weights is None else WeightedSquaredL2(self.weights.to(self.y))

    def picture(self, x: Tensor) -> Tensor:
        """x (1, channels, H, W) as people look at it: (H, W), float64, in ``unit``."""
        return self.scale * self.operator.display(x)[0, 0].detach().cpu().double()

    def residual(self, x: Tensor) -> float:
        """Root mean square of A x - y over what was measured, weighted as the fidelity."""
        with torch.no_grad():
            return self.root_mean_square(self.operator(x) - self.y)

    def root_mean_square(self, z: Tensor) -> float:
        """(sum_j w_j z_j^2 / m)^(1/2) over the m data that were measured, for z like y."""
        z = self._white(z)
        return float(z.double().norm()) / math.sqrt(self.measured)

    def noise_gain(self, seed: int = 0) -> float:
        """Root mean square over the pixels of the fidelity's gradient at the truth, for noise of level 1.

        It is A^T W n with noise n of covariance W^-1, so A^T W^(1/2) n for white noise n of variance 1.
        """
        noise = torch.randn(self.y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        with torch.no_grad():
            back = self.operator.adjoint(self._white(noise.to(self.y)))
        return float(back.double().square().mean().sqrt())

    def _white(self, z: Tensor) -> Tensor:
        return z if self.weights is None else self.weights.sqrt().to(z) * z


class Weighted(Regularizer):
    """``weight * R(x)``, for choosing the weight of a regularizer that is fixed otherwise."""

    def __init__(self, regularizer: Regularizer, weight: float) -> None:
        super().__init__()
        if not 0 < weight < math.inf:
            raise ValueError(f"the weight is {weight}, but must be positive and finite")
        self.regularizer, self.weight = regularizer, weight
        self.margin = regularizer.margin

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.weight * self.regularizer(x)
        return value

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, grad = self.regularizer.value_and_grad(x)
        return self.weight * value, self.weight * grad

    def hessian(self, x: Tensor) -> HessianMap:
        inner = self.regularizer.hessian(x)

        def apply(v: Tensor, kept: Tensor | None) -> Tensor:
            return self.weight * (inner if kept is None else inner.select(kept))(v)

        return HessianMap(apply)

    def smoothness(self) -> float:
        return self.weight * self.regularizer.smoothness()

    def rounding_gain(self) -> float:
        return self.weight * self.regularizer.rounding_gain()

    def rounding_offset(self, x: Tensor) -> float:
        return self.weight * self.regularizer.rounding_offset(x)

    def convexity(self) -> float:
        return self.weight * self.regularizer.convexity()


class WeightedSolver(Protocol):
    """What chooses weights and reports results needs of a solver, whatever the lower level is."""

    @property
    def problem(self) -> Problem: ...

    @property
    def regularizer(self) -> nn.Module: ...

    @property
    def mu(self) -> float: ...

    @property
    def nonnegative(self) -> bool: ...

    def strong_convexity(self, weight: float) -> float: ...

    def certified(self, weight: float, start: Tensor, accuracy: float) -> Solution: ...

    def rough(self, weight: float, start: Tensor, gradient: float) -> Solution: ...


@dataclass(frozen=True)
class Solver:
    """Minimizes D(A x, y) + weight R(x) + mu/2 ||x||^2 for one problem and any weight, over x >= 0 if asked to."""

    problem: Problem
    regularizer: Regularizer
    mu: float
    max_evaluations: int
    nonnegative: bool = False
    watch: Callable[[float], None] = lambda error: None

    def energy(self, weight: float) -> Energy:
        """The energy with this weight.

        Raises:
            NotStronglyConvexError: (a ValueError) nothing could be certified.
        """
        problem, prior = self.problem, Weighted(self.regularizer, weight)
        energy = Energy(problem.y, prior, problem.operator, problem.fidelity(), self.mu)
        energy.require_strong_convexity()
        return energy

    def strong_convexity(self, weight: float) -> float:
        """The modulus of the energy with this weight."""
        return self.energy(weight).strong_convexity

    def certified(self, weight: float, start: Tensor, accuracy: float) -> Solution:
        """The minimizer to the certified ``accuracy``, on the scale of x."""
        return self._solve(self.energy(weight), start, accuracy)

    def rough(self, weight: float, start: Tensor, gradient: float) -> Solution:
        """A point with ``||gradient|| <= gradient`` (of what is left of it on x >= 0): enough to compare weights.

        Raises:
            ValueError: it was not reached within the evaluations allowed.
        """
        energy = self.energy(weight)
        # the certificate is ||gradient|| / modulus, so this accuracy asks for the gradient
        solution = self._solve(energy, start, gradient / energy.strong_convexity)
        require_tried(self.problem, weight, solution)
        return solution

    def _solve(self, energy: Energy, start: Tensor, accuracy: float) -> Solution:
        method = ProjectedLBFGS if self.nonnegative else LBFGS
        solver = method(max_iterations=self.max_evaluations)
        return solver(energy, start, accuracy, lambda snapshot: self.watch(float(snapshot.error)))


def require_tried(problem: Problem, weight: float, solution: Solution) -> None:
    """Raise ``ValueError`` unless a trial of ``weight`` ended where it was to."""
    status = Status(int(solution.status[0]))
    if status in (Status.NOT_FINITE, Status.ITERATION_LIMIT):
        raise ValueError(
            f"{problem.data}: the weight {weight:.3g} could not be tried "
            f"({status.name.lower().replace('_', ' ')} after {int(solution.evaluations[0])} evaluations); use a "
            "larger --max-evaluations, another --smoothing, or give --weight"
        )
