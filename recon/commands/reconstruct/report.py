"""``report.json`` of ``recon reconstruct``: what is said of every result, whatever the task; docs/reconstruction.md."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from models import TotalVariation
from recon.commands.output.one_by_one import Outcome
from recon.commands.reconstruct.networks import Network
from recon.lower_level import Grade
from recon.metrics import SSIM_WINDOW, psnr, ssim
from recon.reconstruction import Problem, Regularized
from recon.reconstruction.methods import NOT_CERTIFIED

REPORT = "report.json"
#: of the entries; in reports of schema 1, which do not say so, those of images had other names than those of CT and MRI
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


@dataclass(frozen=True)
class Result:
    """The entry of one file in the report; docs/reconstruction.md says what each means, its unit, and when it is None.

    It begins as that of a method that solves nothing; :meth:`solved` and :meth:`passed` say what others found.
    """

    name: str
    data: str
    reference: str | None
    shape: list[int]
    unit: str
    simulated: str | None
    noise: float
    noise_rule: str
    details: dict[str, Any]
    warnings: list[str]
    seconds: float
    psnr: float | None
    ssim: float | None
    status: str = DIRECT
    residual: float | None = None
    evaluations: int | None = 0
    evaluations_choosing: int = 0
    regularizer: str | None = None
    smoothing: float | None = None
    weight: float | None = None
    weight_rule: str | None = None
    weight_trials: list[dict[str, float]] = field(default_factory=list)
    mu: float | None = None
    strong_convexity: float | None = None
    norm_bound: float | None = None
    accuracy: float | None = None
    accuracy_rule: str | None = None
    error: float | None = None
    error_relative: float | None = None
    error_rms_per_pixel: float | None = None
    error_rounding: float | None = None
    grade: str | None = None
    baseline: str | None = None
    baseline_psnr: float | None = None
    baseline_ssim: float | None = None

    @property
    def reached(self) -> bool:
        """Whether it is all that was asked for."""
        return self.status in (CONVERGED, DIRECT, NOT_CERTIFIED)

    def beside(self, problem: Problem, before: Quality) -> Result:
        """With the plain method, which the pictures show beside it."""
        return replace(self, baseline=problem.method, baseline_psnr=before.psnr, baseline_ssim=before.ssim)

    def solved(self, problem: Problem, made: Regularized, image: Tensor) -> Result:
        """With the solution that ``image`` shows, what led to it, and what is certified of it."""
        solution, choice, prior = made.solution, made.choice, made.solver.regularizer
        scale = problem.scale
        error = scale * float(solution.error[0])
        certified = problem.exact and math.isfinite(error)
        return replace(
            self,
            status=made.status,
            residual=None if made.residual is None else made.residual * scale,
            evaluations=int(solution.evaluations[0]),
            evaluations_choosing=choice.evaluations,
            regularizer=type(prior).__name__,
            smoothing=float(prior.log_smoothing.exp()) * scale if isinstance(prior, TotalVariation) else None,
            weight=choice.weight,
            weight_rule=choice.rule,
            weight_trials=choice.entries(),
            mu=made.solver.mu,
            strong_convexity=made.solver.strong_convexity(choice.weight),
            norm_bound=problem.operator.norm_bound,
            accuracy=None if made.accuracy is None else made.accuracy * scale,
            accuracy_rule=made.accuracy_rule,
            error=error if certified else None,
            error_relative=finite(error / max(float(image.double().norm()), 1e-300)) if certified else None,
            error_rms_per_pixel=error / math.sqrt(image.numel()) if certified else None,
            error_rounding=scale * float(solution.rounding[0]) if certified else None,
            grade=Grade(int(solution.grade[0])).word if certified else None,
        )

    def passed(self, problem: Problem, network: Network, x: Tensor, warnings: Sequence[str]) -> Result:
        """With what a network returned, x, and in what the problem is not that of its training."""
        return replace(
            self,
            status=NOT_CERTIFIED,
            residual=problem.residual(x) * problem.scale,
            evaluations=None,
            regularizer=network.name,
            warnings=[*self.warnings, *warnings],
        )


def report(outcome: Outcome[Result], about: dict[str, Any]) -> dict[str, Any]:
    """What ``report.json`` holds: ``about`` all results, and every one of them; what failed, and what is not begun."""
    done = all(result.reached for result in outcome.results) and not (outcome.failures or outcome.pending)
    results = [asdict(result) for result in outcome.results]
    return {"schema": SCHEMA, **about, "converged": done, "images": results, **outcome.entries()}


def read_report(path: Path) -> dict[str, Any]:
    """A report that ``recon reconstruct`` wrote.

    Parameters
    ----------
    path : Path
        The file, or the folder that it is in.

    Returns
    -------
    dict[str, Any]
        Its entries, see docs/reconstruction.md.

    Raises
    ------
    ValueError
        The file is no report, or one of another schema.
    OSError
        It cannot be read.
    """
    path = path / REPORT if path.is_dir() else path
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no JSON file ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list) or "certificate" not in content:
        raise ValueError(f"{path}: is no report of recon reconstruct, which has a certificate and images")
    schema = content.get("schema", 1)
    if schema != SCHEMA:
        raise ValueError(
            f"{path}: is a report of schema {schema}, but this version reads schema {SCHEMA}; run `recon reconstruct` "
            "again (docs/reconstruction.md has the names that changed)"
        )
    return content


def finite(value: float) -> float | None:
    """The number, or ``None`` (null) where JSON has none for it."""
    return value if math.isfinite(value) else None


def graded(result: Result) -> str:
    """Its status as in tables: for energies it ends with what the certified error rests on."""
    return result.status if result.grade is None else f"{result.status}, {result.grade}"


def evaluations(result: Result) -> str:
    """Their number as in tables, those of the choice of the weight in front; a dash where nothing is evaluated."""
    if result.evaluations is None:
        return "–"
    return (
        f"{result.evaluations_choosing}+{result.evaluations}"
        if result.evaluations_choosing
        else f"{result.evaluations}"
    )
