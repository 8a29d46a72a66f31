"""What ``recon compare`` measures and writes: values of every image, tables of means, pictures."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
from recon.plotting import COLORS, Panel, busiest_square, comparison_figure, figure_bytes

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
class Result:
    """A method on all test images: its rows, what it cost, and the reconstructions as people look at them.

    rows: of images.csv. images: ``(N, height, width)``; parts of the test set of another size are not kept.
    """

    name: str
    rows: list[dict[str, Any]]
    info: dict[str, Any]
    images: list[Tensor]

    def values(self, column: str) -> list[float | None]:
        return [row[column] for row in self.rows]

    def _grade(self) -> str:
        """The worst of all images; ESTIMATED where an older file does not say."""
        return max(Grade[str(row.get("grade") or "estimated").upper()] for row in self.rows).word

    def summary(self) -> dict[str, Any]:
        """Means over the images (None where one is unknown), the largest certified error, costs."""
        means: dict[str, Any] = {}
        for column in COLUMNS:
            known = [v for v in self.values(column) if v is not None]
            means[column] = math.fsum(known) / len(known) if len(known) == len(self.rows) else None
        errors = [v for v in self.values("error") if v is not None]
        certified = len(errors) == len(self.rows)
        return {
            "method": self.name,
            "images": len(self.rows),
            **means,
            "certified": certified,
            "largest_error": max(errors) if certified else None,
            "grade": self._grade() if certified else None,
            **self.info,
        }


def measure(name: str, method: Method, task: Task) -> Result:
    """Reconstruct and measure all test images, those of :mod:`recon.metrics` of what people look at, in float64.

    Raises
    ------
    ValueError
        what the method raises, or a reconstruction that is not finite.
    """
    samples: Any = task.module.test_dataloader().dataset
    names, show = task.module.names("test"), task.operator.display
    rows: list[dict[str, Any]] = []
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
        rows.append(
            {
                "method": name,
                "image": names[i],
                **quality(z, target),
                "residual": _known(float(difference.double().norm()) / scale if scale > 0 else math.inf),
                "seconds": seconds,
                "evaluations": found.evaluations,
                "error": _known(found.error),
                "grade": found.grade.word if math.isfinite(found.error) else None,
            }
        )
        images.append(z[0].mean(0))
    info = {k: v for k, v in asdict(method).items() if k != "reconstruct"}
    return Result(name, rows, info, images)


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
    files: dict[Path, Content] = {folder / IMAGES: table(result.rows), folder / METHOD: result.info}
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
    plain = ("method", "image", "grade")
    if any(not row.keys() >= {"method", "image", "psnr", "ssim"} for row in rows):
        raise ValueError(f"{folder / IMAGES}: lacks a column; delete the folder to compute it again")
    try:
        file = folder / IMAGES
        parsed = [{k: v if k in plain else _parsed(v) for k, v in row.items()} for row in rows]
        file = folder / METHOD
        info = json.loads(file.read_text())
        if not isinstance(info, dict) or not info.keys() >= {"description", "parameters"}:
            raise ValueError("lacks an entry")
        file = folder / ARRAYS
        arrays = load_array(file) if file.is_file() else np.zeros((0, 1, 1))
    except (ValueError, EOFError) as error:
        raise ValueError(f"{file}: was damaged ({error}); delete the folder to compute it again") from error
    return Result(name, parsed, info, list(torch.from_numpy(arrays)))


def check_shown(show: int, task: Task) -> None:
    """Raise ``ValueError`` if there is no test picture of the number ``show``."""
    samples: Any = task.module.test_dataloader().dataset
    if not 0 <= show < len(samples):
        raise ValueError(f"show is {show}, but there are {len(samples)} test images, from 0 on")


def write_tables(results: Sequence[Result], output: Path) -> None:
    """``images.csv``, ``table.csv`` and ``table.md``.

    Raises
    ------
    OSError
        the files cannot be written.
    """
    summaries = [result.summary() for result in results]
    cells = [_cells(s) for s in summaries]
    heads = list(cells[0])
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *(list(row.values()) for row in cells)]
    markdown = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    write_files(
        {
            output / IMAGES: table([row for result in results for row in result.rows]),
            output / "table.csv": table(summaries),
            output / "table.md": markdown.encode(),
        }
    )


def print_table(results: Sequence[Result]) -> None:
    """The means over the images, on the screen."""
    cells = [_cells(result.summary()) for result in results]
    shown = Table(title=f"Means over {len(results[0].rows)} test images")
    for k, head in enumerate(cells[0]):
        shown.add_column(head, justify="right" if k else "left", overflow="fold")
    for row in cells:
        shown.add_row(*(escape(printable(cell)) for cell in row.values()))
    Console().print(shown)


def _cells(summary: Mapping[str, Any]) -> dict[str, str]:
    def number(value: float | None, digits: int) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    cells = {"method": str(summary["method"])}
    cells |= {head: number(summary[key], _DIGITS[key]) for key, head in COLUMNS.items()}
    known = f"{summary['largest_error']:.2g}, {summary['grade']}" if summary["certified"] else "no"
    cells["certified ‖x−x̂‖ ≤"] = known
    cells["parameters"] = str(summary["parameters"])
    cells["training s"] = number(summary["training_seconds"], 0)
    cells["training evals"] = number(summary["training_evaluations"], 0)
    return cells


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
    samples: Any = task.module.test_dataloader().dataset
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
        value = result.rows[show]["psnr"]
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


def _parsed(text: str) -> float | None:
    return float(text) if text else None
