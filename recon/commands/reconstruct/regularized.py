"""One regularized reconstruction of ``recon reconstruct``: regularizer, weight, accuracy, certified solution."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models import TotalVariation
from recon.commands.reconstruct.networks import NOT_CERTIFIED, Network
from recon.commands.reconstruct.options import MAX_EVALUATIONS
from recon.commands.reconstruct.saddle_solver import PLAIN_CERTIFICATE, SADDLE_CERTIFICATE, SaddleSolver
from recon.lower_level import Regularizer, SaddleModel, Solution
from recon.reconstruction.problem import CERTIFICATE, Problem, Solver, WeightedSolver
from recon.reconstruction.weight import Choice, discrepancy, sweep

DTYPES = {"float32": torch.float32, "float64": torch.float64}
#: the accuracy by default, relative to the norm of the first guess
RELATIVE_ACCURACY = 1e-2
#: The least accuracy by default, in units of what rounding errors alone contribute to the certificate: when a gradient
#: falls below its own rounding error, gradient and rounding certify 2 such units together. The rest is for minimizers
#: whose norm exceeds that of the first guess, which the unit is computed with.
FLOORS = 5.0
#: where rounding errors allow no better than this by default, relative to the first guess, nothing is computed
LARGEST_ACCURACY = 0.1
#: smoothing of TV relative to the 99th percentile of the first guess
SMOOTHING = 0.01

#: is told the phase, the number of evaluations and the distance that is certified, on the scale of x
Watch = Callable[[str, int, float], None]


@dataclass(frozen=True)
class Settings:
    """What is asked of a reconstruction; ``accuracy`` and ``smoothing`` in the unit of the result."""

    weight: float | None
    choose: str | None
    smoothing: float | None
    accuracy: float | None
    max_evaluations: int
    nonnegative: bool
    plain: bool = False

    @staticmethod
    def of(args: argparse.Namespace) -> Settings:
        """As given on the command line."""
        return Settings(
            weight=args.weight,
            choose=args.choose,
            smoothing=args.smoothing,
            accuracy=args.accuracy,
            max_evaluations=args.max_evaluations or MAX_EVALUATIONS,
            nonnegative=args.nonnegative,
            plain=args.plain,
        )


@dataclass(frozen=True)
class Reconstruction:
    """A certified solution with everything that led to it, on the scale of x."""

    solver: WeightedSolver
    choice: Choice
    solution: Solution
    accuracy: float
    accuracy_rule: str


def metadata_mu(metadata: dict[str, Any], file: str) -> float:
    """The mu that a model was trained with, 0 if its file says nothing.

    Raises:
        ValueError: it is no number, negative or not finite.
    """
    mu = metadata.get("mu", 0.0)
    if not isinstance(mu, (int, float)) or not 0 <= mu < math.inf:
        raise ValueError(f"{file}: mu is {mu!r}, but must be finite and not negative")
    return float(mu)


def check_variational(model: Regularizer | SaddleModel, settings: Settings, args: argparse.Namespace) -> None:
    """Check that a regularizer or saddle-point model, ``args.model``, has the options that are given.

    Raises:
        ValueError: it has not.
    """
    file = args.model
    if args.unchecked:
        raise ValueError(f"--unchecked belongs to networks that reconstruct; {file} holds {type(model).__name__}")
    name = type(model).__name__
    if not isinstance(model, SaddleModel):
        if settings.plain:
            raise ValueError(f"--plain belongs to saddle-point models; {file} holds a regularizer, {name}")
        return
    if settings.nonnegative:
        raise ValueError(f"--nonnegative does not go with {file}, which holds a saddle-point model, {name}")
    if settings.smoothing is not None:
        raise ValueError(f"--smoothing belongs to --method tv; {file} holds {name}, which has its own")


def certificate(model: Regularizer | SaddleModel | Network | None, plain: bool) -> str:
    """What is certified of results with ``model``, as reports say it."""
    if isinstance(model, Network):
        return NOT_CERTIFIED
    if not isinstance(model, SaddleModel):
        return CERTIFICATE
    return PLAIN_CERTIFICATE if plain else SADDLE_CERTIFICATE


def total_variation(problem: Problem, smoothing: float | None) -> TotalVariation:
    """TV of weight 1; its smoothing is 1 % of the height of the first guess unless it is given, in the unit of it.

    Raises:
        ValueError: the first guess is zero everywhere.
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
    model: Regularizer | SaddleModel | None,
    mu: float | None,
    settings: Settings,
    psnr: Callable[[Tensor], float],
    watch: Watch = lambda phase, evaluation, error: None,
) -> Reconstruction:
    """Choose the weight as ``settings`` say, and solve to a certified accuracy.

    Args:
        problem: data, operator, noise.
        model: the trained regularizer or saddle-point model; None is total variation.
        mu: of the energy; None is 0 for energies, and what saddle-point models say themselves.
        settings: what is asked for.
        psnr: of an x against the reference, for a sweep.
        watch: see ``Watch``.

    Raises:
        ValueError: no weight fits the noise, nothing can be certified, a weight could not be tried, or numbers
            overflow.
    """
    if not math.isfinite(float(problem.y.double().square().sum())):
        raise _overflow(problem)
    count, phase = 0, "choosing the weight"

    def seen(error: float) -> None:
        nonlocal count
        count += 1
        watch(phase, count, error)

    solver: Solver | SaddleSolver
    if isinstance(model, SaddleModel):
        solver = SaddleSolver(problem, model, mu, settings.max_evaluations, settings.plain, seen)
    else:
        prior = total_variation(problem, settings.smoothing) if model is None else model
        solver = Solver(problem, prior, mu or 0.0, settings.max_evaluations, settings.nonnegative, seen)
    choice = _choice(solver, settings, model is not None, psnr)
    accuracy, rule = _accuracy(solver, choice.weight, settings.accuracy)
    phase = "final solution"
    solution = solver.certified(choice.weight, choice.start, accuracy)
    if not bool(torch.isfinite(solution.x).all()):
        raise _overflow(problem)
    return Reconstruction(solver, choice, solution, accuracy, rule)


