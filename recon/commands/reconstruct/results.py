"""What ``recon reconstruct`` writes about every image: an entry of the report, files, a row of the table."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from recon.commands.errors import printable
from recon.files import check_finite, write_files
from recon.lower_level import Grade, Solution, Status
from recon.metrics import SSIM_WINDOW, psnr, ssim
from recon.plotting import Panel, busiest_square, comparison_figure, figure_bytes


@dataclass(frozen=True)
class Result:
    """The entry of one image in the report.

    error: certified ||x - x^||, null if nothing is certified; error_rms_per_pixel: error / sqrt(number of values);
    error_rounding: the part of error that a model of rounding errors adds; grade: what error rests on, ``proved``,
    ``modelled`` or ``estimated``, see :class:`recon.lower_level.Grade`;
    status: ``converged``, ``iteration limit``, ``precision floor`` or ``not finite``; evaluations: of the gradient;
    networks have the status ``not certified``, and null for what belongs to energies;
    weight: of the regularizer, with its rule and what was tried; noise, residual: root mean squares on the scale of x,
    over the mirrored image where the regularizer needs one. psnr, ssim: of x against the reference, ``*_data``: of the
    data; null without a reference. pixel_size_mm: of NIfTI, between rows and between columns.
    """

    name: str
    data: str
    reference: str | None
    shape: list[int]
    status: str
    error: float | None
    error_rms_per_pixel: float | None
    error_rounding: float | None
    grade: str | None
    evaluations: int | None
    seconds: float
    regularizer: str
    strong_convexity: float | None
    weight: float | None
    weight_rule: str | None
    weight_trials: list[dict[str, float]]
    noise: float
    noise_rule: str
    residual: float
    evaluations_choosing: int
    psnr_data: float | None = None
    psnr: float | None = None
    ssim_data: float | None = None
    ssim: float | None = None
    pixel_size_mm: list[float] | None = None
    warnings: list[str] = field(default_factory=list)


def output_files(output: Path, name: str) -> tuple[Path, Path, Path]:
    """Picture, numbers and comparison of one image."""
    return output / f"{name}.png", output / f"{name}.npy", output / f"{name}_comparison.png"


def write_result(output: Path, result: Result, x: Tensor, y: Tensor, target: Tensor | None) -> None:
    """Write the three files of :func:`output_files`, all or none; images are ``(channel, height, width)``.

    Raises:
        OSError: the files cannot be written.
        NotFiniteError: (a ValueError) the image or its entry hold NaN or infinite values.
    """
    png, npy, comparison = output_files(output, result.name)
    pixels = x.numpy()[0] if len(x) == 1 else np.moveaxis(x.numpy(), 0, -1)  # what this program reads
    check_finite(pixels, str(npy))
    check_finite(asdict(result), str(npy))
    write_files({png: pixels, npy: pixels, comparison: _picture(result, x, y, target)})


def quality(x: Tensor, y: Tensor, target: Tensor) -> dict[str, Any]:
    """The entries of the report that compare x and the data y with the true image, ``(channel, height, width)``."""
    values: dict[str, Any] = {}
    for suffix, image in (("_data", y), ("", x)):
        values["psnr" + suffix] = finite(float(psnr(image[None], target[None])))
        large = min(target.shape[1:]) >= SSIM_WINDOW
        values["ssim" + suffix] = finite(float(ssim(image[None].double(), target[None]))) if large else None
    return values


def _picture(result: Result, x: Tensor, y: Tensor, target: Tensor | None) -> bytes:
    panels = [Panel("data", y, _decibels(result.psnr_data)), Panel("reconstruction", x, _decibels(result.psnr))]
    if target is not None:
        panels.append(Panel("reference", target))
    side = min(y.shape[1:]) // 5
    zoom = busiest_square(x if target is None else target, side) if side >= 8 else None
    return figure_bytes(comparison_figure([panels], [zoom]))


def results_table(results: list[Result]) -> Table:
    """One row for every image; PSNR of the data and of the reconstruction."""
    table = Table(title="Reconstructions, PSNR in dB")
    table.add_column("image", overflow="fold")
    for column in ("status", "weight", "‖x − x̂‖ ≤", "evals", "s", "PSNR", "SSIM"):
        table.add_column(column, justify="right")
    for r in results:
        error = "none" if r.error is None else f"{r.error:.1e}"
        gain = "" if r.psnr is None or r.psnr_data is None else f"{r.psnr_data:.2f} → {r.psnr:.2f}"
        similarity = "" if r.ssim is None else f"{r.ssim:.3f}"
        evaluations = f"{r.evaluations_choosing}+{r.evaluations}" if r.evaluations_choosing else count(r.evaluations)
        weight = "–" if r.weight is None else f"{r.weight:.2g}"
        table.add_row(
            escape(printable(r.name)),
            graded(r.status, r.grade),
            weight,
            error,
            evaluations,
            f"{r.seconds:.1f}",
            gain,
            similarity,
        )
    return table


def _decibels(value: float | None) -> str:
    """A PSNR with its unit; nothing where there is none."""
    return "" if value is None else f"{value:.2f} dB"


def count(value: int | None) -> str:
    """A number of evaluations; a dash where nothing is evaluated."""
    return "–" if value is None else str(value)


def finite(value: float) -> float | None:
    """The number, or ``None`` (null) where JSON has none for it."""
    return value if math.isfinite(value) else None


def certified(solution: Solution, scale: float, pixels: int) -> dict[str, Any]:
    """The entries of the report about the error of the first image, in units of ``scale``; null if it is infinite."""
    names = ("error", "error_rms_per_pixel", "error_rounding", "grade")
    error, rounding = (scale * float(v[0]) for v in (solution.error, solution.rounding))
    if not math.isfinite(error):
        return dict.fromkeys(names)
    return dict(
        zip(names, (error, error / math.sqrt(pixels), rounding, Grade(int(solution.grade[0])).word), strict=True)
    )


def graded(status: str, grade: str | None) -> str:
    """A status as in tables: for energies it ends with what the certified error rests on."""
    return status if grade is None else f"{status}, {grade}"


def words(status: Status) -> str:
    """A status as it is written in reports and tables."""
    return status.name.lower().replace("_", " ")


class Warned(Protocol):
    """An entry of a report with warnings."""

    @property
    def warnings(self) -> list[str]: ...


def print_warnings(results: Sequence[Warned]) -> None:
    """Every warning once, on standard error."""
    for text in dict.fromkeys(text for r in results for text in r.warnings):
        print(f"recon reconstruct: warning: {printable(text)}", file=sys.stderr)
