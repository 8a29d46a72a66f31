"""Smoothed total variation with two learned parameters: MAID from many starting accuracies, and a grid search.

Noise level 0.1, theta_0 = (-5, -5), float64. MAID must end at one theta wherever its accuracies start.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import (
    arguments,
    as_row,
    denoising_data,
    print_table,
    reached,
    start,
    write_csv,
)
from models import TotalVariation
from recon.bilevel import MAID, BilevelObjective, PublishedMAID, Record, Training
from recon.lower_level import FISTA, LBFGS, Energy, Regularizer
from recon.metrics import psnr

METHODS = ("accelerated", "published")
ACCURACIES = (100.0, 1.0, 1e-2, 1e-5)


@dataclass(frozen=True)
class Run:
    """One training: labels, where it ended, and its history."""

    method: str
    accuracy: float
    regularizer: Regularizer
    records: list[Record]
    seconds: float


def train(method: str, accuracy: float, clean: Tensor, noisy: Tensor, budget: float, tolerance: float) -> Run:
    reg = TotalVariation(-5.0, -5.0).to(clean.dtype)
    objective = BilevelObjective(reg, clean, noisy, solver=FISTA() if method == "published" else LBFGS())
    kind = PublishedMAID if method == "published" else MAID
    optimizer = kind(objective.params, solution_accuracy=accuracy, adjoint_accuracy=accuracy, tolerance=tolerance)
    training = Training(objective, optimizer)
    training.descend(budget)
    return Run(method, accuracy, reg, training.records, training.seconds)


def mean_psnr(
    reg: Regularizer, clean: Tensor, noisy: Tensor, x0: Tensor, accuracy: float = 1e-3
) -> tuple[float, Tensor]:
    """Mean PSNR of the denoised images, and the images as a warm start for the next."""
    x = LBFGS()(Energy(noisy, reg), x0, accuracy).x
    return float(psnr(x, clean).mean()), x


def grid_search(clean: Tensor, noisy: Tensor, smallest: float) -> list[dict[str, Any]]:
    """Mean PSNR on a coarse grid of theta, then on ever finer grids around the best point; the last row is the best.

    A grid is extended until its best point is none of its border, since the PSNR has a long narrow ridge.
    """
    rows: dict[tuple[float, ...], dict[str, Any]] = {}
    x = noisy

    def visit(points: Iterable[tuple[float, ...]], step: float) -> tuple[float, ...]:
        nonlocal x
        for theta in points:
            if theta not in rows:
                quality, x = mean_psnr(TotalVariation(theta[0], theta[1]).to(clean.dtype), clean, noisy, x, 1e-2)
                loss = 0.5 * float((x - clean).square().sum()) / len(x)
                rows[theta] = {"step": step, "theta_1": theta[0], "theta_2": theta[1], "PSNR": quality, "loss": loss}
        return max(rows, key=lambda theta: rows[theta]["PSNR"])

    step = 1.0
    best = visit(itertools.product((-4.0, -3.0, -2.0, -1.0), (-6.0, -5.0, -4.0, -3.0, -2.0)), step)
    while step > smallest:
        step /= 2
        centre: tuple[float, ...] = ()
        while best != centre:
            centre = best
            best = visit(itertools.product(*((c - step, c, c + step) for c in centre)), step)
    return [*rows.values(), rows[best]]


def summary(run: Run, best: float, goal: float, clean: Tensor, noisy: Tensor) -> dict[str, Any]:
    """One line of the table; ``best`` is the least certified loss of all runs."""
    weight, smoothing = (p.item() for p in run.regularizer.parameters())
    last = run.records[-1]
    return {
        "method": run.method,
        "eps0 = delta0": run.accuracy,
        "theta_1": round(weight, 5),
        "theta_2": round(smoothing, 5),
        "PSNR": round(mean_psnr(run.regularizer, clean, noisy, noisy)[0], 3),
        "loss": last.loss,
        "upper - lower": last.upper - last.lower,
        "||z||": last.gradient_norm,
        "to 1 %": reached(run.records, lambda r: r.upper <= 1.01 * best),
        f"to ||z|| < {goal:g}": reached(run.records, lambda r: r.gradient_norm < goal),
        "evaluations": last.evaluations,
        "iterations": last.iteration,
        "seconds": run.seconds,
        "end": last.progress.value,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=25)
    parser.add_argument("--size", type=int, default=None, help="resize the images (default: as they are)")
    parser.add_argument("--budget", type=float, default=30_000, help="evaluations after which a method is stopped")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    args = parser.parse_args()
    start(args)
    accuracies: tuple[float, ...] = ACCURACIES
    budget, smallest, tolerance = args.budget, 0.1, 1e-4
    if args.quick:
        args.images, args.size, accuracies, budget, smallest = 2, 32, (100.0, 1e-2), 400.0, 0.25
    clean, noisy = denoising_data(args.data, torch.float64, args.images, args.size)
    runs = []
    for accuracy in accuracies:
        for method in args.methods:
            runs.append(train(method, accuracy, clean, noisy, budget, tolerance))
            run = runs[-1]
            print(f"{method}, {accuracy:g}: {run.records[-1].evaluations:.0f} evaluations", flush=True)
    begin = time.perf_counter()
    *grid, best = grid_search(clean, noisy, smallest)
    seconds = time.perf_counter() - begin
    least = min(run.records[-1].upper for run in runs)
    rows = [summary(run, least, tolerance, clean, noisy) for run in runs]
    size = "x".join(str(n) for n in clean.shape[2:])
    print_table(f"TV denoising, {len(clean)} images {size}: evaluations per image, trials included", rows)
    print(f"\nnoisy {float(psnr(noisy, clean).mean()):.2f} dB")
    for method in args.methods:
        thetas = torch.tensor([[row["theta_1"], row["theta_2"]] for row in rows if row["method"] == method])
        spread = thetas.amax(0) - thetas.amin(0)
        print(f"{method}: theta differs by {spread[0]:.1e}, {spread[1]:.1e} between the starting accuracies")
    where = f"theta = ({best['theta_1']:.3f}, {best['theta_2']:.3f})"
    print(f"grid search: {best['PSNR']:.3f} dB at {where}; {len(grid)} points, {seconds:.1f} s")
    write_csv(args.output / "tv_denoising.csv", rows)
    write_csv(args.output / "tv_denoising_grid.csv", grid)
    histories = [as_row(r, method=run.method, start=run.accuracy) for run in runs for r in run.records]
    write_csv(args.output / "tv_denoising_iterations.csv", histories)


if __name__ == "__main__":
    main()
