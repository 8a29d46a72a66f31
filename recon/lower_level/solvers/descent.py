"""Descent with early stopping for energies that nothing is certified of, and the search for the best weight."""

from __future__ import annotations

import math
from collections.abc import Callable
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
#: weights that are tried at most
MAX_TRIALS = 32


@torch.no_grad()
def descend(energy: Energy, x0: Tensor, iterations: int, callback: Callback | None = None) -> tuple[Tensor, Tensor]:
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

    Returns
    -------
    x, gradient : Tensor
        The last point, and the gradient of h there.
    """
    x = x0.detach().clone()
    value, grad = energy.value_and_grad(x)
    data = energy.operator.norm_bound**2 * energy.fidelity.smoothness(energy.y) + energy.mu
    step = torch.full_like(value, 1 / data)
    for iteration in range(iterations + 1):
        if ends(callback, partial(_snapshot, energy, iteration, x, grad)) or iteration == iterations:
            break
        trial = x - over_image(step, x) * grad
        trial_value, trial_grad = energy.value_and_grad(trial)
        # a comparison with NaN is false
        good = trial_value <= value - _ARMIJO * step * per_image_norm(grad).square()
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


def best_weight(quality: Callable[[float], float], start: float) -> tuple[float, list[tuple[float, float]]]:
    """The weight with the largest ``quality``, within a factor of the square root of 2, and all that was tried.

    Weights are multiplied or divided by 4 for as long as that is better; then the neighbours of the best one at a
    factor of 2, and of 2^(1/2), are tried. Finds the maximum of functions that grow up to it and fall after it.

    Parameters
    ----------
    quality : callable
        Of a weight, e.g. the mean PSNR on validation data.
    start : float
        The first weight.

    Returns
    -------
    weight : float
        The best one.
    tried : list of (float, float)
        All weights that were tried, in order, and their quality.

    Raises
    ------
    ValueError
        ``start`` is not positive, a quality is NaN, or it still grows after 32 trials.
    """
    if not 0 < start < math.inf:
        raise ValueError(f"the first weight is {start}, but must be positive and finite")
    tried: dict[int, float] = {}  # by the exponent of 2^(1/2)

    def measure(position: int) -> float:
        if position not in tried:
            weight = start * 2 ** (position / 2)
            if len(tried) == MAX_TRIALS:
                raise ValueError(f"no weight is best: the quality still grows at {weight:.3g}, from {start:.3g} on")
            tried[position] = quality(weight)
            if math.isnan(tried[position]):
                raise ValueError(f"the quality of the weight {weight:.3g} is NaN")
        return tried[position]

    best = 0
    measure(0)
    for direction in (4, -4):
        while measure(best + direction) > tried[best]:
            best += direction
    for step in (2, 1):
        best = max((best, best + step, best - step), key=measure)
    return start * 2 ** (best / 2), [(start * 2 ** (k / 2), v) for k, v in sorted(tried.items())]
