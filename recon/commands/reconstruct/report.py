"""``report.json`` of ``recon reconstruct``: what is said of every result, whatever the task; docs/reconstruction.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from models import NoiseConditioned, TotalVariation
from recon.commands.output.one_by_one import Outcome
from recon.lower_level import Grade
from recon.metrics import SSIM_WINDOW, psnr, ssim
from recon.reconstruction import PlainTotalVariation, Problem, Regularized
from recon.reconstruction.methods import NOT_CERTIFIED

REPORT = "report.json"
#: of the entries; reports of schema 1 do not say so, and those of images had other entries than those of CT and MRI
SCHEMA = 2
#: the status of methods that solve nothing, and that of solutions which reached their accuracy
DIRECT, CONVERGED = "direct", "converged"


class Quality(NamedTuple):
    """PSNR in dB and SSIM of an image against the true one; None where one is infinite or not defined."""

    psnr: float | None = None
    ssim: float | None = None

    @staticmethod
    def of(image: Tensor, reference: Tensor, data_range: float) -> Quality:
        """Measure images of one shape, ``(channel, height, width)`` or ``(height, width)``."""
        pair = [t.reshape(1, -1, *t.shape[-2:]) for t in (image, reference)]
        large = min(reference.shape[-2:]) >= SSIM_WINDOW
        return Quality(
            finite(float(psnr(pair[0], pair[1], data_range))),
            finite(float(ssim(pair[0], pair[1], data_range))) if large else None,
        )


UNKNOWN = Quality()


@dataclass(frozen=True)
class Subject:
    """What was reconstructed."""

    name: str
    data: str
    reference: str | None
    shape: list[int]
    unit: str
    simulated: str | None
    noise: float
    noise_rule: str
    details: dict[str, object]
    warnings: list[str]

    @staticmethod
    def of(problem: Problem, reference: Path | None, image: Tensor, warnings: Sequence[str] = ()) -> Subject:
        """The problem, what ``--reference`` says, the shape of its image, and further warnings."""
        origin, noise = problem.origin, problem.noise
        return Subject(
            name=origin.name,
            data=str(origin.data),
            reference=None if reference is None else str(reference),
            shape=list(image.shape),
            unit=origin.unit,
            simulated=origin.simulated,
            noise=noise.deviation * problem.scale,
            noise_rule=noise.rule,
            details=dict(origin.details),
            warnings=[*origin.warnings, *warnings],
        )


@dataclass(frozen=True)
class Work:
    """How a method ended, and what that took."""

    status: str = DIRECT
    residual: float | None = None
    evaluations: int | None = 0
    evaluations_choosing: int = 0


@dataclass(frozen=True)
class Prior:
    """The regularizer, its weight, and the problem that is solved with it."""

    regularizer: str | None = None
    noise_level: float | None = None
    smoothing: float | None = None
    weight: float | None = None
    weight_rule: str | None = None
    weight_trials: list[dict[str, float]] = field(default_factory=list)
    mu: float | None = None
    strong_convexity: float | None = None
    norm_bound: float | None = None


@dataclass(frozen=True)
class Certified:
    """What is certified of the image, beside what was asked for.

    ``error`` is the distance to ``minimizer``; ``error_unsmoothed`` that to the minimizer of total variation
    that is not smoothed.
    """

    minimizer: str | None = None
    accuracy: float | None = None
    accuracy_rule: str | None = None
    error: float | None = None
    error_relative: float | None = None
    error_rms_per_pixel: float | None = None
    error_rounding: float | None = None
    error_unsmoothed: float | None = None
    grade: str | None = None


@dataclass(frozen=True)
class Result:
    """The entry of one file in the report; docs/reconstruction.md says what each means, its unit, and when it is None.

    It begins as that of a method that solves nothing; :meth:`solved` says what others found. ``before`` is the quality
    of the baseline.
    """

    subject: Subject
    seconds: float
    quality: Quality
    work: Work = Work()
    prior: Prior = field(default_factory=Prior)
    certified: Certified = Certified()
    baseline: str | None = None
    before: Quality = UNKNOWN

    def entry(self) -> dict[str, object]:
        """As in the file, in the order of the documentation."""
        before = {"baseline": self.baseline, "baseline_psnr": self.before.psnr, "baseline_ssim": self.before.ssim}
        took = {"seconds": self.seconds, **self.quality._asdict()}
        return {**vars(self.subject), **took, **vars(self.work), **vars(self.prior), **vars(self.certified), **before}

    @property
    def reached(self) -> bool:
        """Whether it is all that was asked for."""
        return self.work.status in (CONVERGED, DIRECT, NOT_CERTIFIED)

    def solved(self, problem: Problem, made: Regularized, image: Tensor) -> Result:
        """With the solution that ``image`` shows, what led to it, and what is certified of it."""
        solution, choice, regularizer, scale = made.solution, made.choice, made.solver.regularizer, problem.scale
        work = Work(
            status=made.status,
            residual=None if made.residual is None else made.residual * scale,
            evaluations=int(solution.evaluations[0]),
            evaluations_choosing=choice.evaluations,
        )
        modulus = made.solver.strong_convexity(choice.weight)
        prior = Prior(
            regularizer=_name(regularizer),
            noise_level=problem.noise.deviation * scale if isinstance(regularizer, NoiseConditioned) else None,
            smoothing=_smoothing(regularizer, scale),
            weight=choice.weight,
            weight_rule=choice.rule,
            weight_trials=[asdict(trial) for trial in choice.trials],
            mu=made.solver.mu,
            strong_convexity=modulus,
            norm_bound=problem.operator.norm_bound,
        )
        asked = None if made.accuracy is None else made.accuracy * scale
        certified = Certified(_minimizer(regularizer, problem), asked, made.accuracy_rule)
        error = scale * float(solution.error[0])
        if problem.operator.adjoint_exact and math.isfinite(error):
            certified = replace(
                certified,
                error=error,
                error_relative=finite(error / max(float(image.double().norm()), 1e-300)),
                error_rms_per_pixel=error / math.sqrt(image.numel()),
                error_rounding=scale * float(solution.rounding[0]),
                grade=Grade(int(solution.grade[0])).word,
            )
            if isinstance(regularizer, (PlainTotalVariation, TotalVariation)) and modulus:
                slack = scale**2 * choice.weight * _slack(regularizer, solution.x) / modulus
                certified = replace(certified, error_unsmoothed=error / 2 + math.sqrt(error**2 / 4 + slack))
        return replace(self, work=work, prior=prior, certified=certified)


def _smoothing(regularizer: nn.Module, scale: float) -> float | None:
    """Of total variation, in the unit of the result; 0 where there is none."""
    if isinstance(regularizer, PlainTotalVariation):
        return 0.0
    return float(regularizer.log_smoothing.exp()) * scale if isinstance(regularizer, TotalVariation) else None


def _slack(regularizer: PlainTotalVariation | TotalVariation, x: Tensor) -> float:
    """How much less smoothed total variation can be at x; 0 where nothing is smoothed."""
    return 0.0 if isinstance(regularizer, PlainTotalVariation) else float(regularizer.slack(x)[0])


def _name(regularizer: nn.Module) -> str:
    """Its class, and that of what knows no noise level by itself."""
    inner = f"({_name(regularizer.regularizer)})" if isinstance(regularizer, NoiseConditioned) else ""
    return type(regularizer).__name__ + inner


def _minimizer(regularizer: nn.Module, problem: Problem) -> str:
    """What ``error`` is the distance to, in words."""
    if isinstance(regularizer, PlainTotalVariation):
        kind = "isotropic" if regularizer.isotropic else "anisotropic"
        return f"{kind} total variation, not smoothed"
    if isinstance(regularizer, TotalVariation):
        return "smoothed total variation; that without smoothing is within error_unsmoothed"
    if isinstance(regularizer, NoiseConditioned):
        level = f"{problem.noise.deviation * problem.scale:.3g}, {problem.noise.rule}"
        return f"the energy with {_name(regularizer.regularizer)} for the noise level {level}"
    return f"the energy with {type(regularizer).__name__}"


def report(outcome: Outcome[Result], about: Mapping[str, object]) -> dict[str, object]:
    """What ``report.json`` holds: ``about`` all results, and every one of them; what failed, and what is not begun."""
    done = all(result.reached for result in outcome.results) and not (outcome.failures or outcome.pending)
    results = [result.entry() for result in outcome.results]
    return {"schema": SCHEMA, **about, "converged": done, "images": results, **outcome.entries()}


def finite(value: float) -> float | None:
    """The number, or ``None`` (null) where JSON has none for it."""
    return value if math.isfinite(value) else None


def graded(result: Result) -> str:
    """Its status as in tables: for energies it ends with what the certified error rests on."""
    status, grade = result.work.status, result.certified.grade
    return status if grade is None else f"{status}, {grade}"


def evaluations(result: Result) -> str:
    """Their number as in tables, those of the choice of the weight in front; a dash where nothing is evaluated."""
    work = result.work
    if work.evaluations is None:
        return "–"
    return f"{work.evaluations_choosing}+{work.evaluations}" if work.evaluations_choosing else f"{work.evaluations}"
