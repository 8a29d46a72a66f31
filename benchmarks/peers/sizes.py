"""What recon's own work costs against the number of pixels, images and filters: exponents from line to line."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from benchmarks.peers.turns import Array, Timing
from models import FieldsOfExperts, InitialFilters
from recon.lower_level import LBFGS, Energy, TotalVariationProblem, TotalVariationSolver

#: a picture or several of this many pixels a side
Pictures = Callable[[int, int], Array]


def tables(pictures: Pictures, quick: bool, repeats: int, threads: int) -> Iterator[tuple[str, Mapping[str, Timing]]]:
    """A title and its timings, one after the other."""
    torch.set_num_threads(threads)
    sizes = (32, 64) if quick else (64, 128, 256, 512, 1024)
    middle = sizes[len(sizes) // 2]
    batches, filters = (1, 2) if quick else (1, 4, 16), (12, 24) if quick else (12, 24, 48, 96)

    def images(size: int, count: int = 1) -> torch.Tensor:
        return torch.from_numpy(pictures(size, count)).reshape(count, 1, size, size)

    def side(size: int) -> str:
        return f"{size}²"

    yield (
        "TV denoising by size, certified to 0.01 per pixel",
        _growth({side(n): (n * n, _total_variation(images(n))) for n in sizes}, repeats),
    )
    yield (
        "Fields of Experts, 48 filters 7x7, gradient by size",
        _growth({side(n): (n * n, _gradient(images(n), 48)) for n in sizes}, repeats),
    )
    yield (
        "Fields of Experts, 48 filters 7x7, denoising by size, certified to 0.001 per pixel",
        _growth({side(n): (n * n, _denoising(images(n), 48)) for n in sizes[:-1]}, repeats),
    )
    yield (
        f"TV denoising by batch, {middle}²",
        _growth({f"{b} images": (b, _total_variation(images(middle, b))) for b in batches}, repeats),
    )
    yield (
        f"Fields of Experts, gradient by batch, {middle}²",
        _growth({f"{b} images": (b, _gradient(images(middle, b), 48)) for b in batches}, repeats),
    )
    yield (
        f"Fields of Experts, gradient by number of filters, {middle}²",
        _growth({f"{k} filters": (k, _gradient(images(middle), k)) for k in filters}, repeats),
    )


def _growth(runs: Mapping[str, tuple[float, Callable[[], object]]], repeats: int) -> dict[str, Timing]:
    """In turns; the note of a line is the exponent from the line before to it."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, (_, run) in runs.items():
            begin = time.process_time()
            run()
            seconds[name].append(time.process_time() - begin)
    found: dict[str, Timing] = {}
    before: tuple[float, float] | None = None
    for name, (amount, _) in runs.items():
        least = min(seconds[name][1:])  # the first one warms up
        note = ""
        if before is not None:
            note = f"exponent {math.log(least / before[1]) / math.log(amount / before[0]):.2f}"
        before = amount, least
        found[name] = Timing(_after_the_first(seconds[name]), math.nan, note)
    return found


def _after_the_first(values: Sequence[float]) -> Sequence[float]:
    return values[1:]


def _total_variation(y: torch.Tensor) -> Callable[[], object]:
    problem, solver = TotalVariationProblem(y, 0.1), TotalVariationSolver()
    accuracy = 0.01 * math.sqrt(y[0].numel())
    return lambda: solver(problem, accuracy)


def _experts(filters: int) -> FieldsOfExperts:
    initial = InitialFilters(kind="multiscale")
    return FieldsOfExperts(filters=filters, size=7, potential="smoothed_l1", unit_norm=True, initial_filters=initial)


def _gradient(y: torch.Tensor, filters: int) -> Callable[[], object]:
    regularizer = _experts(filters)
    return lambda: regularizer.value_and_grad(y)


def _denoising(y: torch.Tensor, filters: int) -> Callable[[], object]:
    energy, solver = Energy(y, _experts(filters)), LBFGS()
    accuracy = 0.001 * math.sqrt(y[0].numel())
    return lambda: solver(energy, y, accuracy)
