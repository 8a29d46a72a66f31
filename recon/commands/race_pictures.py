"""Pictures of a race, drawn from the files that ``recon.commands.race`` wrote, and from these alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from recon.commands.tables import read
from recon.metrics import psnr
from recon.plotting import COLORS, Panel, busiest_square, comparison_figure, save_figure

#: ends of runs: the parameters lost themselves; there was no method, only the initial parameters
DIVERGED, START = "diverged", "start"
#: of the iterations, in ``runs/NAME.csv``
COLUMNS = ("iteration", "loss", "lower", "upper", "epsilon", "delta", "step", "trials", "evaluations", "gradient_norm")


def slug(name: str) -> str:
    """The name of a run as that of a file."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def plot(output: Path) -> None:
    """Draw loss.png, accuracy.png and pictures.png from the files in ``output``.

    Raises ``ValueError`` if one is missing or cut off.
    """
    if not (output / "results.csv").is_file():
        raise ValueError(f"{output}: has no results.csv; run without --plot-only first")
    results = read(output / "results.csv")
    save_figure(_losses(results, output), output / "loss.png")
    save_figure(_accuracies(results, output), output / "accuracy.png")
    panels, true = [], None
    for row in results:
        with _load(output / "runs" / f"{slug(row['run'])}.npz") as arrays:
            images = {name: torch.from_numpy(arrays[name]) for name in ("true", "noisy", "image")}
        if true is None:
            true = images["true"]
            quality = float(psnr(images["noisy"][None], true[None]))
            panels = [Panel("", images["noisy"], f"noisy: {quality:.2f} dB")]
        quality = float(psnr(images["image"][None], true[None]))
        panels.append(Panel("", images["image"], f"{row['run']}: {quality:.2f} dB"))
    assert true is not None
    panels.append(Panel("", true, "true image"))
    lines = [panels[i : i + 4] for i in range(0, len(panels), 4)]
    save_figure(
        comparison_figure(lines, [busiest_square(true, true.shape[-1] // 4)] * len(lines)), output / "pictures.png"
    )


def _load(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"{path}: is missing; delete results.csv to compute the runs again")
    try:
        return np.load(path)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}: was cut off; delete it and results.csv to compute the runs again") from error


def _losses(results: Sequence[Mapping[str, Any]], output: Path) -> Figure:
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    ax = figure.subplots()
    for i, row in enumerate(results):
        records = _records(output, row)
        cost, loss = ([float(r[key]) for r in records] for key in ("evaluations", "loss"))
        if not records:
            continue
        color, style = _style(i)
        ax.plot(cost, loss, style, color=color, lw=1.4, label=row["run"])
        lower, upper = ([float(r[key]) for r in records] for key in ("lower", "upper"))
        ax.fill_between(cost, lower, upper, color=color, alpha=0.12, lw=0)
    ax.set(
        xscale="log" if ax.lines else "linear",
        xlabel="evaluations per image",
        ylabel="loss, and its certified interval",
    )
    # intervals of coarse accuracies are long: the axis shows the losses
    values = [float(r["loss"]) for row in results for r in _records(output, row)]
    finite = [v for v in values if math.isfinite(v)]
    if finite:
        low, high = min(finite), max(finite)
        ax.set_ylim(low - 0.05 * (high - low) - 1e-12, high + 0.05 * (high - low) + 1e-12)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, color="0.92", lw=0.6)
    ax.legend(frameon=False, fontsize=8)
    return figure


def _accuracies(results: Sequence[Mapping[str, Any]], output: Path) -> Figure:
    """Certified errors of the lower level and of the adjoints, and where there are few of them the parameters."""
    tables = {row["run"]: _records(output, row) for row in results}
    names = sorted({n for records in tables.values() for r in records[:1] for n in r if n.startswith("theta_")})
    panels = {"epsilon": "‖x − x̂‖ ≤ ε", "delta": "adjoint residual δ"} | {n: n.replace("theta_", "θ ") for n in names}
    figure = Figure(figsize=(3.4 * len(panels), 3.2), layout="constrained")
    for ax, (name, label) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for i, (run_name, records) in enumerate(tables.items()):
            if records:
                color, style = _style(i)
                values = [float(r[name]) if math.isfinite(float(r[name])) else math.nan for r in records]
                ax.plot([int(r["iteration"]) for r in records], values, style, color=color, lw=1.2, label=run_name)
        drawn = any(np.isfinite(np.asarray(line.get_ydata(), dtype=float)).any() for line in ax.lines)
        scales = {"xscale": "log", "yscale": "linear" if name in names else "log"} if drawn else {}
        ax.set(**scales, xlabel="iteration", ylabel=label)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, color="0.92", lw=0.6)
    figure.axes[0].legend(frameon=False, fontsize=7)
    return figure


def _style(i: int) -> tuple[str, str]:
    return COLORS[i % len(COLORS)], ("-", "--", ":")[i // len(COLORS) % 3]


def _records(output: Path, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The iterations of a run; none for the initial parameters, or if it diverged before the first one ended."""
    path = output / "runs" / f"{slug(row['run'])}.csv"
    if not path.is_file() and row["status"] in (DIVERGED, START):
        return []
    if not path.is_file():
        raise ValueError(f"{path}: is missing; delete results.csv to compute the runs again")
    records = read(path)
    if any(not record.keys() >= set(COLUMNS) or "" in record.values() for record in records):
        raise ValueError(f"{path}: was cut off; delete it and results.csv to compute the runs again")
    return records
