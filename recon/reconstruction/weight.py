"""How much to regularize: the discrepancy principle, and a sweep against a reference; estimates of the noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from recon.reconstruction.problem import Problem, WeightedSolver

#: Gradients of trial solutions, relative to that of the noise, ||A^T n||: trials need to be compared, not certified.
_ROUGH = 0.05
#: the residual may miss the level of the noise by this share
_TOLERANCE = 0.02
#: factor between trial weights until the level lies between two of them
_FACTOR = 4.0
_MAX_TRIALS = 16


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
    start: Tensor

    def entries(self) -> list[dict[str, float]]:
        """The trials as dictionaries for JSON."""
        return [{"weight": trial.weight, "value": trial.value} for trial in self.trials]


class _Trials:
    """Solves roughly for one weight after the other, each from the solution of the one before."""

    def __init__(self, solver: WeightedSolver, measure: Callable[[Tensor], float]) -> None:
        problem = solver.problem
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

    Raises:
        ValueError: the residual stays below the level for all weights: the noise is stated too large; or there is none.
    """
    problem = solver.problem
    # on the scale of the file, as the rest of the report
    trials = _Trials(solver, lambda x: problem.scale * problem.residual(x))
    level = noise = problem.scale * problem.noise
    if not noise > 0:
        raise ValueError(
            f"{problem.data}: the noise is {noise:g} ({problem.noise_rule}), so that the discrepancy principle asks "
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
                f"{problem.data}: the residual stays below the noise of {level:.4g} ({problem.noise_rule}) for all "
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
    trials = _Trials(solver, quality)
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


def sinogram_noise(sinogram: Tensor, measured: Tensor | None = None) -> float:
    """Standard deviation of the noise of a sinogram ``(..., angles, detectors)`` with independent rays.

    The mask (1, -2, 1) x (1, -2, 1), of norm 6, takes away whatever varies linearly along views or detector (Immerkaer,
    Computer Vision and Image Understanding 64, 1996). Instead of the mean of its squares, which edges spoil, their
    median over the rays with the larger half of line integrals counts: where there is an object, and most noise. Where
    ``measured`` (of the sinogram's shape) is False, rays and their eight neighbours are left out.

    Raises:
        ValueError: the sinogram is too small, or too few rays were measured.
    """
    inside = sinogram.detach().cpu().double()[..., 1:-1, 1:-1]
    second = _second_differences(sinogram, f"a sinogram of {sinogram.shape[-2]} views and {sinogram.shape[-1]} pixels")
    if measured is not None:
        whole = measured.detach().cpu().unfold(-2, 3, 1).unfold(-2, 3, 1).flatten(-2).all(-1)
        if int(whole.sum()) < 9:
            rays = f"{int(measured.sum())} of {measured.numel()} rays"
            raise ValueError(f"too few rays were measured ({rays}) to estimate the noise; give --noise or --photons")
        inside, second = inside[whole], second[whole]
    return _deviation(second[inside >= inside.median()]) / 6


def image_noise(image: Tensor) -> float:
    """Standard deviation of the noise of an image ``(..., H, W)`` with independent pixels, as :func:`sinogram_noise`.

    The median is over all pixels; fine texture counts as noise.
    """
    return _deviation(_second_differences(image, f"an image of {image.shape[-2]}x{image.shape[-1]} pixels")) / 6


def _second_differences(values: Tensor, what: str) -> Tensor:
    if min(values.shape[-2:]) < 3:
        raise ValueError(f"{what} is too small to estimate its noise; give --noise")
    return values.detach().cpu().double().diff(n=2, dim=-2).diff(n=2, dim=-1)


def _deviation(values: Tensor) -> float:
    """The standard deviation of a normal distribution with this median of absolute values."""
    return 1.4826 * float(values.abs().median())
