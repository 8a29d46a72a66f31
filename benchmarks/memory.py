"""Peak memory against the number of iterations, the chunk size and the number of images.

Every setting runs in a process of its own, from before the data are made to the end of training (Fields of Experts,
48 filters 7x7, float32, random images), and reports how far its peak lies above what it held before. What is to be
seen: the number of iterations changes nothing; an image adds its data, its two warm starts and their successors at
a trial point, each of the size of one image; only the chunk adds what is many times larger.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import arguments, print_table, start, write_csv
from models import FieldsOfExperts
from recon.bilevel import MAID, BilevelObjective
from recon.lower_level import LBFGS, Energy

MIB = 2**20


def resident() -> tuple[float, float]:
    """Resident memory of this process now and at its peak, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return tuple(int(lines[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))  # type: ignore[return-value]
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB
    return peak, peak


def forget_peak() -> None:
    """Let the peak begin anew, where the system can: importing takes more memory for a moment than it leaves behind."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def run(setting: dict[str, Any]) -> dict[str, Any]:
    """Train, or solve, in this process."""
    device = torch.device(setting["device"])
    # libraries allocate when they are first used
    x = torch.rand(1, 1, 24, 24, device=device)
    warm = BilevelObjective(FieldsOfExperts().to(device), x, x + 0.1)
    optimizer = MAID(warm.params)
    for _ in range(3):
        optimizer.step(objective=warm)
    del warm, optimizer
    forget_peak()
    before = resident()[0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / MIB
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(setting["images"], 1, setting["size"], setting["size"], generator=generator)
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=generator)
    clean, noisy = clean.to(device), noisy.to(device)
    reg = FieldsOfExperts().to(device)
    if setting["task"] == "solve":
        solution = LBFGS()(Energy(noisy, reg), noisy, setting["accuracy"])
        count = int(solution.evaluations.max())
    else:
        objective = BilevelObjective(reg, clean, noisy, chunk_size=setting["chunk"])
        optimizer = MAID(objective.params)
        for _ in range(setting["iterations"]):
            optimizer.step(objective=objective)
        count = round(objective.evaluations)
    peak = torch.cuda.max_memory_allocated() / MIB if device.type == "cuda" else resident()[1]
    return {"evaluations": count, "MiB": peak - before, "peak of the process [MiB]": resident()[1]}


def measure(setting: dict[str, Any], threads: int) -> dict[str, Any]:
    """:func:`run` in a new process."""
    command = [sys.executable, "-m", "benchmarks.memory", "--one", json.dumps(setting), "--threads", str(threads)]
    # the C library keeps freed blocks for later and cuts them up, which hides what the program holds: large blocks get
    # pages of their own, and give them back
    own_pages = {"MALLOC_MMAP_THRESHOLD_": "32768", "MALLOC_TRIM_THRESHOLD_": "32768"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | own_pages)
    return setting | json.loads(done.stdout.splitlines()[-1])


def settings(quick: bool, device: str) -> dict[str, list[dict[str, Any]]]:
    """The three axes, one at a time, and the accuracy of one lower-level solve."""
    base = {"task": "train", "device": device, "images": 16, "chunk": 4, "iterations": 4, "size": 128, "accuracy": ""}
    short = base | {"iterations": 2}
    solve = base | {"task": "solve", "images": 4, "chunk": "", "iterations": ""}
    if quick:
        base, short = base | {"images": 4}, short | {"images": 4}
    return {
        "iterations": [base | {"iterations": n} for n in ((1, 4) if quick else (2, 8, 32, 128))],
        "evaluations of one solve": [solve | {"accuracy": a} for a in ((1, 1e-1) if quick else (1, 1e-1, 1e-2, 5e-3))],
        "chunk": [short | {"chunk": n} for n in ((1, 4) if quick else (1, 2, 4, 8, 16))],
        "images": [short | {"images": n} for n in ((4, 12) if quick else (16, 32, 64, 128))],
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        torch.set_num_threads(args.threads)
        print(json.dumps(run(json.loads(args.one))))
        return
    start(args)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for axis, group in settings(args.quick, device).items():
        part = [measure(setting, torch.get_num_threads()) for setting in group]
        first = part[0]
        for row in part:
            more = sum(row[name] - first[name] for name in ("images", "chunk") if axis == name)
            image = 4 * row["size"] ** 2 / MIB
            row["ratio"] = row["MiB"] / first["MiB"]
            row["growth"] = (row["MiB"] - first["MiB"]) / more / image if more else ""
        names = ("images", "chunk", "iterations", "accuracy", "evaluations", "MiB", "ratio", "growth")
        title = f"peak memory against {axis}; growth: per image of the {axis}, in sizes of one image"
        print_table(
            title if axis in ("images", "chunk") else f"peak memory against {axis}",
            [{n: r[n] for n in names} for r in part],
        )
        rows += [{"axis": axis} | row for row in part]
    write_csv(args.output / "memory.csv", rows)


if __name__ == "__main__":
    main()
