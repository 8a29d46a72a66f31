"""Descent with early stopping for energies that nothing is certified of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from recon.lower_level import Energy, over_image, per_image_norm

#: share of the decrease that the gradient promises which a step must achieve
_ARMIJO = 1e-4
_GROWTH, _SHRINKAGE = 1.5, 0.5


@torch.no_grad()
def descend(
    energy: Energy,
    x0: Tensor,
    iterations: int,
    watch: Callable[[Tensor], None] = lambda x: None,
    nonnegative: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Gradient descent x <- x - s grad h(x) with h(x - s grad h(x)) <= h(x) - 1e-4 s \|\|grad h(x)\|\|^2.

    Every iteration is one evaluation. A step that fails the inequality, or leads to values that are not finite, is not
    made and halves s; others multiply it by 1.5. The first s is one over the Lipschitz constant of the energy's data
    term. Images do not see each other.

    Args:
        energy: any, convex or not.
        x0: where to start.
        iterations: how many; early stopping is part of the regularization.
        watch: is told x before the first and after every iteration.
        nonnegative: whether x stays in x >= 0: trials are projected, and their own length counts in the inequality.

    Returns:
        x and the gradient of h there.
    """
    x = x0.detach().clone()
    if nonnegative:
        x.clamp_(min=0)
    value, grad = energy.value_and_grad(x)
    data = energy.operator.norm_bound**2 * energy.fidelity.smoothness(energy.y) + energy.mu
    step = torch.full_like(value, 1 / data)
    watch(x)
    for _ in range(iterations):
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
        watch(x)
    return x, grad
