"""Competitors in processes of their own, which take turns; CPU seconds, and the same goal for all.

A competitor is a function ``setup(problem, goal, distance) -> run``: ``problem`` are arrays, ``distance(x)`` is that
of x from the common reference. An iterative method counts in ``setup`` how many iterations reach ``goal``, for free,
and ``run`` makes just these; a method with a certificate has to find out by itself, within ``run``.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Problem = Mapping[str, Array]
Distance = Callable[[Array], float]
Setup = Callable[[Problem, float, Distance], Callable[[], Array]]


#: CPU seconds that a program may take to find how many iterations it needs
PATIENCE = 60


class NotReachedError(RuntimeError):
    """The goal was not reached within the limit of iterations."""


class AbsentError(RuntimeError):
    """The program is not installed, or does not run here."""


@dataclass(frozen=True)
class Competitor:
    """``name`` in the table, the ``setup`` in the module ``module``, and the interpreter that has the program."""

    name: str
    module: str
    setup: str
    python: str = sys.executable


@dataclass(frozen=True)
class Timing:
    """CPU seconds of the runs, the distance that was reached, and why there are none."""

    seconds: Sequence[float]
    distance: float
    missing: str = ""

    @property
    def minimum(self) -> float:
        """Of the runs; NaN if there are none."""
        return min(self.seconds, default=float("nan"))


def count(iterates: Iterable[Array], goal: float, distance: Distance, limit: int = 20_000) -> int:
    """How many iterates it takes to come as near to the reference as ``goal``.

    Raises
    ------
    NotReachedError
        not within ``limit`` iterations, or :data:`PATIENCE` seconds.
    """
    best, began = float("inf"), time.process_time()
    for n, x in enumerate(iterates, 1):
        best = min(best, distance(x))
        if best <= goal:
            return n
        if n >= limit or time.process_time() - began > PATIENCE:
            break
    raise NotReachedError(f"{best:.1e} after {n} iterations, the limit is {limit} or {PATIENCE} s")


def last(iterates: Iterable[Array], n: int) -> Array:
    """The n-th iterate."""
    for k, x in enumerate(iterates, 1):
        if k == n:
            return x
    raise NotReachedError(f"ended before iteration {n}")


def relative_distance(x: Array, reference: Array) -> float:
    """||x - x^|| / ||x^||; of a batch, the largest of its images."""
    axes = tuple(range(-2, 0))
    difference = np.sqrt(np.square(x.astype(np.float64) - reference).sum(axes))
    return float((difference / np.sqrt(np.square(reference).sum(axes))).max())


def in_turns(
    competitors: Sequence[Competitor], problem: Path, goal: float, repeats: int, threads: int
) -> dict[str, Timing]:
    """Start a process for each, let them prepare one after the other, and run in turns ``repeats`` times."""
    with contextlib.ExitStack() as stack:
        workers = {c.name: stack.enter_context(_Worker(c, problem, goal, threads)) for c in competitors}
        ready = {name: worker.ask("prepare") for name, worker in workers.items()}
        runs: dict[str, list[float]] = {name: [] for name in workers}
        for turn in range(repeats + 1):
            for name, worker in workers.items():
                if "missing" in ready[name]:
                    continue
                answer = worker.ask("run")
                if turn:  # the first turn warms up
                    runs[name].append(float(answer["seconds"]))
                ready[name] = answer
        return {
            name: Timing(runs[name], float(answer.get("distance", float("nan"))), str(answer.get("missing", "")))
            for name, answer in ready.items()
        }


class _Worker:
    """A process that is asked by lines and answers in JSON."""

    def __init__(self, competitor: Competitor, problem: Path, goal: float, threads: int) -> None:
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        command = [competitor.python, "-m", "benchmarks.peers.worker", competitor.module, competitor.setup]
        self.process = subprocess.Popen(
            [*command, str(problem), repr(goal), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
            env=os.environ | limits,
        )

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()

    def ask(self, what: str) -> dict[str, object]:
        """One answer; a process that is gone has no result."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(what + "\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                answer: dict[str, object] = json.loads(line)
                return answer
        return {"missing": f"ended with status {self.process.wait()}"}
