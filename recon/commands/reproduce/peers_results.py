"""What ``recon reproduce peers`` measures, prints and writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from recon.commands.errors import printable
from recon.commands.output.summary import write_summary
from recon.commands.output.tables import table
from recon.files import write_files
from recon.lower_level import Grade
from recon.metrics import psnr
from recon.plotting.figures import comparison_figure, figure_bytes
from recon.plotting.panels import Panel, busiest_square

NOT_REACHED = "accuracy not reached"


@dataclass(frozen=True)
class Measured:
    """A model on a picture. certified: ||x - x^|| <= it, ``None`` if the modulus allows nothing; x: (H, W)."""

    picture: str
    psnr: float
    certified: float | None
    grade: int
    modulus: float
    evaluations: int
    seconds: float
    reached: bool
    x: Tensor

    def row(self, model: str) -> dict[str, object]:
        """Of images.csv."""
        return {
            "model": model,
            "picture": self.picture,
            "psnr": round(self.psnr, 4),
            "certified": "" if self.certified is None else float(f"{self.certified:.4g}"),
            "grade": "" if self.certified is None else Grade(self.grade).word,
            "modulus": float(f"{self.modulus:.4g}"),
            "evaluations": self.evaluations,
            "seconds": round(self.seconds, 4),
            "reached": self.reached,
        }


@dataclass(frozen=True)
class Result:
    """A model on all pictures."""

    name: str
    kind: str
    parameters: str
    measured: Sequence[Measured]

    def numbers(self) -> dict[str, object]:
        """Means, and the largest certified distance; ``None`` if there is none."""
        certified = [m.certified for m in self.measured if m.certified is not None]
        grades = [m.grade for m in self.measured]
        return {
            "kind": self.kind,
            "psnr": round(fmean(m.psnr for m in self.measured), 4),
            "certified": float(f"{max(certified):.4g}") if len(certified) == len(self.measured) else None,
            "grade": Grade(max(grades)).word if certified else None,
            "modulus": float(f"{min(m.modulus for m in self.measured):.4g}"),
            "evaluations": round(fmean(m.evaluations for m in self.measured), 1),
            "seconds": round(fmean(m.seconds for m in self.measured), 4),
            "reached": all(m.reached for m in self.measured),
            "parameters": self.parameters,
        }

    def cells(self) -> dict[str, str]:
        """Of the table as it is read."""
        found = self.numbers()
        bound = f"none, modulus {found['modulus']:.2g}"
        if found["certified"] is not None:
            bound = f"{found['certified']:.2g}, {found['grade']}"
        return {
            "model": self.name,
            "kind": self.kind,
            "PSNR": f"{found['psnr']:.2f}",
            "certified ‖x−x̂‖ ≤": bound if found["reached"] else f"{bound} ({NOT_REACHED})",
            "evals": f"{found['evaluations']:.0f}",
            "s": f"{found['seconds']:.2f}",
            "parameters": self.parameters,
        }


def title(settings: Mapping[str, object]) -> str:
    """What the table is of."""
    return (
        f"Means over {settings['pictures']} pictures, σ = {settings['sigma']:g}, noisy {settings['psnr_noisy']:.2f} "
        "dB; certified: the largest"
    )


def print_table(results: Sequence[Result], settings: Mapping[str, object]) -> None:
    """On the screen."""
    shown = Table(title=title(settings))
    cells = [result.cells() for result in results]
    for head in cells[0]:
        shown.add_column(head, justify="right" if head in ("PSNR", "evals", "s") else "left", overflow="fold")
    for row in cells:
        shown.add_row(*(escape(printable(cell)) for cell in row.values()))
    Console().print(shown)


def write(
    results: Sequence[Result],
    first: tuple[Tensor, Tensor],
    settings: Mapping[str, object],
    seconds: float,
    output: Path,
) -> None:
    """images.csv, table.csv, table.md, reconstructions.png and summary.json; ``first``: the first picture, and noisy.

    Raises
    ------
    OSError
        a file cannot be written.
    """
    cells = [{k: printable(v).replace("|", r"\|") for k, v in result.cells().items()} for result in results]
    lines = [list(cells[0]), ["---"] * len(cells[0]), *(list(row.values()) for row in cells)]
    markdown = f"{title(settings)}.\n\n" + "".join("| " + " | ".join(line) + " |\n" for line in lines)
    blank = [{k: "" if v is None else v for k, v in result.numbers().items()} for result in results]
    write_files(
        {
            output / "images.csv": table([m.row(result.name) for result in results for m in result.measured]),
            output / "table.csv": table([{"model": r.name, **b} for r, b in zip(results, blank, strict=True)]),
            output / "table.md": markdown.encode(),
            output / "reconstructions.png": _picture(results, *first),
        }
    )
    reached = all(m.reached for result in results for m in result.measured)
    numbers = dict(settings) | {"models": {result.name: result.numbers() for result in results}}
    write_summary(output, "reproduce peers", seconds, "finished" if reached else NOT_REACHED, numbers)


def _picture(results: Sequence[Result], x: Tensor, y: Tensor) -> bytes:
    """The first picture by every model, and |x - x*| below, all on one scale."""
    true = x[0, 0]
    images = [Panel("noisy", y[0, 0], f"{float(psnr(y, x)):.2f} dB")]
    images += [Panel(printable(r.name), r.measured[0].x, f"{r.measured[0].psnr:.2f} dB") for r in results]
    errors = [(panel.image - true).abs() for panel in images]
    top = max(float(torch.quantile(e.flatten()[:: max(1, e.numel() // 100_000)], 0.995)) for e in errors[1:]) or 1.0
    maps = [Panel(p.title, e / top, f"|error|, white: {top:.2g}") for p, e in zip(images, errors, strict=True)]
    images.append(Panel("true", true))
    side = min(true.shape) // 4
    zoom = busiest_square(true[None], side) if side >= 4 else None
    return figure_bytes(comparison_figure([images, maps], [zoom, zoom]))
