"""The pictures of the figure, from the files that it wrote."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from recon.commands.output.tables import read
from recon.commands.reproduce.figures.tv_discretisation.learning import METHODS, saved
from recon.metrics import psnr
from recon.plotting.figures import COLORS, comparison_figure, filter_grid, save_figure
from recon.plotting.panels import Panel, busiest_square


def plot(output: Path) -> None:
    """Draw the figures from the files in ``output``.

    Raises
    ------
    ValueError
        if a file is missing.
    """
    missing = [
        name
        for name in ("results.csv", "training.csv", "sensitivity.csv", "example.npz")
        if not (output / name).is_file()
    ]
    if missing:
        raise ValueError(f"{output}: has no {', '.join(missing)}; run without --plot-only first")
    save_figure(_reconstructions(output), output / "reconstructions.png")
    save_figure(_filters(output), output / "filters.png")
    save_figure(_training(read(output / "training.csv")), output / "training.png")
    save_figure(_sensitivity(read(output / "sensitivity.csv")), output / "sensitivity.png")


def _reconstructions(output: Path) -> Figure:
    with np.load(output / "example.npz") as arrays:
        images = {name: torch.from_numpy(arrays[name]) for name in ("noisy", *METHODS, "true")}
    true = images.pop("true")
    panels = [
        Panel(METHODS.get(name, name), image, f"{float(psnr(image[None], true[None])):.2f} dB")
        for name, image in images.items()
    ]
    return comparison_figure([[*panels, Panel("true image", true)]], [busiest_square(true, true.shape[-1] // 4)])


def _filters(output: Path) -> Figure:
    figure = Figure(figsize=(7.5, 2.8), layout="constrained")
    models = {name: saved(output / name) for name in METHODS}
    largest = max(model.size for model in models.values())
    for ax, (name, title) in zip(figure.subplots(1, len(METHODS)), METHODS.items(), strict=True):
        # one size for all: the standard discretisation is a single one in a field of zeros
        margin = (largest - models[name].size) // 2
        kernels = F.pad(models[name].kernels.detach(), [margin] * 4)
        ax.imshow(filter_grid(kernels.flatten(0, 1), kernels.shape[1]), cmap="gray", vmin=0, vmax=1)
        ax.set_title(f"{title}, λ = {float(models[name].log_weight.detach().exp()):.3f}", fontsize=9)
        ax.set(xticks=[], yticks=[])
    return figure


def _training(rows: Sequence[Mapping[str, str]]) -> Figure:
    figure = Figure(figsize=(4.6, 3.0), layout="constrained")
    ax = figure.subplots()
    for color, method in zip(COLORS, ("fixed", "adaptive"), strict=False):
        own = [row for row in rows if row["method"] == method]
        cost = [float(row["evaluations"]) for row in own]
        ax.plot(cost, [-float(row["loss"]) for row in own], ".-", ms=3, color=color, label=METHODS[method])
    ax.set(xscale="log", xlabel="evaluations per image", ylabel="PSNR of the training patches in dB")
    ax.legend(frameon=False)
    return figure


def _sensitivity(rows: Sequence[Mapping[str, str]]) -> Figure:
    """Final PSNR over steps: a colour for each initial accuracy or number of iterations, a marker for each method."""
    figure = Figure(figsize=(7.0, 3.4), layout="constrained")
    ax = figure.subplots()
    colors = iter(COLORS)
    for method, style in (("adaptive", "o-"), ("fixed", "s--")):
        for value in sorted({float(row["accuracy_or_iterations"]) for row in rows if row["method"] == method}):
            own = [r for r in rows if r["method"] == method and float(r["accuracy_or_iterations"]) == value]
            points = sorted((float(r["step"]), float(r["psnr"])) for r in own)
            label = f"adaptive, ε₀ = {value:g}" if method == "adaptive" else f"non-adaptive, {value:g} iterations"
            diverged = [f"{step:g}" for step, quality in points if not math.isfinite(quality)]
            label += f" (diverged: {', '.join(diverged)})" if diverged else ""
            ax.plot(*zip(*points, strict=True), style, color=next(colors, "#000000"), mfc="none", label=label)
    counts = [float(row["evaluations"]) for row in rows]
    ax.set_title(f"{min(counts):.0f} to {max(counts):.0f} evaluations per image", fontsize=9)
    ax.set(xscale="log", xlabel="first step of MAID, step of Adam", ylabel="PSNR of held-out pictures in dB")
    figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    return figure
