"""The pictures, the reference, and what every method makes of them: energies and seconds, iterate by iterate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from datasets.sources.images import BuiltinImages
from models import ICNN, ICNNSaddle, LeakyReLU, NetworkIteration
from recon.bilevel import BilevelObjective, InexactAdam, Training
from recon.lower_level import FISTA, LBFGS, Energy, Snapshot

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
