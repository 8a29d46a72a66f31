"""Images denoised by total variation without smoothing: the exact minimizer, certified by the primal-dual gap."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recon.lower_level import (
    SquaredL2,
    TotalVariationProblem,
    TotalVariationSolution,
    TotalVariationSolver,
    WeightedSquaredL2,
)
from recon.operators import FiniteDifferences, Identity, Mask
from recon.reconstruction.methods import WatchError, told
from recon.reconstruction.problem import Data
from recon.reconstruction.regularized import RegularizedMethod
from recon.reconstruction.variational import RELATIVE_ACCURACY
from recon.reconstruction.weight import WeightedSolver, require_tried

#: what is certified, as every report says it
EXACT_CERTIFICATE = (
    "||x - x^|| <= error in the Euclidean norm over all pixels, on the scale of the output, for the minimizer x^ of "
    "1/2 ||x - y||^2 + weight TV(x) + mu/2 ||x||^2 with the total variation of forward differences, not smoothed (over "
    "x >= 0 if nonnegative). error is the root of the primal-dual gap less what is known of it, with error_rounding in "
    "it, and grade says what it rests on. It says nothing about the truth."
)


class PlainTotalVariation(nn.Module):
    """TV(x), ``(batch, channel, height, width) -> (batch,)``, channel by channel: see ``TotalVariationProblem``."""

    def __init__(self, isotropic: bool = True) -> None:
        super().__init__()
        self.isotropic = isotropic

    def forward(self, x: Tensor) -> Tensor:
        z = FiniteDifferences((1, *x.shape[2:]))(x.flatten(0, 1)[:, None])
        lengths = z.norm(dim=1) if self.isotropic else z.abs().sum(1)
        return lengths.unflatten(0, x.shape[:2]).flatten(1).sum(1, dtype=torch.float64)


class _Denoising(WeightedSolver):
    """One problem with any weight, each solved from the field of the one before."""

    def __init__(self, problem: Data, method: ExactTotalVariation, nonnegative: bool, watch: WatchError | None) -> None:
        self.problem, self.mu, self.watch = problem, method.mu, watch
        self.regularizer, self.isotropic = PlainTotalVariation(method.isotropic), method.isotropic
        self.solve = TotalVariationSolver(method.max_evaluations)
        self.y, self.weights = _diagonal(problem, method.mu)
        self.low = 0.0 if nonnegative else -torch.inf
        self.last: TotalVariationSolution | None = None

    def strong_convexity(self, weight: float) -> float | None:
        return float(self._denoising(weight).modulus.min()) or None

    def accuracy(self, weight: float, given: float | None) -> tuple[float, str]:
        if given is not None:
            return given / self.problem.scale, "given"
        norm = float(self.problem.guess().double().norm())
        return RELATIVE_ACCURACY * norm, f"{100 * RELATIVE_ACCURACY:g} % of the norm of the first guess"

    def certified(self, weight: float, start: Tensor | None, accuracy: float) -> TotalVariationSolution:
        self.last = self.solve(self._denoising(weight), accuracy, self.last, told(self.watch))
        return self.last

    def rough(self, weight: float, start: Tensor, gradient: float) -> TotalVariationSolution:
        """A point as near as that gradient would make it: ``gradient`` over the modulus."""
        solution = self.certified(weight, start, gradient / (self.strong_convexity(weight) or 1.0))
        require_tried(self.problem, weight, solution)
        return solution

    def _denoising(self, weight: float) -> TotalVariationProblem:
        return TotalVariationProblem(self.y, weight, self.weights, self.isotropic, self.low)


def _diagonal(problem: Data, mu: float) -> tuple[Tensor, Tensor | None]:
    """Data and weights of 1/2 ||x - y||_W^2, which is the fidelity and mu/2 ||x||^2 up to a constant.

    Raises
    ------
    ValueError
        The operator is neither the identity nor a mask, or the fidelity is not squared.
    """
    operator, term = problem.operator, problem.fidelity()
    if not isinstance(operator, (Identity, Mask)) or not isinstance(term, (SquaredL2, WeightedSquaredL2)):
        raise ValueError(
            f"{problem.source}: total variation without smoothing takes images or masked images and a squared "
            f"distance, but these data have {type(operator).__name__} and {type(term).__name__}"
        )
    y, weights = problem.y, None
    if isinstance(term, WeightedSquaredL2) or isinstance(operator, Mask) or mu or term.weight != 1:
        weights = (torch.ones_like(y) * term.curvature(y, y)).contiguous()
    if weights is not None and isinstance(operator, Mask):
        weights = weights * operator.mask.to(weights)
    if weights is not None and mu:
        # without weight a pixel has the value zero in mu/2 x^2, whatever its datum is
        y = torch.where(weights > 0, weights * y, 0.0) / (weights + mu)
        weights = weights + mu
    return y, weights


@dataclass(frozen=True)
class ExactTotalVariation(RegularizedMethod):
    """x^ = argmin 1/2 ||x - y||^2 + weight TV(x) + (mu/2) ||x||^2 for images, and for images with a mask.

    TV is not smoothed, so that there is no smoothing to choose. Where a mask takes pixels out and mu is 0, minimizers
    need not be unique: the distance is certified on the other pixels.

    Parameters
    ----------
    isotropic : bool
        Whether the length of a pixel's gradient is Euclidean, else the sum of absolute values.
    mu : float
        See above.
    max_evaluations : int
        Of one solution.
    """

    isotropic: bool = True
    mu: float = 0.0
    max_evaluations: int = 10_000
    trained: bool = False

    def solver(self, problem: Data, nonnegative: bool, watch: WatchError | None) -> WeightedSolver:
        return _Denoising(problem, self, nonnegative, watch)
