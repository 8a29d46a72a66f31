"""What the options of ``recon reconstruct`` ask of the library: the method, the weight, the accuracy."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models import TotalVariation
from recon.commands.reconstruct.networks import NOT_CERTIFIED, TrainedNetwork
from recon.commands.reconstruct.options import MAX_EVALUATIONS, SMOOTHED_TV, TV
from recon.lower_level import LBFGS, ProjectedLBFGS, Regularizer, SaddleModel
from recon.reconstruction import (
    ExactTotalVariation,
    Problem,
    Regularized,
    Request,
    Saddle,
    Variational,
    Watch,
    of_energy,
)
from recon.reconstruction.early_stopped import EARLY_STOPPED
from recon.reconstruction.regularized import RegularizedMethod
from recon.reconstruction.saddle import PLAIN_CERTIFICATE, SADDLE_CERTIFICATE
from recon.reconstruction.variational import CERTIFICATE

#: smoothing of TV relative to the 99th percentile of the first guess
SMOOTHING = 0.01


@dataclass(frozen=True)
class Trained:
    """A trained regularizer or saddle-point model.

    mu: that it was trained with (0: none). steps: of descent, if the training stopped it early where nothing is convex.
    """

    model: Regularizer | SaddleModel
    mu: float
    steps: int | None = None

    @staticmethod
    def of(model: Regularizer | SaddleModel, metadata: Mapping[str, object], file: str) -> Trained:
        """As the file says.

        Raises
        ------
        ValueError
            it says something that cannot be.
        """
        steps = metadata.get("descent_iterations")
        own = model.image_convexity if isinstance(model, SaddleModel) else None
        return Trained(model, own or metadata_mu(metadata, file), steps if isinstance(steps, int) else None)


def metadata_mu(metadata: Mapping[str, object], file: str) -> float:
    """The mu that a model was trained with, 0 if its file says nothing.

    Raises
    ------
    ValueError
        it is no number, negative or not finite.
    """
    mu = metadata.get("mu", 0.0)
    if not isinstance(mu, (int, float)) or not 0 <= mu < math.inf:
        raise ValueError(f"{file}: mu is {mu!r}, but must be finite and not negative")
    return float(mu)


def check_variational(model: Regularizer | SaddleModel, args: argparse.Namespace) -> None:
    """Check that a regularizer or saddle-point model, ``args.model``, has the options that are given.

    Raises
    ------
    ValueError
        it has not.
    """
    file, name = args.model, type(model).__name__
    if args.unchecked:
        raise ValueError(f"--unchecked belongs to networks that reconstruct; {file} holds {name}")
    if not isinstance(model, SaddleModel):
        if args.plain:
            raise ValueError(f"--plain belongs to saddle-point models; {file} holds a regularizer, {name}")
        return
    if args.nonnegative:
        raise ValueError(f"--nonnegative does not go with {file}, which holds a saddle-point model, {name}")
    if args.smoothing is not None:
        raise ValueError(f"--smoothing belongs to --method {SMOOTHED_TV}; {file} holds {name}, which has its own")


def certificate(model: Trained | TrainedNetwork | None, plain: bool) -> str:
    """What is certified of results with ``model``, as reports say it."""
    if model is None:
        return CERTIFICATE
    if isinstance(model, TrainedNetwork):
        return NOT_CERTIFIED
    if isinstance(model.model, SaddleModel):
        return PLAIN_CERTIFICATE if plain else SADDLE_CERTIFICATE
    return CERTIFICATE if model.steps is None or model.model.convexity() >= 0 else EARLY_STOPPED + CERTIFICATE


def total_variation(problem: Problem, smoothing: float | None) -> TotalVariation:
    """TV of weight 1; its smoothing is 1 % of the height of the first guess unless it is given, in the unit of it.

    Raises
    ------
    ValueError
        the first guess is zero everywhere.
    """
    nu = smoothing / problem.scale if smoothing else SMOOTHING * _height(problem.start)
    return TotalVariation(log_weight=0.0, log_smoothing=math.log(nu)).to(problem.y).requires_grad_(False)


def _height(x: Tensor) -> float:
    """The 99th percentile of absolute values: the height of what is seen, whatever the streaks of the first guess."""
    values = x.detach().abs().flatten().double()
    values = values[values > 0]
    if not len(values):
        raise ValueError("the data give an image that is zero everywhere")
    return float(values.kthvalue(max(1, math.ceil(0.99 * len(values)))).values)


def reconstruct(
    problem: Problem,
    model: Trained | None,
    mu: float | None,
    args: argparse.Namespace,
    request: Request,
    watch: Watch | None = None,
) -> Regularized:
    """Choose the weight as the request says, and solve to a certified accuracy.

    Parameters
    ----------
    problem
        data, operator, noise.
    model
        None is total variation.
    mu
        of the energy; None is 0 for energies, and what saddle-point models say themselves.
    args
        which form of the model is solved, and in how many evaluations.
    request
        what is asked for.
    watch
        see ``Watch``.

    Raises
    ------
    ValueError
        no weight fits the noise, nothing can be certified, a weight could not be tried, or numbers overflow.
    """
    if not math.isfinite(float(problem.y.double().square().sum())):
        raise _overflow(problem)
    made = _method(problem, model, mu, args).reconstruct(problem, request, watch)
    if not bool(torch.isfinite(made.solution.x).all()):
        raise _overflow(problem)
    return made


def _method(problem: Problem, trained: Trained | None, mu: float | None, args: argparse.Namespace) -> RegularizedMethod:
    limit = args.max_evaluations or MAX_EVALUATIONS
    if args.method == TV and problem.denoises:
        return ExactTotalVariation(not args.anisotropic, mu or 0.0, limit)
    solvers = LBFGS(max_iterations=limit), ProjectedLBFGS(max_iterations=limit)
    if trained is None:
        return Variational(total_variation(problem, args.smoothing), mu or 0.0, *solvers, trained=False)
    if isinstance(trained.model, SaddleModel):
        return Saddle(trained.model, mu, args.plain, max_evaluations=limit)
    method = of_energy(problem, trained.model, mu or 0.0, trained.steps, args.weight or 1.0)
    if isinstance(method, Variational):
        return replace(method, minimize=solvers[0], project=solvers[1])
    return replace(method, mu=args.mu or trained.mu)  # what makes others convex, descent does not need


def _overflow(problem: Problem) -> ValueError:
    largest, kind = float(problem.y.double().abs().max()) * problem.scale, str(problem.y.dtype).removeprefix("torch.")
    return ValueError(
        f"{problem.source}: its values reach {largest:.3g}, and {kind} does not hold the squares that the energy is "
        "made of; give the data in another unit"
    )
