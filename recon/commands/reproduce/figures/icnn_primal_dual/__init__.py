"""Figure: energy gap of an input convex network with kinks, by subgradients, smoothing, and in primal-dual form.

``run`` denoises several pictures and writes

* ``icnn_primal_dual_targets.csv``: iterations and seconds of every method to a relative gap of ``TARGET``, picture by
  picture and as medians, over those of the subgradient method, and the reference with its certified gap;
* ``icnn_primal_dual_steps.csv``: every constant step of the subgradient method that was tried;
* ``icnn_primal_dual.csv``: every iterate for the first picture, and the picture that ``plot`` makes of this file alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from recon.commands.output.summary import write_summary
from recon.commands.output.tables import read as read_table
from recon.commands.reproduce.figures.icnn_primal_dual.methods import (
    FIXED,
    PRIMAL_DUAL,
    SCALES,
    SUBGRADIENT,
    TARGET,
    compare,
    problems,
)
from recon.commands.reproduce.figures.icnn_primal_dual.tables import read, rows, steps, targets
from recon.files import prepare_folder, write_files
from recon.plotting.figures import COLORS, save_figure

NAME = "icnn_primal_dual"
LINES = {SUBGRADIENT: "-", PRIMAL_DUAL: "-", FIXED: ":"}


def run(scale: str, output: Path) -> None:
    """Make the figure in the folder ``output``.

    Raises
    ------
    ValueError
        ``scale`` is neither quick nor paper; a reference cannot be certified.
    OSError
        the folder cannot be written to.
    """
    if scale not in SCALES:
        raise ValueError(f"scale is {scale!r}, but must be one of {', '.join(SCALES)}")
    prepare_folder(output)
    begin, sizes = time.perf_counter(), SCALES[scale]
    found = [compare(energy, picture, sizes) for picture, energy in problems(sizes)]
    write_files(
        {
            output / f"{NAME}.csv": rows(found[0]),
            output / f"{NAME}_targets.csv": targets(found),
            output / f"{NAME}_steps.csv": steps(found),
        }
    )
    plot(output)
    needed = ("iterations_to_target", "seconds_to_target", "iterations_ratio", "seconds_ratio")
    medians = {
        row["method"]: {name: float(row[name]) if row[name] else None for name in needed}
        for row in read_table(output / f"{NAME}_targets.csv")
        if row["picture"] == "median"
    }
    numbers = {"figure": "icnn-primal-dual", "scale": scale, "target": TARGET, "medians": medians}
    write_summary(output, "reproduce icnn-primal-dual", time.perf_counter() - begin, "finished", numbers)


def plot(output: Path) -> Path:
    """Draw ``icnn_primal_dual.png`` from the CSV file in ``output``; returns its path.

    Raises
    ------
    ValueError
        the file is missing, cut, or another one.
    """
    iterates = read(output / f"{NAME}.csv")
    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    styles: Iterator[str] = iter(COLORS)
    for method in dict.fromkeys(row["method"] for row in iterates):
        mine = [row for row in iterates if row["method"] == method]
        label = f"{method}, step {mine[0]['parameter']}" if method == SUBGRADIENT else method
        # a gap of zero is that of the reference itself
        gaps = [max(float(row["relative_gap"]), 1e-12) for row in mine]
        color, line = next(styles, "#000000"), LINES.get(method, "--")
        for axis, column in zip(axes, ("iteration", "seconds"), strict=True):
            axis.loglog([float(row[column]) for row in mine], gaps, line, color=color, label=label, linewidth=1.4)
    names = ("iterations (one product with every layer and its transpose)", "seconds")
    for axis, name in zip(axes, names, strict=True):
        axis.axhline(TARGET, color="0.6", linewidth=0.8, linestyle=":")
        axis.set_xlabel(name)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("relative energy gap, smallest so far")
    axes[0].set_ylim(1e-8, None)
    axes[0].legend(fontsize=7)
    path = output / f"{NAME}.png"
    save_figure(figure, path, dpi=150)
    return path
