"""Descent that stops early, for energies that nothing is certified of, such as those of critics."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recon.lower_level import LBFGS, HessianMap, Regularizer, Solution, Status, conjugate_gradients, per_image_norm
from recon.lower_level.solvers.descent import descend
from recon.operators import Identity, LinearOperator, RayTransform
from recon.reconstruction.methods import WatchError, told, uncertified
from recon.reconstruction.problem import Data
from recon.reconstruction.reconstructor import naive_reconstruction, positive_norm
from recon.reconstruction.regularized import RegularizedMethod
from recon.reconstruction.variational import Energies, Variational, energy_of
from recon.reconstruction.weight import WeightedSolver

#: what is certified of critics that are not convex, in front of the rest
EARLY_STOPPED = (
    "nothing is certified where status says `not certified`: the energy is not strongly convex there, and gradient "
    "descent from data inverted without a prior stops after as many steps as the training found best. Elsewhere: "
)
#: of the Tikhonov regularization of the images that critics learn from, relative to ||A||^2, and how far CG goes
TIKHONOV, ACCURACY, ITERATIONS = 1e-3, 1e-3, 200


class _Descents(Energies):
    """Descent on the energies of one problem, always from the same start."""

    certifies = False

    def __init__(self, problem: Data, method: EarlyStopped, nonnegative: bool, watch: WatchError | None) -> None:
        super().__init__(problem, method.regularizer, method.mu, LBFGS(), watch)
        self.steps, self.nonnegative = method.steps, nonnegative
        self.first = critic_reconstruction(problem.y, problem.operator)

    def strong_convexity(self, weight: float) -> float | None:
        return None

    def accuracy(self, weight: float, given: float | None) -> tuple[float, str]:
        return math.inf, f"none: {self.steps} steps of descent"

    def certified(self, weight: float, start: Tensor | None, accuracy: float) -> Solution:
        x, gradient = descend(self.energy(weight), self.first, self.steps, told(self.watch), self.nonnegative)
        return uncertified(x, gradient, self.steps, Status.ITERATION_LIMIT)

    def rough(self, weight: float, start: Tensor, gradient: float) -> Solution:
        return self.certified(weight, None, math.inf)


@dataclass(frozen=True)
class EarlyStopped(RegularizedMethod):
    """So many steps of gradient descent from data inverted without a prior, for energies that are not convex.

    Early stopping is part of the regularization, and nothing is certified.

    Parameters
    ----------
    regularizer : Regularizer
        R, a critic.
    mu : float
        Of the energy, see :class:`Variational`.
    steps : int
        How many.
    """

    regularizer: Regularizer
    mu: float
    steps: int
    trained: bool = True

    @property
    def margin(self) -> int:
        return self.regularizer.margin

    def solver(self, problem: Data, nonnegative: bool, watch: WatchError | None) -> WeightedSolver:
        return _Descents(problem, self, nonnegative, watch)


@torch.no_grad()
def critic_reconstruction(y: Tensor, operator: LinearOperator) -> Tensor:
    r"""What a critic learns to tell from true images: data inverted without a prior.

    FBP without a window for ray transforms, y itself for the identity, and (A^T A + t \|\|A\|\|^2)^-1 A^T y for all
    else, with t = ``TIKHONOV`` and a residual of ``ACCURACY`` relative to A^T y: nearly zero-filled images for MRI with
    one coil, least squares (SENSE) for several. Such images have the noise that inverting A amplifies. Smoother ones,
    such as FBP with a window, have not, and critics that learn from them do not suppress it.

    Raises
    ------
    ValueError
        cone beams, or an operator of norm 0.
    """
    if isinstance(operator, (Identity, RayTransform)):
        return naive_reconstruction(y, operator, "ram-lak")
    mu = TIKHONOV * positive_norm(operator) ** 2
    b = operator.adjoint(y)

    def normal(v: Tensor, kept: Tensor | None) -> Tensor:
        return operator.adjoint(operator(v)) + mu * v

    goal = (ACCURACY * per_image_norm(b)).clamp_min(torch.finfo(b.dtype).tiny)
    return conjugate_gradients(HessianMap(normal), b, torch.zeros_like(b), goal, ITERATIONS).w


def of_energy(
    problem: Data, regularizer: Regularizer, mu: float, steps: int | None, weight: float = 1.0
) -> Variational | EarlyStopped:
    """The method for a regularizer: its minimizer if the energy is strongly convex, else descent, if it has ``steps``.

    Parameters
    ----------
    problem : Data
        What is reconstructed.
    regularizer : Regularizer
        R.
    mu : float
        Of the energy.
    steps : int, optional
        After how many steps descent is to stop; None if nothing says so, and then solvers refuse what is not convex.
    weight : float
        That R is multiplied by.
    """
    if steps is None or energy_of(problem, regularizer, mu, weight).strong_convexity > 0:
        return Variational(regularizer, mu)
    return EarlyStopped(regularizer, mu, steps)
