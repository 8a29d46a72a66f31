"""Figure: energy gap of an input convex network with kinks, by subgradients, smoothing, and in primal-dual form.

``run`` denoises several pictures and writes

* ``icnn_primal_dual_targets.csv``: iterations and seconds of every method to a relative gap of ``TARGET``, picture by
  picture and as medians, over those of the subgradient method, and the reference with its certified gap;
* ``icnn_primal_dual_steps.csv``: every constant step of the subgradient method that was tried;
* ``icnn_primal_dual.csv``: every iterate for the first picture, and the picture that ``plot`` makes of this file alone.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from datasets.sources.images import BuiltinImages
from models import ICNN, ICNNSaddle, LeakyReLU, NetworkIteration
from recon.bilevel import BilevelObjective, InexactAdam, Training
from recon.commands.output.summary import write_summary
from recon.commands.output.tables import read as read_table
from recon.files import prepare_folder, write_files
from recon.lower_level import FISTA, LBFGS, Energy, Snapshot
from recon.plotting import COLORS

NAME = "icnn_primal_dual"
#: relative energy gap at which methods are compared; the reference has to be certified to a tenth of it
TARGET = 1e-4
SUBGRADIENT, PRIMAL_DUAL, FIXED = "subgradient", "primal-dual", "primal-dual, fixed steps"
#: constant steps 10^-(k/4) for k = 0, ..., 12 and then between the best one's neighbours, 10^(-1/6), ..., 10^(1/6)
GRID = tuple(10.0 ** (-k / 4) for k in range(13))
REFINED = tuple(10.0 ** (k / 24) for k in (-4, -3, -2, -1, 1, 2, 3, 4))


@dataclass(frozen=True)
class Scale:
    """Sizes of the experiment: pictures, the network, how it is learned; iterations of every method and, at most, of
    the reference; how often every run is timed; widths of the smoothing.
    """

    size: int
    pictures: int
    filters: int
    layers: int
    passes: int
    iterations: int
    reference: int
    repeats: int
    widths: tuple[float, ...]


SCALES = {
    "quick": Scale(64, 5, 6, 1, 10, 250, 4_000, 5, (1e-2,)),
    "paper": Scale(256, 5, 32, 2, 100, 4_000, 100_000, 3, (1e-1, 1e-2, 1e-3, 1e-4)),
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

    def quicker(self, other: Trace) -> Trace:
        """Of two runs of the same method, each iterate with the smaller time: noise of the machine only adds."""
        self.seconds = [min(a, b) for a, b in zip(self.seconds, other.seconds, strict=True)]
        return self


@dataclass(frozen=True)
class Reference:
    """The smallest known energy, and its certified relative distance to the minimum."""

    energy: float
    gap: float

    @property
    def goal(self) -> float:
        """The energy of the target."""
        return self.energy + TARGET * abs(self.energy)


@dataclass(frozen=True)
class Comparison:
    """All methods on one picture, and the steps of the subgradient method that were tried."""

    picture: str
    reference: Reference
    traces: list[Trace]
    tried: list[Trace]


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


def problems(sizes: Scale) -> Iterator[tuple[str, Energy]]:
    """Denoising of built-in pictures by a network without smoothing, learned on others with a smoothed one."""
    train = torch.stack(list(BuiltinImages("train", sizes.size).subset(0, 2))).double()
    generator = torch.Generator().manual_seed(0)

    def noisy(x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype)

    y = noisy(train)
    smooth = ICNN(sizes.filters, layers=sizes.layers, activation=LeakyReLU(width=0.05)).double()
    objective, optimizer = BilevelObjective(smooth, train, y), InexactAdam(smooth.parameters(), 0.03)
    Training(objective, optimizer).descend(iterations=sizes.passes)
    sharp = ICNN(sizes.filters, layers=sizes.layers, activation=LeakyReLU(width=0.0)).double()
    sharp.load_state_dict(smooth.state_dict())
    held_out = [(name, BuiltinImages(name, sizes.size)) for name in ("test", "val")]
    pictures = [(f"{name} {i}", image) for name, images in held_out for i, image in enumerate(images)]
    for name, image in pictures[: sizes.pictures]:
        yield name, Energy(noisy(image[None].double()), sharp)


def compare(energy: Energy, picture: str, sizes: Scale) -> Comparison:
    """Search the best constant step; time it and the primal-dual methods in turns; the smoothed ones once."""
    x0 = energy.y
    known = reference(energy, sizes.reference)
    tried = search(energy, x0, known, sizes.iterations)
    step = min(tried, key=lambda t: _merit(t, known)).parameter
    runs: list[Callable[[], Trace]] = [
        lambda: subgradient(energy, x0, step, sizes.iterations),
        lambda: primal_dual(energy, x0, sizes.iterations),
        lambda: primal_dual(energy, x0, sizes.iterations, adaptive=False),
    ]
    traces = [each() for each in runs]
    for _ in range(sizes.repeats - 1):
        traces = [trace.quicker(each()) for trace, each in zip(traces, runs, strict=True)]
    for width in sizes.widths:
        traces += [smoothed(energy, x0, width, sizes.iterations, solver) for solver in (FISTA, LBFGS)]
    return Comparison(picture, known, traces, tried)


@torch.no_grad()
def reference(energy: Energy, iterations: int) -> Reference:
    """The primal-dual method until its own bounds of the minimum are TARGET/100 apart, or for ``iterations``.

    Raises
    ------
    ValueError
        if they are more than TARGET/10 apart in the end.
    """
    iteration = NetworkIteration(ICNNSaddle(_network(energy), _shape(energy.y)), energy.y, energy.y)
    upper, lower = math.inf, -math.inf
    for count in range(1, iterations + 1):
        iteration.advance()
        if count % 50 and count < iterations:
            continue
        high, low = (float(t[0]) for t in iteration.bounds())
        upper, lower = min(upper, high), max(lower, low)
        if upper - lower <= 0.01 * TARGET * abs(upper):
            break
    gap = max(upper - lower, 0.0) / abs(upper)
    if not gap <= 0.1 * TARGET:
        raise ValueError(
            f"after {iterations} iterations the reference is known to a relative gap of {gap:.2g} only, but must be to "
            f"{0.1 * TARGET:g}: raise Scale.reference"
        )
    return Reference(upper, gap)


def _network(energy: Energy) -> ICNN:
    assert isinstance(energy.regularizer, ICNN)
    return energy.regularizer


def _shape(x: Tensor) -> tuple[int, int, int]:
    channel, height, width = x.shape[1:]
    return channel, height, width


def _merit(trace: Trace, known: Reference) -> tuple[float, float]:
    """First to the target or else, to the smallest energy."""
    return trace.reached(known.goal)[0], trace.best()[-1]


def search(energy: Energy, x0: Tensor, known: Reference, iterations: int) -> list[Trace]:
    """All constant steps of a geometric grid, and of a finer one around the best of these."""
    found = [subgradient(energy, x0, step, iterations) for step in GRID]
    best = min(found, key=lambda t: _merit(t, known)).parameter
    return found + [subgradient(energy, x0, best * factor, iterations) for factor in REFINED]


@torch.no_grad()
def subgradient(energy: Energy, x0: Tensor, step: float, iterations: int) -> Trace:
    """x <- x - step * (a subgradient of h at x), which is x - y plus one of the network."""
    trace, x, spent = Trace(SUBGRADIENT, step), x0.clone(), 0.0
    for _ in range(iterations):
        start = time.perf_counter()
        # without the value of the energy, which energy.grad would compute as well
        x = x - step * (energy.regularizer.grad(x) + (x - energy.y))
        spent += time.perf_counter() - start
        _note(trace, energy, x, spent)
    return trace


def smoothed(energy: Energy, x0: Tensor, width: float, iterations: int, solver: type[FISTA] | type[LBFGS]) -> Trace:
    """A solver on the network smoothed over ``width``, watched by the energy of the network with kinks."""
    given = energy.regularizer.constructor_arguments()
    network = ICNN(**given | {"activation": replace(given["activation"], width=width)}).to(x0.dtype)
    network.load_state_dict(energy.regularizer.state_dict())
    trace, smooth, paused = Trace(f"{solver.__name__}, width {width:g}", width), Energy(energy.y, network), 0.0

    def note(snapshot: Snapshot) -> None:
        nonlocal paused
        now = time.perf_counter()
        _note(trace, energy, snapshot.x, now - started - paused)
        paused += time.perf_counter() - now

    started = time.perf_counter()
    solver(max_iterations=iterations)(smooth, x0, 1e-9, note)
    return trace


@torch.no_grad()
def primal_dual(energy: Energy, x0: Tensor, iterations: int, adaptive: bool = True) -> Trace:
    """The epigraph form of the network, steps from norms and, if ``adaptive``, from residuals, see NetworkIteration.

    Seconds include those of the norms and of the first gradient.
    """
    trace = Trace(PRIMAL_DUAL if adaptive else FIXED, math.nan)
    start = time.perf_counter()
    iteration = NetworkIteration(ICNNSaddle(_network(energy), _shape(x0)), energy.y, x0, adaptive)
    spent = time.perf_counter() - start
    for _ in range(iterations):
        start = time.perf_counter()
        iteration.advance()
        spent += time.perf_counter() - start
        _note(trace, energy, iteration.image, spent)
    return trace


def _note(trace: Trace, energy: Energy, x: Tensor, seconds: float) -> None:
    value = energy.regularizer(x).double() + energy.fidelity.value(energy.operator(x), energy.y)
    trace.energies.append(float(value.detach()[0]))
    trace.seconds.append(seconds)


def _table(header: list[str], lines: list[list[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    return text.getvalue().encode()


def rows(found: Comparison) -> bytes:
    """Every iterate of every method: its energy, and the relative gap of the smallest energy so far."""
    lines: list[list[object]] = []
    # a method may get below the reference, by no more than its certified gap
    lowest = min([found.reference.energy, *(v for t in found.traces for v in t.energies)])
    for t in found.traces:
        for i, (s, e, b) in enumerate(zip(t.seconds, t.energies, t.best(), strict=True), 1):
            gap = (b - lowest) / abs(lowest)
            lines.append([found.picture, t.method, f"{t.parameter:g}", i, f"{s:.6g}", f"{e:.16g}", f"{gap:.6g}"])
    return _table(COLUMNS, lines)


LINES = {SUBGRADIENT: "-", PRIMAL_DUAL: "-", FIXED: ":"}
COLUMNS = ["picture", "method", "parameter", "iteration", "seconds", "energy", "relative_gap"]
TARGET_COLUMNS = ["picture", "method", "parameter", "iterations_to_target", "seconds_to_target", "iterations_ratio",
                  "seconds_ratio", "last_gap", "target", "reference_energy", "reference_gap"]  # fmt: skip


def targets(found: list[Comparison]) -> bytes:
    """What each method needed on each picture, over the subgradient method there, and medians of these numbers.

    Empty where the target was not reached (medians: not on most pictures). ``reference_gap`` is certified.
    """
    lines: list[list[object]] = []
    needed: dict[str, list[tuple[float, ...]]] = {}
    for each in found:
        base = each.traces[0].reached(each.reference.goal)
        for t in each.traces:
            count, seconds = t.reached(each.reference.goal)
            numbers = (count, seconds, _ratio(count, base[0]), _ratio(seconds, base[1]))
            needed.setdefault(t.method, []).append(numbers)
            gap = (t.best()[-1] - each.reference.energy) / abs(each.reference.energy)
            known = [f"{gap:.3g}", f"{TARGET:g}", f"{each.reference.energy:.16g}", f"{each.reference.gap:.3g}"]
            lines.append([each.picture, t.method, f"{t.parameter:g}", *map(_number, numbers), *known])
    worst = max(each.reference.gap for each in found)
    for method, values in needed.items():
        middle = [statistics.median(column) for column in zip(*values, strict=True)]
        lines.append(["median", method, "", *map(_number, middle), "", f"{TARGET:g}", "", f"{worst:.3g}"])
    return _table(TARGET_COLUMNS, lines)


def _ratio(mine: float, base: float) -> float:
    """Infinite if this method did not reach the target, or neither did."""
    return mine / base if math.isfinite(mine) else math.inf


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else ""


def steps(found: list[Comparison]) -> bytes:
    """All steps of the subgradient method that were tried, and where they got."""
    lines: list[list[object]] = []
    for each in found:
        for t in sorted(each.tried, key=lambda t: t.parameter):
            gap = (t.best()[-1] - each.reference.energy) / abs(each.reference.energy)
            count = t.reached(each.reference.goal)[0]
            lines.append([each.picture, f"{t.parameter:.6g}", _number(count), f"{gap:.3g}"])
    return _table(["picture", "step", "iterations_to_target", "last_gap"], lines)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of every iterate; raises ValueError, naming the file, if there is none, or it is not whole."""
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}; run the figure without --plot-only first")
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    if not table:
        raise ValueError(f"{path} has no rows; run the figure without --plot-only again")
    for number, row in enumerate(table, 2):
        try:
            values = [float(row[name]) for name in ("iteration", "seconds", "relative_gap")]
        except (KeyError, TypeError, ValueError):
            values = [math.nan]
        if set(row) != set(COLUMNS) or not all(map(math.isfinite, values)):
            raise ValueError(f"{path}, line {number}: not the columns {', '.join(COLUMNS)}; the file is cut or another")
    return table


def plot(output: Path) -> Path:
    """Draw ``icnn_primal_dual.png`` from the CSV file in ``output``; returns its path.

    Raises
    ------
    ValueError
        the file is missing, cut, or another one.
    """
    table = read(output / f"{NAME}.csv")
    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    styles: Iterator[str] = iter(COLORS)
    for method in dict.fromkeys(row["method"] for row in table):
        mine = [row for row in table if row["method"] == method]
        label = f"{method}, step {mine[0]['parameter']}" if method == SUBGRADIENT else method
        # a gap of zero is that of the reference itself
        gaps = [max(float(row["relative_gap"]), 1e-12) for row in mine]
        color, line = (
            next(styles, "#000000"),
            "-" if method in (SUBGRADIENT, PRIMAL_DUAL) else ":" if method == FIXED else "--",
        )
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
