"""How much to regularize: the discrepancy principle, a sweep against a reference, and the best on validation data."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

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

    def entries(self) -> list[dict[str, float]]:
        """The trials as dictionaries for JSON."""
        return [{"weight": trial.weight, "value": trial.value} for trial in self.trials]


class WeightedSolver(ABC):
    """Solves one problem with any weight of its regularizer, whatever the lower level is."""

    problem: Data
    #: the regularizer or model, of weight 1
    regularizer: nn.Module
    mu: float
    nonnegative: bool = False
    #: whether the problem has lost what certificates need
    plain: bool = False
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

    def __init__(self, solver: WeightedSolver, problem: Problem, measure: Callable[[Tensor], float]) -> None:
        self.solver, self.measure = solver, measure
        noise, self.gain = max(problem.noise, _smallest_noise(problem)), problem.noise_gain()
        self.scale = noise * self.gain
        self.gradient = _ROUGH * self.scale * math.sqrt(problem.start.numel())
        self.x, self.evaluations = problem.start, 0
        self.tried: list[Trial] = []
        self.solutions: dict[float, Tensor] = {}

    def __call__(self, weight: float) -> float:
        solution = self.solver.rough(weight, self.x, self.gradient)
        self.x = solution.x
        self.evaluations += int(solution.evaluations[0])
        self.tried.append(Trial(weight, self.measure(self.x)))
        self.solutions[weight] = self.x
        return self.tried[-1].value

    def first_weight(self, trained: bool) -> float:
        """1 for a trained regularizer; for TV the size of the noise in the gradient of the fidelity, pixel by pixel."""
        return 1.0 if trained else self.scale

    def misfit(self, level: float) -> float:
        """How far the best residual is from the level, relatively."""
        return min(abs(trial.value / level - 1) for trial in self.tried)


def _with_noise(solver: WeightedSolver) -> Problem:
    if not isinstance(solver.problem, Problem):
        raise ValueError("choosing a weight needs the noise of the data; give the weight, or a Problem")
    return solver.problem


def _smallest_noise(problem: Problem) -> float:
    """0.2 % of the data: trials are not solved for less, so that clean data ask for no infinite accuracy."""
    return 2e-3 * problem.root_mean_square(problem.y)


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
    problem = _with_noise(solver)
    # on the scale of the file, as the rest of the report
    trials = _Trials(solver, problem, lambda x: problem.scale * problem.residual(x))
    level = noise = problem.scale * problem.noise
    if not noise > 0:
        raise ValueError(
            f"{problem.source}: the noise is {noise:g} ({problem.noise_rule}), so that the discrepancy principle asks "
            "for no regularization at all; give --noise or --weight"
        )
    rule = f"discrepancy principle: residual = noise = {noise:.4g} ({problem.noise_rule})"
    weight = trials.first_weight(trained)
    residual = trials(weight)
    # down to a residual below the level, or to the end
    for _ in range(4):
        if residual <= level * (1 + _TOLERANCE):
            break
        weight, before = weight / _FACTOR, residual
        residual = trials(weight)
        if residual > 0.95 * before:
            break
    if residual > level * (1 + _TOLERANCE):
        level = math.hypot(residual, level * math.sqrt(min(1.0, problem.start.numel() / problem.measured)))
        rule = (
            f"discrepancy principle: the residual stays above the noise of {noise:.4g} ({problem.noise_rule}), "
            f"so the model does not explain the data to that level; with the smallest residual of {residual:.4g} the "
            f"level is {level:.4g}"
        )
    # up to one above
    while all(trial.value <= level for trial in trials.tried):
        if weight >= 1e6 * trials.tried[0].weight:
            raise ValueError(
                f"{problem.source}: the residual stays below the noise of {level:.4g} ({problem.noise_rule}) for all "
                "weights; give a smaller --noise, or --weight"
            )
        weight *= _FACTOR
        trials(weight)
    while len(trials.tried) < _MAX_TRIALS and trials.misfit(level) > _TOLERANCE:
        low = max((t for t in trials.tried if t.value <= level), key=lambda t: t.weight)
        high = min((t for t in trials.tried if t.value > level), key=lambda t: t.weight)
        if not low.weight < high.weight:  # the residual grows with the weight, up to the accuracy of the trials
            break
        trials(_between(low, high, level))
    best = min(trials.tried, key=lambda t: abs(t.value / level - 1))
    return Choice(best.weight, rule, tuple(trials.tried), trials.evaluations, trials.solutions[best.weight])


def _between(low: Trial, high: Trial, level: float) -> float:
    """The weight at which the residual reaches the level, if its logarithm were linear in that of the weight."""
    a, b = math.log(low.weight), math.log(high.weight)
    share = math.log(level / low.value) / math.log(high.value / low.value)
    return math.exp(a + min(max(share, 0.15), 0.85) * (b - a))


def sweep(solver: WeightedSolver, trained: bool, quality: Callable[[Tensor], float]) -> Choice:
    """The weight with the best ``quality`` (PSNR against the reference), within a factor of the square root of 2.

    Weights are multiplied or divided by 4 for as long as that is better; then the neighbours of the best one at a
    factor of 2, and of 2^(1/2), are tried.
    """
    trials = _Trials(solver, _with_noise(solver), quality)
    weight = trials.first_weight(trained)
    tried = {0: trials(weight)}  # by the exponent of 2^(1/2)
    for step in (4, 2, 1):
        best = max(tried, key=lambda k: tried[k])
        for direction in (step, -step):
            position = best
            while len(tried) < 2 * _MAX_TRIALS:
                position += direction
                if position not in tried:
                    tried[position] = trials(weight * 2 ** (position / 2))
                if tried[position] <= max(v for k, v in tried.items() if k != position) or step < 4:
                    break
    best = max(tried, key=lambda k: tried[k])
    rule = "sweep: the largest PSNR against the reference, so no fair comparison with methods that do not see it"
    weight *= 2 ** (best / 2)
    return Choice(weight, rule, tuple(trials.tried), trials.evaluations, trials.solutions[weight])


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
