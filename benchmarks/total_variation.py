"""Exact total variation: seconds to a distance from the minimizer, certified, against FGP and scikit-image.

min_x 1/2 ||x - y||^2 + alpha TV(x), isotropic, float32, noise 0.1. The distance is ||x - x^|| / ||x^ - y||, the largest
of a batch, with x^ of float64, certified to a millionth of what y varies. Our solver is asked to *certify* it, and a
second time stopped as soon as the true distance is reached, with a look at the certificate. FGP (Beck, Teboulle 2009)
and `denoise_tv_chambolle` certify nothing: they run, without any test, for as many iterations as they turn out to need.
CPU seconds of one thread, calls in turns, the first one not counted.

    OMP_NUM_THREADS=1 python -m benchmarks.total_variation --threads 1 --data FOLDER
    RECON_KERNELS=off ...                               # the same with torch instead of compiled kernels
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from skimage.restoration import denoise_tv_chambolle
from torch import Tensor

from benchmarks.common import arguments, denoising_data, print_table, start, write_csv
from recon.lower_level import TotalVariationProblem, TotalVariationSolution, TotalVariationSolver

ALPHA, GOALS, REPEATS = 0.1, (1e-2, 1e-3), 5


def fgp(y: np.ndarray, alpha: float, iterations: int) -> np.ndarray:
    """Fast gradient projection on the dual, ``(batch, height, width)``, as most people write it down."""
    p = np.zeros((2, *y.shape), y.dtype)
    q, t, old = p.copy(), 1.0, p
    for _ in range(iterations + 1):
        x = y.copy()
        x[:, :-1] += alpha * q[0, :, :-1]
        x[:, 1:] -= alpha * q[0, :, :-1]
        x[:, :, :-1] += alpha * q[1, :, :, :-1]
        x[:, :, 1:] -= alpha * q[1, :, :, :-1]
        p = q.copy()
        p[0, :, :-1] += (x[:, 1:] - x[:, :-1]) / (8 * alpha)
        p[1, :, :, :-1] += (x[:, :, 1:] - x[:, :, :-1]) / (8 * alpha)
        p /= np.maximum(1, np.sqrt(p[0] ** 2 + p[1] ** 2))
        t, before = (1 + (1 + 4 * t * t) ** 0.5) / 2, t
        q, old = p + y.dtype.type((before - 1) / t) * (p - old), p
    return x


def chambolle(y: np.ndarray, alpha: float, iterations: int) -> np.ndarray:
    """What scikit-image does, picture by picture."""
    return np.stack([denoise_tv_chambolle(image, weight=alpha, eps=0, max_num_iter=iterations) for image in y])


def exact(problem: TotalVariationProblem, accuracy: float, steps: int = 100_000) -> TotalVariationSolution:
    """Ours."""
    return TotalVariationSolver(steps)(problem, accuracy)


def needed(distance: Callable[[int], float], goal: float, guess: int) -> int:
    """The smallest number of iterations, up to 2 %, whose distance is at most ``goal``."""
    low, high = guess // 2, guess
    while distance(high) > goal:
        low, high = high, 2 * high
        if high > 20_000:
            raise ValueError(f"no {goal:g} in 20,000 iterations: what is computed is another minimizer")
    while low > 1 and distance(low) <= goal:
        low, high = low // 2, low
    while high - low > max(1, high // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if distance(middle) <= goal else (middle, high)
    return high


def in_turns(calls: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """CPU seconds of ``REPEATS`` calls each."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(REPEATS + 1):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            if turn:
                seconds[name].append(time.process_time() - begin)
    return seconds


def measure(name: str, y: Tensor, goal: float, guesses: dict[str, int]) -> list[dict[str, Any]]:
    """A row for every method."""
    problem, images = TotalVariationProblem(y, ALPHA), y[:, 0].numpy()
    minimizer = exact(TotalVariationProblem(y.double(), ALPHA), 1e-6 * float((y - y.mean()).norm())).x
    removed = (minimizer - y).flatten(1).norm(dim=1)

    def distance(x: Tensor | np.ndarray) -> float:
        away = torch.as_tensor(x).reshape(y.shape).double() - minimizer
        return float((away.flatten(1).norm(dim=1) / removed).max())

    ours = functools.partial(exact, problem, goal * removed)
    certified = ours()
    results: dict[str, Callable[[int], Tensor | np.ndarray]] = {
        "FGP in NumPy": lambda n: fgp(images, ALPHA, n),
        "scikit-image": lambda n: chambolle(images, ALPHA, n),
        "ours, true": lambda n: exact(problem, 1e-30, n).x,
    }
    counts = {
        method: needed(lambda n, run=run: distance(run(n)), goal, guesses.get(method, 64))  # type: ignore[misc]
        for method, run in results.items()
    }
    guesses.update(counts)
    counts["ours, certified"] = int(certified.evaluations.max())
    few = functools.partial(exact, problem, 1e-30, counts["ours, true"])
    calls: dict[str, Callable[[], Any]] = {
        "FGP in NumPy": functools.partial(fgp, images, ALPHA, counts["FGP in NumPy"]),
        "scikit-image": functools.partial(chambolle, images, ALPHA, counts["scikit-image"]),
        "ours, true": few,
        "ours, certified": ours,
    }
    claims = {"ours, true": few(), "ours, certified": certified}
    seconds, rows = in_turns(calls), []
    for method, count in counts.items():
        result = claims.get(method)
        rows.append(
            {
                "images": name,
                "distance": goal,
                "method": method,
                "iterations": count,
                "true": distance(calls[method]() if result is None else result.x),
                "certified": float("inf") if result is None else float((result.error / removed).max()),
                "seconds": min(seconds[method]),
                "median": statistics.median(seconds[method]),
                "largest": max(seconds[method]),
                "FGP / it": min(seconds["FGP in NumPy"]) / min(seconds[method]),
                "scikit-image / it": min(seconds["scikit-image"]) / min(seconds[method]),
            }
        )
    return rows


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__)
    args = parser.parse_args()
    start(args)
    size = 64 if args.quick else 256
    batch = denoising_data(args.data, torch.float32, 16, size)[1]
    batch = batch[torch.arange(16) % len(batch)]
    mosaic = torch.cat([torch.cat(list(row[:, 0]), 1) for row in batch.split(4)], 0)[None, None]
    sets = {f"{size}^2": batch[:1], f"{4 * size}^2": mosaic.contiguous(), f"16 of {size}^2": batch}
    rows, guesses = [], {goal: dict[str, int]() for goal in GOALS}
    for name, y in sets.items():
        for goal in GOALS:
            rows += measure(name, y, goal, guesses[goal])
            print_table(f"{name}, distance {goal:g}", rows[-4:])
    write_csv(args.output / "total_variation.csv", rows)


if __name__ == "__main__":
    main()
