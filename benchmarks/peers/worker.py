"""The process of one competitor: told ``prepare`` and then any number of ``run`` on its input, it answers in JSON."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.peers.turns import AbsentError, Array, NotReachedError, Setup, relative_distance


def answers(setup: Setup, problem: dict[str, Array], goal: float) -> Iterator[dict[str, object]]:
    """To "prepare" and then to any number of "run"."""
    reference = problem.pop("reference", None)

    def distance(x: Array) -> float:
        return float("nan") if reference is None else relative_distance(x, reference)

    try:
        run = setup(problem, goal, distance)
    except (ImportError, AbsentError, NotReachedError) as error:
        yield {"missing": f"{type(error).__name__}: {error}"}
        return
    yield {}
    while True:
        began = time.process_time()
        x = run()
        seconds = time.process_time() - began
        yield {"seconds": seconds, "distance": distance(np.asarray(x))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("module", "setup", "problem", "goal", "threads"):
        parser.add_argument(name)
    args = parser.parse_args()
    with contextlib.suppress(ImportError):
        import torch

        torch.set_num_threads(int(args.threads))
    setup: Setup = getattr(importlib.import_module(args.module), args.setup)
    with np.load(args.problem) as file:
        problem = {name: file[name] for name in file.files}
    for _, answer in zip(sys.stdin, answers(setup, problem, float(args.goal)), strict=False):
        print("\n" + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
