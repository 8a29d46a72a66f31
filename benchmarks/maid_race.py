"""MAID as published against its accelerations, to the same budget of evaluations on Fields-of-Experts denoising.

All start at the same parameters and data (noise level 0.1). The loss shown is the certified upper bound, so a method
gains nothing by being inaccurate. ``--problem small``: 10 filters 5x5, 4 images of 48x48, float64. ``--problem
large``: 48 filters 7x7, 20 images as they are in the folder, float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator
from torch import Tensor

from benchmarks.common import arguments, as_row, denoising_data, print_table, reached, start, write_csv
from models import FieldsOfExperts, InitialFilters
from recon.bilevel import MAID, Accelerations, BilevelObjective, PublishedMAID, Record, Training
from recon.lower_level import FISTA, LBFGS, Solver
from recon.metrics import psnr
from recon.plotting.figures import COLORS, save_figure

PUBLISHED, FULL = "published", "4a + 4b + 4c, L-BFGS"
#: what each variant adds: a goal-oriented certificate, b quasi-Newton direction, c accuracy from the predicted decrease
VARIANTS: dict[str, tuple[Callable[..., MAID | PublishedMAID], Callable[[], Solver]]] = {
    PUBLISHED: (PublishedMAID, FISTA),
    "4a": (partial(PublishedMAID, accelerations=Accelerations("goal_oriented", largest_growth=4.0)), FISTA),
    "4b": (partial(PublishedMAID, lr=0.1, accelerations=Accelerations("first_order", "lbfgs", 80, 4.0)), FISTA),
    "4a + 4b": (partial(PublishedMAID, lr=0.1, accelerations=Accelerations("goal_oriented", "lbfgs", 80, 4.0)), FISTA),
    "4a + 4b + 4c": (MAID, FISTA),
    FULL: (MAID, LBFGS),
}
STARTS = (100.0, 1.0, 1e-2, 1e-5)


@dataclass(frozen=True)
class Problem:
    """True and noisy images, and the size of the regularizer."""

    name: str
    clean: Tensor
    noisy: Tensor
    filters: int
    side: int

    def objective(self, solver: Solver) -> BilevelObjective:
        reg = FieldsOfExperts(self.filters, self.side, initial_filters=InitialFilters("normal")).to(self.clean.dtype)
        return BilevelObjective(reg, self.clean, self.noisy, solver=solver)


@dataclass(frozen=True)
class Run:
    """One training and how well the images are denoised at its end."""

    variant: str
    accuracy: float | str
    records: list[Record]
    seconds: float
    psnr: float

    @property
    def final(self) -> float:
        """The certified loss at the end."""
        return self.records[-1].upper


def make_problem(name: str, data: str, quick: bool) -> Problem:
    size: int | None
    if name == "small":
        dtype, limit, size, filters, side = torch.float64, 4, 48, 10, 5
    else:
        dtype, limit, size, filters, side = torch.float32, 20, None, 48, 7
    if quick:
        limit, size, filters = 3, 24, 8
    return Problem(name, *denoising_data(data, dtype, limit, size), filters, side)


def race(problem: Problem, variant: str, budget: float, options: dict[str, Any], label: float | str) -> Run:
    """Train with one variant until the budget is spent."""
    method, solver = VARIANTS[variant]
    objective = problem.objective(solver())
    optimizer = method(objective.params, **options)
    training = Training(objective, optimizer)
    training.descend(budget)
    last = training.records[-1]
    quality = float(psnr(optimizer.evaluation.x, problem.clean).mean())
    print(
        f"{variant}, start {label}: {last.upper:.4f} after {last.evaluations:.0f} evaluations, "
        f"{last.iteration} iterations, {training.seconds:.1f} s",
        flush=True,
    )
    return Run(variant, label, training.records, training.seconds, quality)


def certified(run: Run, evaluations: float) -> float:
    """The least certified loss after so many evaluations."""
    return min((r.upper for r in run.records if r.evaluations <= evaluations), default=float("inf"))


def summary(run: Run, published: Run, marks: list[float]) -> dict[str, Any]:
    """One line of the table."""
    goal = published.final
    needed, reference = (reached(r.records, lambda record: record.upper <= goal) for r in (run, published))
    return {
        "variant": run.variant,
        "start": run.accuracy,
        **{f"at {mark:.0f}": certified(run, mark) for mark in marks},
        "to published": needed,
        "ratio": reference / needed,
        "PSNR": run.psnr,
        "iterations": run.records[-1].iteration,
        "seconds": run.seconds,
        "end": run.records[-1].progress.value,
    }


def figure(runs: list[Run], title: str) -> Figure:
    """Certified loss against evaluations, both logarithmic."""
    picture = Figure(figsize=(5.2, 3.6), layout="constrained")
    ax = picture.subplots()
    colors = dict(zip(VARIANTS, COLORS, strict=True))
    for run in runs:
        cost, upper = [r.evaluations for r in run.records], [r.upper for r in run.records]
        style = "--" if run.variant == PUBLISHED else "-"
        ax.plot(cost, upper, style, color=colors[run.variant], lw=1.4, label=run.variant)
    ax.axhline(runs[0].final, color="0.6", lw=0.8, ls=":")
    ax.set(xscale="log", yscale="log", xlabel="evaluations per image", ylabel="certified loss", title=title)
    for axis, subs in ((ax.xaxis, (1, 2, 5)), (ax.yaxis, (1, 1.5, 2, 3, 4, 5, 7))):
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_major_formatter(FormatStrFormatter("%g"))
        axis.set_minor_locator(NullLocator())
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, color="0.92", lw=0.6)
    ax.legend(frameon=False, fontsize=8)
    return picture


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--problem", choices=("small", "large"), default="small")
    parser.add_argument("--budget", type=float, default=4000, help="evaluations per image of every run")
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS))
    parser.add_argument(
        "--starts", type=float, nargs="*", default=STARTS, help="starting accuracies of the last variant"
    )
    args = parser.parse_args()
    start(args)
    budget, starts = (min(args.budget, 300.0), (1e2, 1e-2)) if args.quick else (args.budget, args.starts)
    problem = make_problem(args.problem, args.data, args.quick)
    names = [PUBLISHED, *(v for v in args.variants if v != PUBLISHED)]
    runs = [race(problem, name, budget, {}, "default") for name in names]
    accelerated = [race(problem, FULL, budget, {"solution_accuracy": s, "adjoint_accuracy": s}, s) for s in starts]
    marks = [budget / 8, budget / 4, budget / 2, budget]
    rows = [summary(run, runs[0], marks) for run in runs + accelerated]
    size = "x".join(str(n) for n in problem.clean.shape[2:])
    title = f"FoE {problem.filters}x{problem.side}x{problem.side}, {len(problem.clean)} images {size}"
    print_table(f"{title}: certified loss after so many evaluations; evaluations to the published method's last", rows)
    print(f"noisy {float(psnr(problem.noisy, problem.clean).mean()):.2f} dB")
    if accelerated:
        finals = [run.final for run in accelerated]
        print(f"{FULL}: final losses differ by {max(finals) / min(finals) - 1:.1%} between the starting accuracies")
    stem = f"maid_race_{args.problem}"
    write_csv(args.output / f"{stem}.csv", rows)
    histories = [as_row(r, variant=run.variant, start=run.accuracy) for run in runs + accelerated for r in run.records]
    write_csv(args.output / f"{stem}_iterations.csv", histories)
    save_figure(figure(runs, title), Path(args.output) / f"{stem}.png")


if __name__ == "__main__":
    main()
