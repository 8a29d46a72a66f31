"""What ``recon reconstruct`` writes about CT and MRI data: numbers, pictures, DICOM, an entry of the report."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from datasets.physics import attenuation_to_hu
from datasets.readers.dicom.output import write_dicom
from models import TotalVariation
from recon.commands.errors import printable
from recon.commands.reconstruct.measured_picture import measured_figure
from recon.commands.reconstruct.networks import Network
from recon.commands.reconstruct.results import certified, count, finite, graded
from recon.files import check_finite, write_files
from recon.metrics import SSIM_WINDOW, psnr, ssim
from recon.operators import channels_to_complex
from recon.plotting import Panel, figure_bytes
from recon.reconstruction import Problem, Regularized
from recon.reconstruction.methods import NOT_CERTIFIED as STATUS

PSNR_CONVENTION = "PSNR and SSIM with data range = maximum of the reference, over all its pixels, values not clipped"
_TITLES = {"fbp": "FBP", "zero_filled": "zero-filled RSS", "tv": "TV", "model": "learned"}


@dataclass(frozen=True)
class MeasuredResult:
    """The entry of one slice in the report; lengths, values and errors in ``unit``, null where there is nothing.

    simulated: how the data were simulated, null for measured ones. weight, mu, strong_convexity, norm_bound: of the
    energy in x = image / ``scale``. residual, noise: root mean square over the data, on the scale of the file; weighted
    by the photons of the rays if these are known. plain: of a saddle-point model, without strong convexity; accuracy is
    that of residuals then. error: certified, of the whole image; error_relative: over its norm;
    error_rounding, grade: as for :class:`recon.commands.reconstruct.results.Result`.
    """

    name: str
    data: str
    method: str
    shape: list[int]
    unit: str
    status: str
    seconds: float
    simulated: str | None = None
    residual: float | None = None
    noise: float | None = None
    noise_rule: str | None = None
    model: str | None = None
    regularizer: str | None = None
    smoothing: float | None = None
    nonnegative: bool = False
    plain: bool = False
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
    evaluations: int | None = 0
    evaluations_choosing: int = 0
    psnr: float | None = None
    ssim: float | None = None
    baseline_psnr: float | None = None
    baseline_ssim: float | None = None
    psnr_convention: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @staticmethod
    def of_baseline(problem: Problem, method: str, seconds: float) -> MeasuredResult:
        """The entry of a plain reconstruction, which has no energy."""
        return MeasuredResult(
            name=problem.name,
            data=str(problem.data),
            method=method,
            shape=list(problem.baseline.shape),
            unit=problem.unit,
            status="direct",
            seconds=round(seconds, 2),
            simulated=problem.simulated,
            residual=problem.residual(problem.start) * problem.scale if method == "fbp" else None,
            noise=problem.noise * problem.scale,
            noise_rule=problem.noise_rule,
            details=dict(problem.details),
            warnings=list(problem.warnings),
            **quality(problem.baseline, problem.reference),
        )

    @staticmethod
    def of_reconstruction(
        problem: Problem, made: Regularized, image: Tensor, model: str | None, seconds: float
    ) -> MeasuredResult:
        """The entry of a regularized reconstruction, ``image`` in the unit of the result."""
        solution, choice, prior = made.solution, made.choice, made.solver.regularizer
        error = float(solution.error[0]) * problem.scale if problem.exact else math.inf
        known = certified(solution, problem.scale, image.numel()) if math.isfinite(error) else {}
        smoothing = float(prior.log_smoothing.exp()) if isinstance(prior, TotalVariation) else None
        return MeasuredResult(
            name=problem.name,
            data=str(problem.data),
            method="tv" if model is None else "model",
            model=model,
            regularizer=type(prior).__name__,
            smoothing=None if smoothing is None else smoothing * problem.scale,
            shape=list(image.shape),
            unit=problem.unit,
            status=made.status,
            simulated=problem.simulated,
            nonnegative=made.solver.nonnegative,
            plain=made.solver.plain,
            weight=choice.weight,
            weight_rule=choice.rule,
            weight_trials=choice.entries(),
            noise=problem.noise * problem.scale,
            noise_rule=problem.noise_rule,
            residual=problem.residual(solution.x) * problem.scale,
            mu=made.solver.mu,
            strong_convexity=made.solver.strong_convexity(choice.weight),
            norm_bound=problem.operator.norm_bound,
            accuracy=None if made.accuracy is None else made.accuracy * problem.scale,
            accuracy_rule=made.accuracy_rule,
            error_relative=finite(error / max(float(image.norm()), 1e-300)),
            **known,
            evaluations=int(solution.evaluations[0]),
            evaluations_choosing=choice.evaluations,
            seconds=round(seconds, 2),
            details=dict(problem.details),
            warnings=list(problem.warnings),
            **quality(problem.baseline, problem.reference, "baseline_"),
            **quality(image, problem.reference),
        )

    @staticmethod
    def of_network(
        problem: Problem, network: Network, x: Tensor, image: Tensor, warnings: list[str], seconds: float
    ) -> MeasuredResult:
        """The entry of what a network returned, x, and ``image``, the same in the unit of the result."""
        return MeasuredResult(
            name=problem.name,
            data=str(problem.data),
            method="model",
            model=network.file,
            regularizer=network.name,
            shape=list(image.shape),
            unit=problem.unit,
            status=STATUS,
            simulated=problem.simulated,
            noise=problem.noise * problem.scale,
            noise_rule=problem.noise_rule,
            residual=problem.residual(x) * problem.scale,
            evaluations=None,
            seconds=round(seconds, 2),
            details=dict(problem.details),
            warnings=[*problem.warnings, *warnings],
            **quality(problem.baseline, problem.reference, "baseline_"),
            **quality(image, problem.reference),
        )

    def entries(self) -> dict[str, Any]:
        """As a dictionary for JSON."""
        return asdict(self)


def quality(image: Tensor, reference: Tensor | None, prefix: str = "") -> dict[str, Any]:
    """PSNR and SSIM of an image (H, W) against the reference, whose middle it is compared with if that is smaller.

    Raises:
        ValueError: the reference is larger than the image, or nowhere positive.
    """
    if reference is None:
        return {}
    if any(r > n for r, n in zip(reference.shape, image.shape, strict=True)):
        raise ValueError(
            f"the reference has {reference.shape[0]}x{reference.shape[1]} pixels, but the reconstruction "
            f"{image.shape[0]}x{image.shape[1]}; set --size, or give another reference"
        )
    if not float(reference.max()) > 0:
        raise ValueError("no value of the reference is positive, so there is no data range for a PSNR")
    top, left = ((n - r) // 2 for n, r in zip(image.shape, reference.shape, strict=True))
    part = image[top : top + reference.shape[0], left : left + reference.shape[1]]
    pair, data_range = (part[None, None], reference[None, None]), float(reference.max())
    large = min(reference.shape) >= SSIM_WINDOW
    return {
        f"{prefix}psnr": finite(float(psnr(*pair, data_range))),
        f"{prefix}ssim": finite(float(ssim(*pair, data_range))) if large else None,
        **({} if prefix else {"psnr_convention": PSNR_CONVENTION}),
    }


def output_files(output: Path, name: str) -> tuple[Path, Path, Path, Path]:
    """Numbers, the same as TIFF, the picture beside the plain method, and the slice where the input was DICOM."""
    return output / f"{name}.npy", output / f"{name}.tif", output / f"{name}_comparison.png", output / f"{name}.dcm"


def write_measured(output: Path, problem: Problem, result: MeasuredResult, image: Tensor, x: Tensor | None) -> None:
    """Write the files of :func:`output_files`; all but DICOM, which follows alone, or none.

    NumPy files hold all digits, complex ones for MRI; TIFF the (H, W) image as float32; DICOM Hounsfield units, or
    magnitudes for MRI.

    Raises:
        OSError: the files cannot be written.
        NotFiniteError: (a ValueError) the image or the entry of the report hold NaN or infinite values.
    """
    values = image.numpy()
    if x is not None and problem.task == "mri":
        values = problem.scale * channels_to_complex(x[0].detach().cpu().double()).numpy()
    npy, tif, png, dcm = output_files(output, result.name)
    check_finite(result.entries(), str(npy))
    check_finite(values, str(npy))
    write_files({npy: values, tif: image.numpy(), png: _picture(problem, result, image)})
    if problem.dicom is not None:
        stored = image if problem.task == "mri" else attenuation_to_hu(image).clamp(-(2.0**15), 2.0**15 - 1)
        description = f"recon {_TITLES[result.method]} of simulated data"
        write_dicom(dcm, stored, problem.dicom.source, description, problem.dicom.pixel_size)


def _picture(problem: Problem, result: MeasuredResult, image: Tensor) -> bytes:
    title = _TITLES[result.method] + (", x ≥ 0" if result.nonnegative else "")
    panels = [Panel(title, image, _note(result.psnr, result.ssim))]
    if result.method != problem.method:
        note = _note(result.baseline_psnr, result.baseline_ssim)
        panels.insert(0, Panel(_TITLES[problem.method], problem.baseline, note))
    if problem.reference is not None:
        panels.append(Panel("reference", problem.reference))
    shown = image if problem.reference is None else problem.reference
    top = float(torch.quantile(shown.flatten()[:: max(1, shown.numel() // 10**6)], 0.998))
    return figure_bytes(measured_figure(panels, (0.0, top if top > 0 else 1.0), problem.unit))


def _note(decibels: float | None, similarity: float | None) -> str:
    if decibels is None:
        return ""
    return f"{decibels:.2f} dB" + ("" if similarity is None else f", SSIM {similarity:.3f}")


def measured_table(results: list[MeasuredResult]) -> Table:
    """Every slice: how well its data are fitted, what is certified, what it took; and the plain method where known."""
    # without lines between the columns everything fits into 80 characters
    table = Table(title="Residual relative to the noise, certified error relative to the image", box=None)
    table.add_column("data", overflow="fold", min_width=8)
    for column in ("method", "weight", "resid.", "error ≤", "evals", "s", "PSNR", "status"):
        table.add_column(column, justify="right", no_wrap=column != "status")
    for r in results:
        ratio = None if r.residual is None or not r.noise else r.residual / r.noise
        error = "–" if r.error_relative is None else f"{100 * r.error_relative:.2g} %"
        evaluations = f"{r.evaluations_choosing}+{r.evaluations}" if r.evaluations_choosing else count(r.evaluations)
        if r.baseline_psnr is not None:
            plain = "fbp" if "geometry" in r.details else "zero_filled"
            table.add_row(escape(printable(r.name)), plain, "–", "–", "–", "0", "–", f"{r.baseline_psnr:.2f}", "direct")
        decibels = "–" if r.psnr is None else f"{r.psnr:.2f}"
        status = graded(r.status, r.grade)
        cells = (r.method, _short(r.weight), _short(ratio), error, evaluations, f"{r.seconds:.1f}", decibels, status)
        table.add_row(escape(printable(r.name)), *cells)
    return table


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"
