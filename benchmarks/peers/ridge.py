"""Denoising with a ridge regularizer of other authors, from their checkpoint: their solvers and ours.

All minimize one energy, 1/2 ||x - y||^2 + R(x) with filters inside the mirrored picture (:mod:`models.foreign.crr`), in
single precision. The opponents are written from the published descriptions, with the layers of the checkpoint one after
the other, as their authors evaluate them:

* accelerated gradient descent (Nesterov; Beck and Teboulle 2009) with the restart by gradients of O'Donoghue and
  Candes (2015) and step 1/(1 + L), as CRR-NN and WCRR-NN are minimized; L is the proved bound, theirs an estimate;
* the adaptive gradient descent of Malitsky and Mishchenko (2020), as CRR-NN is minimized for denoising.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.turns import Array, Distance, Problem, count, last
from models.foreign import load_foreign
from models.regularizers.linear_spline import LinearSplineRidge
from recon.lower_level import LBFGS, Energy
from recon.reconstruction.boundary import mirrored

Gradient = Callable[[Tensor], Tensor]


def problem(path: Path, sigma: float, strength: float | None, noisy: Array) -> dict[str, object]:
    """Filters, profiles and data of a checkpoint, and the minimizer, certified to 1e-6 of its norm in float64.

    Raises
    ------
    ValueError
        it is no CRR-NN or WCRR-NN, or has no positive modulus.
    """
    model = load_foreign(path, sigma, strength)
    regularizer = model.regularizer
    if not isinstance(regularizer, LinearSplineRidge):
        raise ValueError(f"{path}: is {model.kind}, but this benchmark is of CRR-NN and WCRR-NN")
    y = mirrored(torch.from_numpy(noisy)[None, None], regularizer.margin)
    double = y.double()
    found = LBFGS()(Energy(double, regularizer), double, torch.full((1,), 1e-6 * float(double.norm())))
    if not found.converged:
        raise ValueError(f"{path}: the reference was not reached")
    arrays = {f"layer_{i}": layer.float().numpy() for i, layer in enumerate(model.layers)}
    profile = {n: getattr(regularizer, n).float().numpy() for n in ("weight", "slopes", "first", "spacing")}
    return {**arrays, **profile, "y": y[0, 0].numpy(), "reference": found.x[0, 0].numpy()}


def _regularizer(problem: Problem) -> LinearSplineRidge:
    return LinearSplineRidge.of(*(torch.from_numpy(problem[n]) for n in ("weight", "slopes", "first", "spacing")))


def _gradient(problem: Problem) -> tuple[Tensor, Gradient, float]:
    """y, the gradient of the energy through the layers, and a bound of its Lipschitz constant."""
    y = torch.from_numpy(problem["y"])[None, None]
    names = sorted(name for name in problem if name.startswith("layer_"))
    layers = [torch.from_numpy(problem[name]) for name in names]
    regularizer = _regularizer(problem)
    profile = regularizer.current()[1:]

    def gradient(x: Tensor) -> Tensor:
        u = x
        for layer in layers:
            u = F.conv2d(u, layer)
        v = regularizer.slope(u.flatten(2), profile).view_as(u)
        for layer in reversed(layers):
            v = F.conv_transpose2d(v, layer)
        return x - y + v

    return y, gradient, 1 + regularizer.smoothness()


@torch.no_grad()
def accelerated_iterates(problem: Problem) -> Iterator[Array]:
    """Accelerated gradient descent; where gradient and step point in one direction, the momentum is lost."""
    y, gradient, lipschitz = _gradient(problem)
    x, z, t = y, y, 1.0
    while True:
        step = gradient(z) / lipschitz
        before, x = x, z - step
        if float((step * (x - before)).sum()) > 0:
            t, z = 1.0, x
        else:
            following = (1 + math.sqrt(1 + 4 * t * t)) / 2
            z = x + (t - 1) / following * (x - before)
            t = following
        yield np.asarray(x[0, 0])


@torch.no_grad()
def adaptive_iterates(problem: Problem) -> Iterator[Array]:
    """Gradient descent with the step min(sqrt(1 + theta) step, ||dx|| / (2 ||dg||)), theta the ratio of steps."""
    y, gradient, _ = _gradient(problem)
    before, step, ratio = y, 1e-5, math.inf
    grad = gradient(before)
    x = before - step * grad
    while True:
        new = gradient(x)
        change = float((new - grad).norm())
        local = float((x - before).norm()) / (2 * change) if change > 0 else math.inf
        following = min(math.sqrt(1 + ratio) * step, local)
        if not math.isfinite(following):  # nothing moves any more
            following = step
        ratio, step = following / step, following
        before, grad, x = x, new, x - following * new
        yield np.asarray(x[0, 0])


def recon(problem: Problem, goal: float, distance: Distance) -> Callable[[], Array]:
    """L-BFGS to a certified distance of ``goal`` times 0.95 ||y||, which is less than ||x^||, starting from y."""
    y, regularizer = torch.from_numpy(problem["y"])[None, None], _regularizer(problem)
    accuracy = torch.full((1,), 0.95 * goal * float(y.norm()))
    return lambda: np.asarray(LBFGS()(Energy(y, regularizer), y, accuracy).x[0, 0])


def recon_counted(problem: Problem, goal: float, distance: Distance) -> Callable[[], Array]:
    """L-BFGS with the accuracy, by halving, that comes as near as ``goal``: what the certificate costs is the rest."""
    y, regularizer = torch.from_numpy(problem["y"])[None, None], _regularizer(problem)

    def run(accuracy: float) -> Array:
        return np.asarray(LBFGS()(Energy(y, regularizer), y, torch.full((1,), accuracy)).x[0, 0])

    accuracy = 64 * goal * float(y.norm())
    while distance(run(accuracy)) > goal:
        accuracy /= 1.3
    return lambda: run(accuracy)


def accelerated(problem: Problem, goal: float, distance: Distance) -> Callable[[], Array]:
    n = count(accelerated_iterates(problem), goal, distance)
    return lambda: last(accelerated_iterates(problem), n)


def adaptive(problem: Problem, goal: float, distance: Distance) -> Callable[[], Array]:
    n = count(adaptive_iterates(problem), goal, distance)
    return lambda: last(adaptive_iterates(problem), n)
