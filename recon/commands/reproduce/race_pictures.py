"""Pictures of a race, drawn from the files that ``recon.commands.reproduce.race`` wrote, and from these alone."""

from __future__ import annotations

import json
import math
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recon.commands.output.tables import read
from recon.plotting.figures import COLORS, comparison_figure, filter_grid, save_figure
from recon.plotting.panels import Panel, busiest_square

AGAIN = "without --plot-only its run is made again, the others are kept"
#: of the iterations, in ``runs/NAME.csv``
OF_RECORD = (
    *("iteration", "loss", "lower", "upper", "epsilon", "delta", "step", "trials", "evaluations", "gradient_norm"),
)
OF_ITERATION = ("seconds", "true_lower", "true_upper")
COLUMNS = (*OF_RECORD, *OF_ITERATION)


def slug(name: str) -> str:
    """The name of a run as that of a file."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def plot(output: Path) -> None:
    """Draw loss, accuracy, pictures, filters and intervals (.png, the last two if there are any) from the files there.

    Raises
    ------
    ValueError
        if one is missing or cut off.
    """
    results = read(output / "results.csv")
    runs = {row["run"]: iterations_of(output, row["run"], int(row["iterations"])) for row in results}
    save_figure(_losses(runs), output / "loss.png")
    save_figure(_accuracies(runs), output / "accuracy.png")
    if (output / "intervals.csv").is_file():
        save_figure(_intervals(read(output / "intervals.csv"), list(runs)), output / "intervals.png")
    panels, true, filters = [], None, {}
    for row in results:
        images = images_of(output, row["run"])
        if "filters" in images:
            filters[str(row["run"])] = images["filters"]
        if true is None:
            true = images["true"]
            panels = [Panel("", images["noisy"], f"noisy: {float(row['shown_noisy']):.2f} dB")]
        psnr, image = float(row["shown"]), images["image"]
        if not math.isfinite(psnr):  # where the run left its parameters there are no minimizers
            panels.append(Panel("", torch.zeros_like(image), f"{row['run']}: {row['status']}, no picture"))
        else:
            panels.append(Panel("", image, f"{row['run']}: {psnr:.2f} dB"))
    assert true is not None
    panels.append(Panel("", true, "true image"))
    lines = [panels[i : i + 4] for i in range(0, len(panels), 4)]
    save_figure(
        comparison_figure(lines, [busiest_square(true, true.shape[-1] // 4)] * len(lines)), output / "pictures.png"
    )
    if filters:
        save_figure(_filters(filters), output / "filters.png")


def check_settings(output: Path, figure: str, scale: str) -> None:
    """Raise ``ValueError`` if the folder has no results, or those of another figure or scale."""
    path = output / "settings.json"
    if not path.is_file() or not (output / "results.csv").is_file():
        raise ValueError(f"{output}: has no results.csv and settings.json; run without --plot-only first")
    try:
        settings = json.loads(path.read_text())
        found = settings["figure"], settings["scale"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: was cut off ({error}); choose another folder") from error
    if found != (figure, scale):
        raise ValueError(f"{output}: holds {found[0]} at {found[1]} scale, not {figure} at {scale} scale")


def images_of(output: Path, run: str) -> dict[str, torch.Tensor]:
    """The pictures of a run, and its filters.

    Raises
    ------
    ValueError
        if they are missing or cut off.
    """
    path = output / "runs" / f"{slug(run)}.npz"
    if not path.is_file():
        raise ValueError(f"{path}: is missing; {AGAIN}")
    try:
        with np.load(path) as arrays:
            found = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: was cut off; {AGAIN}") from error
    if not found.keys() >= {"true", "noisy", "image"}:
        raise ValueError(f"{path}: lacks a picture; {AGAIN}")
    return found


#: iterations of runs, as they stand in their files
Runs = Mapping[str, Sequence[Mapping[str, str]]]


def _losses(runs: Runs) -> Figure:
    """Losses and their certified intervals against evaluations and seconds."""
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for ax, (name, label) in zip(axes, {"evaluations": "evaluations per image", "seconds": "s"}.items(), strict=True):
        for i, (run, rows) in enumerate(runs.items()):
            if not rows:
                continue
            color, style = _style(i)
            cost, loss, lower, upper = ([float(r[k]) for r in rows] for k in (name, "loss", "lower", "upper"))
            ax.plot(cost, loss, style, color=color, lw=1.4, label=run)
            ax.fill_between(cost, lower, upper, color=color, alpha=0.12, lw=0)
        ax.set(xscale="log" if ax.lines else "linear", xlabel=label)
        _plain(ax)
    axes[0].set_ylabel("loss (bands: certified intervals)")
    # intervals of coarse accuracies are long: the axis shows the losses
    values = [float(r["loss"]) for rows in runs.values() for r in rows]
    finite = [v for v in values if math.isfinite(v)]
    if finite:
        low, high = min(finite), max(finite)
        axes[0].set_ylim(low - 0.05 * (high - low) - 1e-12, high + 0.05 * (high - low) + 1e-12)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def _intervals(rows: Sequence[Mapping[str, str]], order: Sequence[str]) -> Figure:
    """How far the ends of the certified intervals are from the exact loss; a red cross where one does not hold it."""
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for i, run in enumerate(order):
        mine = [{k: float(v) for k, v in row.items() if k != "run"} for row in rows if row["run"] == run]
        true = [0.5 * (r["true_lower"] + r["true_upper"]) for r in mine]
        cost, (color, style) = [r["evaluations"] for r in mine], _style(i)
        for ax, sign, end in zip(axes, (1, -1), ("upper", "lower"), strict=True):
            gap = [sign * (r[end] - t) for r, t in zip(mine, true, strict=True)]
            ax.plot(cost, [abs(g) for g in gap], style, marker=".", color=color, lw=1.2, label=run)
            missed = [(c, abs(g)) for c, g, r in zip(cost, gap, mine, strict=True) if not r["held"]]
            ax.plot(*zip(*missed, strict=True), "x", color="red", ms=9) if missed else None
    for ax, label in zip(axes, ("upper end − exact loss", "exact loss − lower end"), strict=True):
        ax.set(xscale="log", yscale="log", xlabel="evaluations per image", title=label)
        _plain(ax)
    axes[0].legend(frameon=False, fontsize=7)
    return figure


def _filters(filters: Mapping[str, torch.Tensor]) -> Figure:
    """The learned filters of every run, each filter at its own contrast."""
    columns = min(4, len(filters))
    rows = -(-len(filters) // columns)
    figure = Figure(figsize=(2.4 * columns, 2.6 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.set_axis_off()
    for ax, (run, kernels) in zip(axes, filters.items(), strict=False):
        ax.imshow(filter_grid(kernels), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        ax.set_title(run, fontsize=8)
    return figure


def _accuracies(tables: Runs) -> Figure:
    """Certified errors of the lower level and of the adjoints, and where there are few of them the parameters."""
    names = sorted({n for rows in tables.values() for r in rows[:1] for n in r if n.startswith("theta_")})
    panels = {"epsilon": "‖x − x̂‖ ≤ ε", "delta": "adjoint residual δ"} | {n: n.replace("theta_", "θ ") for n in names}
    figure = Figure(figsize=(3.4 * len(panels), 3.2), layout="constrained")
    for ax, (name, label) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for i, (run_name, rows) in enumerate(tables.items()):
            if rows:
                color, style = _style(i)
                values = [float(r[name]) if math.isfinite(float(r[name])) else math.nan for r in rows]
                ax.plot([int(r["iteration"]) for r in rows], values, style, color=color, lw=1.2, label=run_name)
        drawn = any(np.isfinite(np.asarray(line.get_ydata(), dtype=float)).any() for line in ax.lines)
        scales = {"xscale": "log", "yscale": "linear" if name in names else "log"} if drawn else {}
        ax.set(**scales, xlabel="iteration", ylabel=label)
        _plain(ax)
    figure.axes[0].legend(frameon=False, fontsize=7)
    return figure


def _plain(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, color="0.92", lw=0.6)


def _style(i: int) -> tuple[str, str]:
    return COLORS[i % len(COLORS)], ("-", "--", ":")[i // len(COLORS) % 3]


def iterations_of(output: Path, run: str, count: int) -> list[dict[str, str]]:
    """The iterations of a run; none for the initial parameters, or if it diverged before the first one ended.

    Raises
    ------
    ValueError
        if they are missing or cut off.
    """
    path = output / "runs" / f"{slug(run)}.csv"
    if count == 0:
        return []
    if not path.is_file():
        raise ValueError(f"{path}: is missing; {AGAIN}")
    rows = read(path)
    whole = all(line.keys() >= set(COLUMNS) and "" not in line.values() for line in rows)
    if not whole or len(rows) != count:
        raise ValueError(f"{path}: was cut off; {AGAIN}")
    return rows
