"""How much to regularize: the discrepancy principle, a sweep against a reference, and the best on validation data."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from recon.errors import positive
from recon.lower_level import Solution, Status
from recon.reconstruction.problem import Data, Problem

#: Gradients of trial solutions, relative to that of the noise, ||A^T n||: trials need to be compared, not certified.
_ROUGH = 0.05
#: the residual may miss the level of the noise by this share
_TOLERANCE = 0.02
#: factor between trial weights until the level lies between two of them
_FACTOR = 4.0
_MAX_TRIALS = 16
#: weights that are tried at most in a search for the best one
MAX_TRIALS = 32


@dataclass(frozen=True)
class Trial:
    """One weight that was tried: root mean square residual, or PSNR in dB, of its solution."""

    weight: float
    value: float


@dataclass(frozen=True)
class Choice:
    """The weight, how it was chosen (for the report), what was tried, and a start for the final solution."""

    weight: float
    rule: str
    trials: tuple[Trial, ...]
    evaluations: int
    start: Tensor | None


class WeightedSolver(ABC):
    """Solves one problem with any weight of its regularizer, whatever the lower level is."""

    problem: Data
    #: the regularizer or model, of weight 1
    regularizer: nn.Module
    mu: float
    #: whether solutions come with a bound of their error
    certifies: bool = True

    @abstractmethod
    def strong_convexity(self, weight: float) -> float | None:
        """The modulus with this weight; None where none is of use."""

    @abstractmethod
    def accuracy(self, weight: float, given: float | None) -> tuple[float, str]:
        """The accuracy on the scale of x, and its rule, from what is asked for in the unit of the result."""

    @abstractmethod
    def certified(self, weight: float, start: Tensor | None, accuracy: float) -> Solution:
        """The solution to the certified ``accuracy``."""

    @abstractmethod
    def rough(self, weight: float, start: Tensor, gradient: float) -> Solution:
        """A point whose gradient, or residuals, are at most ``gradient``: enough to compare weights.

        Raises
        ------
        ValueError
            It was not reached within the evaluations allowed.
        """


def require_tried(problem: Data, weight: float, solution: Solution) -> None:
    """Raise ``ValueError`` unless a trial of ``weight`` ended where it was to."""
    status = Status(int(solution.status[0]))
    if status in (Status.NOT_FINITE, Status.ITERATION_LIMIT):
        raise ValueError(
            f"{problem.source}: the weight {weight:.3g} could not be tried "
            f"({status.name.lower().replace('_', ' ')} after {int(solution.evaluations[0])} evaluations); use a "
            "larger --max-evaluations, another --smoothing, or give --weight"
        )


class _Trials:
    """Solves roughly for one weight after the other, each from the solution of the one before."""

    def __init__(self, solver: WeightedSolver, measure: Callable[[Problem, Tensor], float]) -> None:
        if not isinstance(solver.problem, Problem):
            raise ValueError("choosing a weight needs the noise of the data; give the weight, or a Problem")
        self.solver, self.problem, self.measure = solver, solver.problem, measure
        # trials are not solved for less than 0.2 % of the data, so that clean data ask for no infinite accuracy
        smallest = 2e-3 * self.problem.root_mean_square(self.problem.y)
        #: the size of the noise in the gradient of the fidelity, pixel by pixel
        self.scale = max(self.problem.noise.deviation, smallest) * self.problem.noise_gain()
        self.gradient = _ROUGH * self.scale * math.sqrt(self.problem.start.numel())
        self.x, self.evaluations = self.problem.start, 0
        self.tried: list[Trial] = []
        self.solutions: dict[float, Tensor] = {}

    def __call__(self, weight: float) -> float:
        solution = self.solver.rough(weight, self.x, self.gradient)
        self.x = solution.x
        self.evaluations += int(solution.evaluations[0])
        self.tried.append(Trial(weight, self.measure(self.problem, self.x)))
        self.solutions[weight] = self.x
        return self.tried[-1].value

    def first_weight(self, trained: bool) -> float:
        """1 for a trained regularizer; what TV needs has the size of the noise."""
        return 1.0 if trained else self.scale

    def nearest(self, level: float) -> tuple[Trial, float]:
        """The trial whose residual is nearest to the level, and how far that is, relatively."""
        best = min(self.tried, key=lambda trial: abs(trial.value / level - 1))
        return best, abs(best.value / level - 1)

    def choice(self, weight: float, rule: str) -> Choice:
        """One of the weights that were tried."""
        return Choice(weight, rule, tuple(self.tried), self.evaluations, self.solutions[weight])


def discrepancy(solver: WeightedSolver, trained: bool) -> Choice:
    """Morozov's discrepancy principle: the weight for which the residual is as large as the noise.

    The root mean square residual grows with the weight. Weights are multiplied or divided by 4 until the level of the
    noise lies between two of them, and then interpolated (secants in the logarithms, kept within the bracket) until
    the residual is within 2 % of it.

    Where the residual stays above the noise although weights go down (by 4^-4, or until that changes it by less than
    5 %), the model (geometry, beam hardening, sensitivities) does not explain the data, and no weight satisfies the
    principle. With the residual r that is left then, the level is (r^2 + noise^2 min(1, n/m))^(1/2): what n unknowns
    fit to m data takes off the residual of the truth is the share n/m of the noise.

    Raises
    ------
    ValueError
        the residual stays below the level for all weights: the noise is stated too large; or there is none.
    """
    # on the scale of the file, as the rest of the report
    trials = _Trials(solver, lambda problem, x: problem.scale * problem.residual(x))
    problem, known = trials.problem, trials.problem.noise
    level = noise = problem.scale * known.deviation
    if not noise > 0:
        raise ValueError(
            f"{problem.source}: the noise is {noise:g} ({known.rule}), so that the discrepancy principle asks "
            "for no regularization at all; give --noise or --weight"
        )
    rule = f"discrepancy principle: residual = noise = {noise:.4g} ({known.rule})"
    residual = _lowered(trials, trials.first_weight(trained), level * (1 + _TOLERANCE))
    if residual > level * (1 + _TOLERANCE):
        level = math.hypot(residual, level * math.sqrt(min(1.0, problem.start.numel() / known.measured)))
        rule = (
            f"discrepancy principle: the residual stays above the noise of {noise:.4g} ({known.rule}), "
            f"so the model does not explain the data to that level; with the smallest residual of {residual:.4g} the "
            f"level is {level:.4g}"
        )
    _raise_above(trials, level)
    while len(trials.tried) < _MAX_TRIALS and trials.nearest(level)[1] > _TOLERANCE:
        low = max((t for t in trials.tried if t.value <= level), key=lambda t: t.weight)
        high = min((t for t in trials.tried if t.value > level), key=lambda t: t.weight)
        if not low.weight < high.weight:  # the residual grows with the weight, up to the accuracy of the trials
            break
        trials(_between(low, high, level))
    return trials.choice(trials.nearest(level)[0].weight, rule)


def _lowered(trials: _Trials, weight: float, enough: float) -> float:
    """The residual after going down with the weight to one that is ``enough``, or as far as that is of use."""
    residual = trials(weight)
    for _ in range(4):
        if residual <= enough:
            break
        weight, before = weight / _FACTOR, residual
        residual = trials(weight)
        if residual > 0.95 * before:
            break
    return residual


def _raise_above(trials: _Trials, level: float) -> None:
    """Go up with the weight until a residual is above the level."""
    while all(trial.value <= level for trial in trials.tried):
        weight = trials.tried[-1].weight
        if weight >= 1e6 * trials.tried[0].weight:
            raise ValueError(
                f"{trials.problem.source}: the residual stays below the noise of {level:.4g} "
                f"({trials.problem.noise.rule}) for all weights; give a smaller --noise, or --weight"
            )
        trials(weight * _FACTOR)


def _between(low: Trial, high: Trial, level: float) -> float:
    """The weight at which the residual reaches the level, if its logarithm were linear in that of the weight."""
    a, b = math.log(low.weight), math.log(high.weight)
    share = math.log(level / low.value) / math.log(high.value / low.value)
    return math.exp(a + min(max(share, 0.15), 0.85) * (b - a))


def sweep(solver: WeightedSolver, trained: bool, quality: Callable[[Tensor], float]) -> Choice:
    """The weight with the best ``quality`` (PSNR against the reference), see :func:`best_weight`.

    Raises
    ------
    ValueError
        a weight could not be tried, or the quality still grows after ``MAX_TRIALS`` trials.
    """
    trials = _Trials(solver, lambda problem, x: quality(x))
    weight, _ = best_weight(trials, trials.first_weight(trained))
    rule = "sweep: the largest PSNR against the reference, so no fair comparison with methods that do not see it"
    return trials.choice(weight, rule)


def best_weight(quality: Callable[[float], float], start: float) -> tuple[float, list[tuple[float, float]]]:
    """The weight with the largest ``quality``, within a factor of the square root of 2, and all that was tried.

    Weights are multiplied or divided by 4 for as long as that is better; then the neighbours of the best one at a
    factor of 2, and of 2^(1/2), are tried. Finds the maximum of functions that grow up to it and fall after it.

    Parameters
    ----------
    quality
        of a weight, e.g. the mean PSNR on validation data.
    start
        the first weight.

    Raises
    ------
    ValueError
        ``start`` is not positive, a quality is NaN, or it still grows after 32 trials.
    """
    positive(**{"the first weight": start})
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


Point = tuple[float, ...]


def best_point(
    quality: Callable[[Point], float], start: Point, steps: Sequence[float], gain: float, farthest: float
) -> tuple[Point, float]:
    """The point with the largest ``quality``, by search along the axes, and its quality.

    Goes to the best neighbour at the distance of the first of ``steps`` for as long as that gains, then of the next.

    Parameters
    ----------
    quality : callable
        Of a point; called once for each. Minus infinity is worse than all else.
    start : tuple of float
        The first point.
    steps : sequence of float
        Distances of neighbours, one after the other.
    gain : float
        What a move must gain.
    farthest : float
        How far the search goes from ``start``, along each axis.
    """
    tried: dict[Point, float] = {}

    def value(point: Point) -> float:
        if point not in tried:
            tried[point] = quality(point)
        return tried[point]

    best = start
    for step in steps:
        while True:
            near = [
                tuple(b + sign * step * (i == axis) for i, b in enumerate(best))
                for axis in range(len(start))
                for sign in (1, -1)
            ]
            near = [p for p in near if max(abs(s - t) for s, t in zip(p, start, strict=True)) <= farthest]
            found = max([best, *near], key=value)
            if not value(found) > value(best) + gain:
                break
            best = found
    return best, value(best)