def _overflow(problem: Problem) -> ValueError:
    largest, kind = float(problem.y.double().abs().max()) * problem.scale, str(problem.y.dtype).removeprefix("torch.")
    return ValueError(
        f"{problem.data}: its values reach {largest:.3g}, and {kind} does not hold the squares that the energy is made "
        "of; give the data in another unit"
    )


def _choice(solver: WeightedSolver, settings: Settings, trained: bool, psnr: Callable[[Tensor], float]) -> Choice:
    if settings.weight is not None or (trained and settings.choose is None):
        rule = "as trained" if settings.weight is None else "given"
        return Choice(settings.weight or 1.0, rule, (), 0, solver.problem.start)
    if settings.choose == "sweep":
        return sweep(solver, trained, psnr)
    return discrepancy(solver, trained)


def _accuracy(solver: Solver | SaddleSolver, weight: float, given: float | None) -> tuple[float, str]:
    """The accuracy on the scale of x, and its rule; of the residuals for plain forms of saddle-point models.

    By default 1 % of the norm of the first guess, but no less than ``FLOORS`` times the rounding errors of a gradient
    over the modulus. In single precision that is 6e-8 ||A||^2 max w / mu relative to the image, w the weights of rays.

    Raises:
        ValueError: this is more than ``LARGEST_ACCURACY``, so that the certificate would be worth nothing.
    """
    problem = solver.problem
    what = ", of the residuals" if isinstance(solver, SaddleSolver) and solver.plain else ""
    if given is not None:
        return given / problem.scale, "given" + what
    norm = float(problem.start.double().norm())
    if isinstance(solver, SaddleSolver):
        return RELATIVE_ACCURACY * norm, f"{100 * RELATIVE_ACCURACY:g} % of the norm of the first guess{what}"
    energy = solver.energy(weight)
    floor = float(energy.rounding(problem.start, torch.zeros(1)).max()) / energy.strong_convexity
    if FLOORS * floor <= RELATIVE_ACCURACY * norm:
        return RELATIVE_ACCURACY * norm, f"{100 * RELATIVE_ACCURACY:g} % of the norm of the first guess"
    kind = str(problem.y.dtype).removeprefix("torch.")
    if FLOORS * floor > LARGEST_ACCURACY * norm:
        raise ValueError(
            f"{problem.data}: with the weight {weight:.3g} and mu {solver.mu:.3g}, {kind} certifies no better than "
            f"{100 * FLOORS * floor / norm:.3g} % of the image; use --dtype float64, a smaller weight, a larger "
            "--mu, or say with --accuracy that this is enough"
        )
    return FLOORS * floor, f"{FLOORS:g} times the rounding errors of {kind}: less cannot be certified with this mu"
