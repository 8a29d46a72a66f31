"""Minimizers of energies D(A x, y) + weight R(x) + mu/2 ||x||^2, certified, over x >= 0 if asked to."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from recon.errors import positive
from recon.lower_level import LBFGS, Energy, HessianMap, ProjectedLBFGS, Regularizer, Solution, Solver
from recon.reconstruction.methods import WatchError, told
from recon.reconstruction.problem import Data
from recon.reconstruction.regularized import RegularizedMethod
from recon.reconstruction.weight import WeightedSolver, require_tried

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
#: the accuracy by default, relative to the norm of the first guess
RELATIVE_ACCURACY = 1e-2
#: The least accuracy by default, in units of what rounding errors alone contribute to the certificate: when a gradient
#: falls below its own rounding error, gradient and rounding certify 2 such units together. The rest is for minimizers
#: whose norm exceeds that of the first guess, which the unit is computed with.
FLOORS = 5.0
#: where rounding errors allow no better than this by default, relative to the first guess, nothing is computed
LARGEST_ACCURACY = 0.1


class Weighted(Regularizer):
    """``weight * R(x)``, for choosing the weight of a regularizer that is fixed otherwise."""

    def __init__(self, regularizer: Regularizer, weight: float) -> None:
        super().__init__()
        positive(**{"the weight": weight})
        self.regularizer, self.weight = regularizer, weight
        self.margin = regularizer.margin

    @property
    def in_channels(self) -> int:
        return self.regularizer.in_channels

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

    def select(self, index: Tensor | slice) -> Weighted:
        own = self.regularizer.select(index)
        return self if own is self.regularizer else Weighted(own, self.weight)

    def smoothness(self) -> float:
        return self.weight * self.regularizer.smoothness()

    def rounding_gain(self) -> float:
        return self.weight * self.regularizer.rounding_gain()

    def rounding_offset(self, x: Tensor) -> float:
        return self.weight * self.regularizer.rounding_offset(x)

    def convexity(self) -> float:
        return self.weight * self.regularizer.convexity()


class Energies(WeightedSolver):
    """The energies of one problem, by weight."""

    regularizer: Regularizer

    def __init__(
        self,
        problem: Data,
        regularizer: Regularizer,
        mu: float,
        solver: Solver,
        watch: WatchError | None,
    ) -> None:
        self.problem, self.regularizer, self.mu = problem, regularizer, mu
        self.solve, self.watch = solver, watch

    def energy(self, weight: float) -> Energy:
        """The energy with this weight."""
        return energy_of(self.problem, self.regularizer, self.mu, weight)

    def strong_convexity(self, weight: float) -> float | None:
        """The modulus of the energy with this weight.

        Raises
        ------
        NotStronglyConvexError
            (A ValueError) nothing could be certified.
        """
        return self.energy(weight).require_strong_convexity()

    def certified(self, weight: float, start: Tensor | None, accuracy: float) -> Solution:
        """The minimizer to the certified ``accuracy``, on the scale of x."""
        first = self.problem.guess() if start is None else start
        return self._solved(self.energy(weight), first, accuracy)

    def rough(self, weight: float, start: Tensor, gradient: float) -> Solution:
        """A point with ``||gradient|| <= gradient`` (of what is left of it on x >= 0)."""
        energy = self.energy(weight)
        # the certificate is ||gradient|| / modulus, so this accuracy asks for the gradient
        solution = self._solved(energy, start, gradient / energy.require_strong_convexity())
        require_tried(self.problem, weight, solution)
        return solution

    def _solved(self, energy: Energy, start: Tensor, accuracy: float) -> Solution:
        if self.watch is None:  # solvers of one's own may know no callback
            return self.solve(energy, start, accuracy)
        return self.solve(energy, start, accuracy, told(self.watch))

    def accuracy(self, weight: float, given: float | None) -> tuple[float, str]:
        """The accuracy on the scale of x, and its rule.

        By default 1 % of the norm of the first guess, but no less than ``FLOORS`` times the rounding errors of a
        gradient over the modulus. In single precision that is 6e-8 ||A||^2 max w / mu relative to the image, w the
        weights of rays.

        Raises
        ------
        ValueError
            This is more than ``LARGEST_ACCURACY``, so that the certificate would be worth nothing.
        """
        problem = self.problem
        if given is not None:
            return given / problem.scale, "given"
        start = problem.guess()
        norm, energy = float(start.double().norm()), self.energy(weight)
        floor = float(energy.rounding(start, torch.zeros(1)).max()) / energy.require_strong_convexity()
        if FLOORS * floor <= RELATIVE_ACCURACY * norm:
            return RELATIVE_ACCURACY * norm, f"{100 * RELATIVE_ACCURACY:g} % of the norm of the first guess"
        kind = str(problem.y.dtype).removeprefix("torch.")
        if FLOORS * floor > LARGEST_ACCURACY * norm:
            raise ValueError(
                f"{problem.source}: with the weight {weight:.3g} and mu {self.mu:.3g}, {kind} certifies no better than "
                f"{100 * FLOORS * floor / norm:.3g} % of the image; use --dtype float64, a smaller weight, a larger "
                "--mu, or say with --accuracy that this is enough"
            )
        return FLOORS * floor, f"{FLOORS:g} times the rounding errors of {kind}: less cannot be certified with this mu"


def energy_of(problem: Data, regularizer: Regularizer, mu: float, weight: float = 1.0) -> Energy:
    """The energy of a problem.

    Raises
    ------
    ValueError
        numbers are out of range, or the regularizer depends on noise levels that are unknown or too large for it.
    """
    own = regularizer.at(problem.noise_level)
    prior = own if weight == 1 else Weighted(own, weight)
    return Energy(problem.y, prior, problem.operator, problem.fidelity(), mu)


@dataclass(frozen=True)
class Variational(RegularizedMethod):
    """x^ = argmin D(A x, y) + weight R(x) + (mu/2) ||x||^2, to a certified accuracy, over x >= 0 if asked to.

    Data that are images are mirrored at the boundary for regularizers that need it.

    Parameters
    ----------
    regularizer : Regularizer
        R.
    mu : float
        See above.
    minimize : Solver
        What solves over all x.
    project : Solver
        What solves over x >= 0.
    trained : bool
        Whether 1 is the weight of R unless another one is asked for.
    """

    regularizer: Regularizer
    mu: float = 0.0
    minimize: Solver = field(default_factory=LBFGS)
    project: Solver = field(default_factory=ProjectedLBFGS)
    trained: bool = True

    @property
    def margin(self) -> int:
        return self.regularizer.margin

    def solver(self, problem: Data, nonnegative: bool, watch: WatchError | None) -> WeightedSolver:
        method = self.project if nonnegative else self.minimize
        return Energies(problem, self.regularizer, self.mu, method, watch)
