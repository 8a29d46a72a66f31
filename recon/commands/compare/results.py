"""What ``recon compare`` measures and writes: values of every image, tables of means, pictures."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from torch import Tensor

from datasets.readers.limits import load_array
from recon.commands.compare.methods import Method, Task
from recon.commands.errors import printable
from recon.commands.output.tables import read, table
from recon.files import Content, write_files
from recon.lower_level import Grade
from recon.metrics import SSIM_WINDOW, psnr, ssim
from recon.plotting.figures import COLORS, comparison_figure, figure_bytes
from recon.plotting.panels import Panel, busiest_square

IMAGES, METHOD, ARRAYS = "images.csv", "method.json", "reconstructions.npy"
#: keys and headings of the means over the images
COLUMNS = {
    "psnr": "PSNR",
    "psnr_image_range": "PSNR, range of image",
    "ssim": "SSIM",
    "residual": "‖Ax−y‖/‖y‖",
    "seconds": "s",
    "evaluations": "evals",
}
_DIGITS = {"psnr": 2, "psnr_image_range": 2, "ssim": 4, "residual": 4, "seconds": 2, "evaluations": 0}


@dataclass(frozen=True)
class Measured:
    """A test image: what was measured of its reconstruction, None where it is unknown, and the grade of ``error``."""

    name: str
    values: Mapping[str, float | None]
    grade: str | None

    def row(self, method: str) -> dict[str, object]:
        """Of images.csv."""
        return {"method": method, "image": self.name, **self.values, "grade": self.grade}


class Info(TypedDict):
    """What is said of a method beside its images, see :class:`recon.commands.compare.methods.Method`."""

    description: str
    parameters: int
    training_seconds: float | None
    training_evaluations: float | None


@dataclass(frozen=True)
class Result:
    """A method on all test images: what was measured, what it cost, and the reconstructions as people look at them.

    images: ``(N, height, width)``; parts of the test set of another size are not kept.
    """

    name: str
    measured: list[Measured]
    info: Info
    images: list[Tensor]

    def values(self, column: str) -> list[float | None]:
        """Of all images."""
        return [image.values.get(column) for image in self.measured]

    def mean(self, column: str) -> float | None:
        """Over the images; None where one is unknown."""
        known = [v for v in self.values(column) if v is not None]
        return math.fsum(known) / len(known) if len(known) == len(self.measured) else None

    def certificate(self) -> tuple[float, str] | None:
        """The largest certified error, and the worst grade: ESTIMATED where an older file does not say."""
        errors = [v for v in self.values("error") if v is not None]
        if len(errors) < len(self.measured):
            return None
        return max(errors), max(Grade[(image.grade or "estimated").upper()] for image in self.measured).word

    def summary(self) -> dict[str, object]:
        """Means over the images (None where one is unknown), the largest certified error, costs."""
        certificate = self.certificate()
        error, grade = certificate or (None, None)
        return {
            "method": self.name,
            "images": len(self.measured),
            **{column: self.mean(column) for column in COLUMNS},
            "certified": certificate is not None,
            "largest_error": error,
            "grade": grade,
            **self.info,
        }


def measure(name: str, method: Method, task: Task) -> Result:
    """Reconstruct and measure all test images, those of :mod:`recon.metrics` of what people look at, in float64.

    Raises
    ------
    ValueError
        what the method raises, or a reconstruction that is not finite.
    """
    samples, names, show = task.tested(), task.module.names("test"), task.operator.display
    measured: list[Measured] = []
    images: list[Tensor] = []
    for i in track(range(len(samples)), description=name, transient=True):
        x, y = samples[i].x[None], samples[i].y[None]
        weights = task.weights(y)
        begin = time.perf_counter()
        found = method.reconstruct(y, weights)
        seconds = time.perf_counter() - begin
        if not bool(torch.isfinite(found.x).all()):
            raise ValueError(f"{name}: the reconstruction of {names[i]} holds values that are NaN or infinite")
        z, target = show(found.x).double(), show(x).double()
        with torch.no_grad():
            difference = task.operator(found.x.to(y.dtype)) - y
        scale = float(y.double().norm())
        values = quality(z, target) | {
            "residual": _known(float(difference.double().norm()) / scale if scale > 0 else math.inf),
            "seconds": seconds,
            "evaluations": found.evaluations,
            "error": _known(found.error),
        }
        measured.append(Measured(names[i], values, found.grade.word if math.isfinite(found.error) else None))
        images.append(z[0].mean(0))
    info: Info = {
        "description": method.description,
        "parameters": method.parameters,
        "training_seconds": method.training_seconds,
        "training_evaluations": method.training_evaluations,
    }
    return Result(name, measured, info, images)


def quality(z: Tensor, target: Tensor) -> dict[str, float | None]:
    """PSNR with range 1 and with the range of the true image, SSIM (range 1); None where one is not defined."""
    extent = float(target.max() - target.min())
    large = min(target.shape[2:]) >= SSIM_WINDOW
    return {
        "psnr": _known(float(psnr(z, target))),
        "psnr_image_range": _known(float(psnr(z, target, extent))) if extent > 0 else None,
        "ssim": float(ssim(z, target)) if large else None,
    }


def save(result: Result, folder: Path) -> None:
    """Write a finished method; ``method.json`` is there if all of it is.

    Raises
    ------
    OSError
        the files cannot be written.
    """
    files: dict[Path, Content] = {folder / IMAGES: _table([result]), folder / METHOD: {**result.info}}
    if len({image.shape for image in result.images}) == 1:
        files[folder / ARRAYS] = torch.stack(result.images).float().numpy()
    write_files(files)


def saved(name: str, folder: Path, images: Sequence[str]) -> Result | None:
    """What :func:`save` wrote, None if that does not exist.

    Raises
    ------
    ValueError
        a file was cut off, or belongs to other images.
    """
    if not all((folder / file).is_file() for file in (IMAGES, METHOD)):
        return None
    rows = read(folder / IMAGES)
    if [row["image"] for row in rows] != list(images):
        raise ValueError(f"{folder / IMAGES}: holds other images than the test data; delete the folder")
    if any(not row.keys() >= {"method", "image", "psnr", "ssim"} for row in rows):
        raise ValueError(f"{folder / IMAGES}: lacks a column; delete the folder to compute it again")
    try:
        file = folder / IMAGES
        measured = [_parsed(row) for row in rows]
        file = folder / METHOD
        info: Info = json.loads(file.read_text())
        if not isinstance(info, dict) or not info.keys() >= {"description", "parameters"}:
            raise ValueError("lacks an entry")
        file = folder / ARRAYS
        arrays = load_array(file) if file.is_file() else np.zeros((0, 1, 1))
    except (ValueError, EOFError) as error:
        raise ValueError(f"{file}: was damaged ({error}); delete the folder to compute it again") from error
    return Result(name, measured, info, list(torch.from_numpy(arrays)))


def check_shown(show: int, task: Task) -> None:
    """Raise ``ValueError`` if there is no test picture of the number ``show``."""
    samples = task.tested()
    if not 0 <= show < len(samples):
        raise ValueError(f"show is {show}, but there are {len(samples)} test images, from 0 on")


def write_tables(results: Sequence[Result], output: Path) -> None:
    """``images.csv``, ``table.csv`` and ``table.md``.

    Raises
    ------
    OSError
        the files cannot be written.
    """
    cells = [_cells(result) for result in results]
    heads = list(cells[0])
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *(list(row.values()) for row in cells)]
    markdown = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    write_files(
        {
            output / IMAGES: _table(results),
            output / "table.csv": table([result.summary() for result in results]),
            output / "table.md": markdown.encode(),
        }
    )


def print_table(results: Sequence[Result]) -> None:
    """The means over the images, on the screen."""
    cells = [_cells(result) for result in results]
    shown = Table(title=f"Means over {len(results[0].measured)} test images")
    for k, head in enumerate(cells[0]):
        shown.add_column(head, justify="right" if k else "left", overflow="fold")
    for row in cells:
        shown.add_row(*(escape(printable(cell)) for cell in row.values()))
    Console().print(shown)


def _table(results: Sequence[Result]) -> bytes:
    """images.csv: a row for each image of each method."""
    return table([image.row(result.name) for result in results for image in result.measured])


def _cells(result: Result) -> dict[str, str]:
    def number(value: float | None, digits: int) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    known = result.certificate()
    return {
        "method": result.name,
        **{head: number(result.mean(key), _DIGITS[key]) for key, head in COLUMNS.items()},
        "certified ‖x−x̂‖ ≤": "no" if known is None else f"{known[0]:.2g}, {known[1]}",
        "parameters": str(result.info["parameters"]),
        "training s": number(result.info["training_seconds"], 0),
        "training evals": number(result.info["training_evaluations"], 0),
    }


def write_pictures(results: Sequence[Result], task: Task, output: Path, show: int = 0) -> None:
    """``comparison.png``: test image ``show`` with a zoom and error maps; ``psnr.png``: box plots over the images.

    Raises
    ------
    ValueError
        there is no such image.
    OSError
        the files cannot be written.
    """
    check_shown(show, task)
    samples = task.tested()
    files = {output / "psnr.png": figure_bytes(_boxes(results))}
    kept = [result for result in results if len(result.images) == len(samples)]
    if kept:
        true = task.operator.display(samples[show].x[None]).double()[0].mean(0)
        files[output / "comparison.png"] = figure_bytes(_comparison(kept, true, show))
    write_files(files)


def _comparison(results: Sequence[Result], true: Tensor, show: int) -> Figure:
    """Images on the scale of the true one in the first row; |x - x*| below, all on one scale."""
    low, high = float(true.min()), float(true.max())
    width = high - low if high > low else 1.0
    errors = [(result.images[show].double() - true).abs() for result in results]
    # a few large errors at edges should not hide the others
    top = max(float(torch.quantile(e.flatten(), 0.995)) for e in errors) or 1.0
    images, maps = [], []
    for result, error in zip(results, errors, strict=True):
        value = result.measured[show].values["psnr"]
        note = "" if value is None else f"{value:.2f} dB"
        images.append(Panel(result.name, (result.images[show].double() - low) / width, note))
        maps.append(Panel(result.name, error / top, f"|error|, white: {top:.2g}"))
    images.append(Panel("true image", (true - low) / width))
    side = min(true.shape) // 4
    zoom = busiest_square(true[None], side) if side >= 4 else None
    return comparison_figure([images, maps], [zoom, zoom])


def _boxes(results: Sequence[Result]) -> Figure:
    figure = Figure(figsize=(1.6 + 0.75 * len(results), 3.2), layout="constrained")
    ax = figure.subplots()
    for k, result in enumerate(results):
        values = [v for v in result.values("psnr") if v is not None]
        color = COLORS[k % len(COLORS)]
        ax.boxplot(values, positions=[k], widths=0.6, showfliers=False, medianprops={"color": color})
        # the images themselves, beside one another
        offsets = np.linspace(-0.15, 0.15, len(values)) if len(values) > 1 else np.zeros(len(values))
        ax.plot(k + offsets, values, ".", ms=4, color=color, alpha=0.7)
    ax.set_xticks(range(len(results)), [result.name for result in results], rotation=30, ha="right")
    ax.set(ylabel="PSNR of the test images in dB", xlim=(-0.6, len(results) - 0.4))
    ax.grid(axis="y", alpha=0.3)
    return figure


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _parsed(row: Mapping[str, str]) -> Measured:
    """A row of images.csv."""
    values = {k: float(v) if v else None for k, v in row.items() if k not in ("method", "image", "grade")}
    return Measured(row["image"], values, row.get("grade") or None)
