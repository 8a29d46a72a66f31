"""Golden files: what a change of the structure must keep, bit for bit, on one machine.

    OMP_NUM_THREADS=1 python -m benchmarks.golden write DIR      # with the version that is right
    OMP_NUM_THREADS=1 python -m benchmarks.golden compare DIR    # with the version that was changed
    OMP_NUM_THREADS=1 python -m benchmarks.golden compare DIR --only solves energies

``write`` computes every case and writes DIR/GROUP.json, and into DIR/kept the models and checkpoints that later ones
must still read. ``compare`` computes all of it again, goes on from those files, and prints every difference
(group, case, field: old, new); the status is 1 if there is any. A case that raises an error has its message as result.

OMP_NUM_THREADS=1 is required, because sums are added in another order by more threads, which changes the last bits; so
do other processors and other versions of torch: ``compare`` says first if they differ from those of the files.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.golden_cases.common import Context

GROUPS = ("solves", "energies", "methods", "models", "data", "reports")
_ENVIRONMENT = "environment.json"
ROOT = Path(__file__).resolve().parents[1]
_CLASS = re.compile(r"\b(?:recon|models|datasets)(?:\.[a-z_0-9]+)*\.([A-Z]\w*)")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("write", "compare"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, help="groups (default: all)")
    args = parser.parse_args(argv)
    if os.environ.get("OMP_NUM_THREADS") != "1":
        parser.error("set OMP_NUM_THREADS=1 in the environment: with more threads the last bits change")
    torch.set_num_threads(1)
    folder, writing = args.folder.resolve(), args.action == "write"
    if not writing:
        _say_where(folder)
    differences = 0
    for group in args.only:
        began = time.perf_counter()
        found = _computed(group, folder / "kept" / group, writing)
        seconds = time.perf_counter() - began
        path = folder / f"{group}.json"
        if writing:
            path.write_text(json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
            raised = [name for name, result in found.items() if "raises" in result]
            print(f"{group}: {len(found)} cases in {seconds:.1f} s" + _listed("; these raise errors:", raised))
        else:
            lines = list(differing(json.loads(path.read_text(encoding="utf-8")), found, group))
            print("\n".join([*lines, f"{group}: {len(found)} cases, {len(lines)} differences, {seconds:.1f} s"]))
            differences += len(lines)
        sys.stdout.flush()
    if writing:
        (folder / _ENVIRONMENT).write_text(json.dumps(_environment(), indent=1) + "\n", encoding="utf-8")
    return int(differences > 0)


def _computed(group: str, kept: Path, writing: bool) -> dict[str, Any]:
    """All cases of a group, as they are after they went through JSON."""
    if writing:
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
    elif not kept.is_dir():
        raise FileNotFoundError(f"{kept}: no such folder; the golden files of {group} were not written there")
    with tempfile.TemporaryDirectory() as work:
        os.environ["RECON_CACHE"] = str(Path(work) / "cache")
        os.environ["RECON_DATA"] = str(Path(work) / "no_data")  # built-in pictures, whatever lies about
        folder = Path(work).resolve() / "work"
        folder.mkdir()
        found = importlib.import_module(f"benchmarks.golden_cases.{group}").compute(Context(folder, kept, writing))
    texts = {str(folder): "<work>", str(kept): "<kept>", str(ROOT): "<root>"}
    return json.loads(json.dumps(without_places(found, texts)))


def without_places(value: Any, folders: dict[str, str]) -> Any:
    """Without names of folders, and with classes of the project without the modules that they lie in."""
    if isinstance(value, dict):
        return {without_places(k, folders): without_places(v, folders) for k, v in value.items()}
    if isinstance(value, list):
        return [without_places(v, folders) for v in value]
    if isinstance(value, str):
        for folder, word in folders.items():
            value = value.replace(folder, word)
        return _CLASS.sub(r"\1", value)
    return value


def differing(old: Any, new: Any, name: str) -> Iterator[str]:
    """A line for every value that differs, is gone or is new."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if key not in new:
                yield f"{name} / {key}: gone, was {_short(old[key])}"
            elif key not in old:
                yield f"{name} / {key}: new, {_short(new[key])}"
            else:
                yield from differing(old[key], new[key], f"{name} / {key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from differing(before, after, f"{name} [{number}]")
    elif old != new or type(old) is not type(new):
        yield f"{name}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else text[:300] + " ..."


def _listed(words: str, names: list[str]) -> str:
    return "".join([words, *(f"\n    {name}" for name in names)]) if names else ""


def _environment() -> dict[str, str]:
    info, cpu = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    versions = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
    return {"processor": cpu, **versions}


def _say_where(folder: Path) -> None:
    path = folder / _ENVIRONMENT
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; `write` makes the golden files")
    for line in differing(json.loads(path.read_text(encoding="utf-8")), _environment(), "not where they were written"):
        print(line)


if __name__ == "__main__":
    sys.exit(main())
