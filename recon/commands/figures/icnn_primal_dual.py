"""Figure: energy gap of an input convex network with kinks, by subgradients, smoothing, and in primal-dual form.

``run`` writes ``icnn_primal_dual.csv`` (every iterate), ``icnn_primal_dual_targets.csv`` (what each method needed) and
the picture; ``plot`` makes the picture from the first file alone.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from datasets.images import BuiltinImages
from models import ICNN, ICNNSaddle
from recon.bilevel import BilevelObjective, InexactAdam
from recon.files import prepare_folder, write_files
from recon.lower_level import FISTA, LBFGS, Energy
from recon.lower_level.pdhg import Iteration
from recon.plotting import COLORS

NAME = "icnn_primal_dual"
#: relative energy gap at which methods are compared
TARGET = 1e-4
SUBGRADIENT, PRIMAL_DUAL = "subgradient", "primal-dual"


@dataclass(frozen=True)
class Scale:
    """Sizes of the experiment; steps of the subgradient method and widths of the smoothing that are tried."""

    size: int
    filters: int
    layers: int
    passes: int
    iterations: int
    reference: int
    steps: tuple[float, ...]
    widths: tuple[float, ...]


SCALES = {
    "quick": Scale(32, 6, 1, 10, 250, 600, (0.1, 0.05, 0.04, 0.03, 0.025, 0.02, 0.015, 0.01), (1e-2,)),
    "paper": Scale(
        256, 32, 2, 100, 4_000, 40_000, tuple(10.0 ** (-k / 4) for k in range(1, 17)), (1e-1, 1e-2, 1e-3, 1e-4)
    ),
}


@dataclass
class Trace:
    """Energies after every iteration, and the seconds that the iterations alone took."""

    method: str
    parameter: float
    seconds: list[float] = field(default_factory=list)
    energies: list[float] = field(default_factory=list)

    def best(self) -> list[float]:
        """The smallest energy so far: what the first-order methods are credited with, none of which descends."""
        found, low = [], math.inf
        for value in self.energies:
            low = min(low, value)
            found.append(low)
        return found

    def reached(self, energy: float) -> tuple[float, float]:
        """The iteration and the seconds after which the smallest energy is at most ``energy``; infinite if never."""
        for i, value in enumerate(self.best()):
            if value <= energy:
                return float(i + 1), self.seconds[i]
        return math.inf, math.inf


def run(scale: str, output: Path) -> None:
    """Make the figure in the folder ``output``.

    Raises:
        ValueError: ``scale`` is neither quick nor paper.
        OSError: the folder cannot be written to.
    """
    if scale not in SCALES:
        raise ValueError(f"scale is {scale!r}, but must be one of {', '.join(SCALES)}")
    prepare_folder(output)
    sizes = SCALES[scale]
    energy, noisy = problem(sizes)
    traces = [best_subgradient(energy, noisy, sizes)]
    for width in sizes.widths:
        traces += [smoothed(energy, noisy, width, sizes.iterations, solver) for solver in (FISTA, LBFGS)]
    traces.append(primal_dual(energy, noisy, sizes.iterations))
    reference = primal_dual(energy, noisy, sizes.reference)
    lowest = min(v for t in [*traces, reference] for v in t.energies)
    write_files({output / f"{NAME}.csv": rows(traces, lowest), output / f"{NAME}_targets.csv": targets(traces, lowest)})
    plot(output)


def problem(sizes: Scale) -> tuple[Energy, Tensor]:
    """Denoising of a built-in picture by a network without smoothing, learned on others with a smoothed one."""
    train = torch.stack(list(BuiltinImages("train", sizes.size).subset(0, 2))).double()
    test = torch.stack(list(BuiltinImages("test", sizes.size).subset(0, 1))).double()
    generator = torch.Generator().manual_seed(0)

    def noisy(x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype)

    y, data = noisy(train), noisy(test)
    smooth = ICNN(sizes.filters, layers=sizes.layers, width=0.05).double()
    objective, optimizer = BilevelObjective(smooth, train, y), InexactAdam(smooth.parameters(), 0.03)
    for _ in range(sizes.passes):
        optimizer.step(objective=objective)
    sharp = ICNN(sizes.filters, layers=sizes.layers, width=0.0).double()
    sharp.load_state_dict(smooth.state_dict())
    return Energy(data, sharp), data


def best_subgradient(energy: Energy, x0: Tensor, sizes: Scale) -> Trace:
    """The constant step that comes first to the target, or else, to the smallest energy; all of them are run."""
    traces = [subgradient(energy, x0, step, sizes.iterations) for step in sizes.steps]
    lowest = primal_dual(energy, x0, sizes.reference // 2).best()[-1]
    goal = lowest + TARGET * abs(lowest)
    return min(traces, key=lambda t: (t.reached(goal)[0], t.best()[-1]))


@torch.no_grad()
def subgradient(energy: Energy, x0: Tensor, step: float, iterations: int) -> Trace:
    """x <- x - step * (a subgradient of h at x)."""
    trace, x, spent = Trace(SUBGRADIENT, step), x0.clone(), 0.0
    for _ in range(iterations):
        start = time.perf_counter()
        x = x - step * energy.grad(x)
        spent += time.perf_counter() - start
        _note(trace, energy, x, spent)
    return trace


class _Traced(Energy):
    """Notes where the gradient of a smoothed energy is evaluated, and what the energy with kinks is there."""

    trace: Trace
    sharp: Energy
    started: float
    paused: float = 0.0

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = super().value_and_grad(x)
        now = time.perf_counter()
        _note(self.trace, self.sharp, x, now - self.started - self.paused)
        self.paused += time.perf_counter() - now
        return found


def smoothed(energy: Energy, x0: Tensor, width: float, iterations: int, solver: type[FISTA] | type[LBFGS]) -> Trace:
    """A solver on the network smoothed over ``width``, watched by the energy of the network with kinks."""
    arguments = energy.regularizer.constructor_arguments() | {"width": width}
    network = ICNN(**arguments).to(x0.dtype)
    network.load_state_dict(energy.regularizer.state_dict())
    traced = _Traced(energy.y, network)
    traced.trace, traced.sharp = Trace(f"{solver.__name__}, width {width:g}", width), energy
    traced.started = time.perf_counter()
    solver(max_iterations=iterations)(traced, x0, 1e-9)
    return traced.trace


@torch.no_grad()
def primal_dual(energy: Energy, x0: Tensor, iterations: int) -> Trace:
    """PDHG on the epigraph form of the network, steps from the norms of the blocks of K."""
    trace, (channel, height, width) = Trace(PRIMAL_DUAL, math.nan), x0.shape[1:]
    assert isinstance(energy.regularizer, ICNN)
    start = time.perf_counter()
    model = ICNNSaddle(energy.regularizer, (channel, height, width))
    saddle = model.saddle_point(energy.y)
    iteration = Iteration(saddle, model.hidden(x0), x0.new_zeros(len(x0), saddle.operator.range_size), diagonal=True)
    spent = time.perf_counter() - start
    for _ in range(iterations):
        start = time.perf_counter()
        # steps from the norms of the blocks alone: balancing them by the residuals, as PDHG does by default, was slower
        # on the picture of the quick scale
        iteration.advance()
        spent += time.perf_counter() - start
        _note(trace, energy, saddle.image(iteration.x), spent)
    return trace


def _note(trace: Trace, energy: Energy, x: Tensor, seconds: float) -> None:
    value = energy.regularizer(x).double() + energy.fidelity.value(energy.operator(x), energy.y)
    trace.energies.append(float(value.detach()[0]))
    trace.seconds.append(seconds)


def rows(traces: list[Trace], lowest: float) -> bytes:
    """Every iterate of every method: its energy, and the relative gap of the smallest energy so far."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "parameter", "iteration", "seconds", "energy", "relative_gap"])
    for t in traces:
        for i, (s, e, b) in enumerate(zip(t.seconds, t.energies, t.best(), strict=True), 1):
            gap = (b - lowest) / abs(lowest)
            writer.writerow([t.method, f"{t.parameter:g}", i, f"{s:.6g}", f"{e:.16g}", f"{gap:.6g}"])
    return text.getvalue().encode()


