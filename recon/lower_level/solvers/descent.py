"""Descent with early stopping for energies that nothing is certified of."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from recon.lower_level.batch import over_image, per_image_norm
from recon.lower_level.energy import Energy
from recon.lower_level.solvers.iterate import Callback, Snapshot, ends
from recon.lower_level.solvers.stopping import certificate

#: share of the decrease that the gradient promises which a step must achieve
_ARMIJO = 1e-4
_GROWTH, _SHRINKAGE = 1.5, 0.5


@torch.no_grad()
def descend(
    energy: Energy, x0: Tensor, iterations: int, callback: Callback | None = None, nonnegative: bool = False
) -> tuple[Tensor, Tensor]:
    r"""Gradient descent x <- x - s grad h(x) with h(x - s grad h(x)) <= h(x) - 1e-4 s \|\|grad h(x)\|\|^2.

    Every iteration is one evaluation. A step that fails the inequality, or leads to values that are not finite, is not
    made and halves s; others multiply it by 1.5. The first s is one over the Lipschitz constant of the energy's data
    term. Images do not see each other.

    Parameters
    ----------
    energy : Energy
        Any, convex or not.
    x0 : Tensor
        Where to start.
    iterations : int
        How many, at most; early stopping is part of the regularization.
    callback : callable, optional
        ``callback(snapshot)`` is told the start and every iteration, see :class:`recon.lower_level.Snapshot`; raising
        ``StopIteration`` makes it the last one.
    nonnegative : bool
        Whether x stays in x >= 0: trials are projected, and their own length counts in the inequality.

    Returns
    -------
    x, gradient : Tensor
        The last point, and the gradient of h there.
    """
    x = x0.detach().clone()
    if nonnegative:
        x.clamp_(min=0)
    value, grad = energy.value_and_grad(x)
    data = energy.operator.norm_bound**2 * energy.fidelity.smoothness(energy.y) + energy.mu
    step = torch.full_like(value, 1 / data)
    for iteration in range(iterations + 1):
        if ends(callback, partial(_snapshot, energy, iteration, x, grad)) or iteration == iterations:
            break
        trial = x - over_image(step, x) * grad
        promised = _ARMIJO * step * per_image_norm(grad).square()
        if nonnegative:
            trial.clamp_(min=0)
            promised = _ARMIJO / step * per_image_norm(trial - x).square()
        trial_value, trial_grad = energy.value_and_grad(trial)
        # a comparison with NaN is false
        good = trial_value <= value - promised
        good &= torch.isfinite(per_image_norm(trial_grad))
        here = over_image(good, x)
        x, grad = torch.where(here, trial, x), torch.where(here, trial_grad, grad)
        value = torch.where(good, trial_value, value)
        step = step * torch.where(good, _GROWTH, _SHRINKAGE)
    return x, grad


def _snapshot(energy: Energy, iteration: int, x: Tensor, grad: Tensor) -> Snapshot:
    modulus = energy.strong_convexity if energy.strong_convexity > 0 else math.nan
    error = certificate(energy, x, per_image_norm(grad), modulus).error
    return Snapshot(iteration, x, torch.full((len(x),), iteration + 1, device=x.device), error)
