"""What the benchmarks share: arguments, data, clocks, tables and files."""

from __future__ import annotations

import argparse
import csv
import io
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from datasets import DenoisingDataModule, PatchPictures
from recon.bilevel import Record
from recon.files import write_files

Row = Mapping[str, Any]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="builtin", help="a folder of images (default: scikit-image's pictures)")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks"), help="a folder for CSV files")
    parser.add_argument("--quick", action="store_true", help="small sizes: whether it works, not how fast it is")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch (default: as torch chooses)")
    return parser


def start(args: argparse.Namespace) -> None:
    """Set the number of threads and print what the figures below belong to."""
    if args.threads > 0:
        torch.set_num_threads(args.threads)
    print("  ".join(f"{name}: {value}" for name, value in machine().items()), flush=True)


def machine() -> dict[str, str]:
    """CPU, cores, versions and threads; the GPU where there is one."""
    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model na")]
        cpu = names[0] if names else cpu
    facts = {"CPU": cpu, "cores": str(os.cpu_count()), "load": f"{os.getloadavg()[0]:.1f}"}
    facts |= {"torch": torch.__version__, "threads": str(torch.get_num_threads()), "Python": platform.python_version()}
    facts["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "default")
    if torch.cuda.is_available():
        facts["GPU"] = torch.cuda.get_device_name()
    return facts


def denoising_data(
    path: str, dtype: torch.dtype, limit: int | None = None, size: int | None = None, sigma: float = 0.1
) -> tuple[Tensor, Tensor]:
    """True and noisy images, ``(N, 1, height, width)`` each; the noise of an image is the same in every benchmark."""
    name: Literal["float32", "float64"] = "float32" if dtype == torch.float32 else "float64"
    pictures = PatchPictures(size=size, limit=limit)
    return DenoisingDataModule(train=path, sigma=sigma, pictures=pictures, dtype=name).train_tensors()


# --- clocks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """Seconds of several calls."""

    minimum: float
    median: float


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    repeats: int,
    cuda: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time the alternatives in turns, so that whatever else the machine does hits all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            if cuda:
                torch.cuda.synchronize()
            begin = clock()
            call()
            if cuda:
                torch.cuda.synchronize()
            if turn:  # the first turn warms up
                seconds[name].append(clock() - begin)
    return {name: Timing(min(s), statistics.median(s)) for name, s in seconds.items()}


# --- runs of upper-level methods -------------------------------------------------------------------------------------


def reached(records: Iterable[Record], holds: Callable[[Record], bool]) -> float:
    """Evaluations after which ``holds`` first; infinite if never."""
    return next((r.evaluations for r in records if holds(r)), float("inf"))


def as_row(record: Record, **labels: Any) -> dict[str, Any]:
    """A line of a CSV file."""
    return labels | record.line()


# --- output ----------------------------------------------------------------------------------------------------------


def show(value: Any) -> str:
    """A number with the digits that matter."""
    if not isinstance(value, float):
        return str(value)
    if value == 0 or 1e-2 <= abs(value) < 1e5:
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:.2g}"


def print_table(title: str, rows: Sequence[Row]) -> None:
    """Aligned columns under the names of the first row."""
    names = list(rows[0])
    cells = [names, *([show(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    print(f"\n{title}")
    for line in cells:
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    print(end="", flush=True)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows and, beside them, the machine; completely or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=[*rows[0], *machine()], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, **machine()} for row in rows)
    write_files({path: text.getvalue().encode()})
    print(f"\nwritten: {path}", flush=True)