def targets(traces: list[Trace], lowest: float) -> bytes:
    """Iterations and seconds to the target, and the last gap; empty where the target was not reached."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "parameter", "iterations_to_target", "seconds_to_target", "last_gap", "target"])
    for t in traces:
        count, seconds = t.reached(lowest + TARGET * abs(lowest))
        gap = (t.best()[-1] - lowest) / abs(lowest)
        needed = [f"{count:.0f}", f"{seconds:.4g}"] if math.isfinite(count) else ["", ""]
        writer.writerow([t.method, f"{t.parameter:g}", *needed, f"{gap:.3g}", f"{TARGET:g}"])
    return text.getvalue().encode()


def plot(output: Path) -> Path:
    """Draw ``icnn_primal_dual.png`` from the CSV file in ``output``; returns its path."""
    with (output / f"{NAME}.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    styles: Iterator[str] = iter(COLORS)
    for method in dict.fromkeys(row["method"] for row in table):
        mine = [row for row in table if row["method"] == method]
        label = f"{method}, step {mine[0]['parameter']}" if method == SUBGRADIENT else method
        # a gap of zero is that of the reference itself
        gaps = [max(float(row["relative_gap"]), 1e-12) for row in mine]
        color, line = next(styles, "#000000"), "-" if method in (SUBGRADIENT, PRIMAL_DUAL) else "--"
        for axis, column in zip(axes, ("iteration", "seconds"), strict=True):
            axis.loglog([float(row[column]) for row in mine], gaps, line, color=color, label=label, linewidth=1.4)
    for axis, name in zip(
        axes, ("iterations (one product with every layer and its transpose)", "seconds"), strict=True
    ):
        axis.axhline(TARGET, color="0.6", linewidth=0.8, linestyle=":")
        axis.set_xlabel(name)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("relative energy gap, smallest so far")
    axes[0].set_ylim(1e-8, None)
    axes[0].legend(fontsize=7)
    content = io.BytesIO()
    figure.savefig(content, dpi=150)
    path = output / f"{NAME}.png"
    write_files({path: content.getvalue()})
    return path
