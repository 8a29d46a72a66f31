"""Whether the tests notice when a bound gets smaller: mutations of the certificates, one at a time.

Every mutation of ``benchmarks/mutations`` replaces a text of one file of a temporary copy of the tree, never of the
tree itself, compiles it where it is C++, and runs the few test files that ought to fail then. Run from the top folder:

    python -m benchmarks.mutations                    # all; an hour on one core
    python -m benchmarks.mutations --only native/     # those of the compiled kernels of filters; half of it
    python -m benchmarks.mutations --only certificate # those of files whose name holds this
    python -m benchmarks.mutations --check            # only whether every text still occurs exactly once

Ends with status 1 if a mutation survives of which nothing explains why it is no fault, if a text does not occur exactly
once (the source has changed: change the list, too), or if a test fails without any mutation. Every mutation is a
process of its own, forked where torch is loaded already (POSIX only).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.mutations.building import SUFFIXES, build, libraries
from benchmarks.mutations.lower import LOWER
from benchmarks.mutations.mutation import Mutation
from benchmarks.mutations.native import COMPILED
from benchmarks.mutations.regularizers import REGULARIZERS
from benchmarks.mutations.upper import UPPER

TOP = Path(__file__).resolve().parents[2]
#: what the tests of mathematics need
FOLDERS = ("recon", "models", "datasets", "tests", "configs")
#: of a mutation that is no C++
UNBUILT = "does not compile"
#: seconds after which a mutation counts as noticed: it does not end any more
LIMIT = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutations of files whose path holds this text")
    parser.add_argument("--check", action="store_true", help="only whether every text occurs exactly once")
    args = parser.parse_args()
    chosen = [m for m in UPPER + LOWER + REGULARIZERS + COMPILED if args.only in m.file]
    stale = [m for m in chosen if (TOP / m.file).read_text(encoding="utf-8").count(m.old) != 1]
    for m in stale:
        print(f"{m.file}: does not occur exactly once, mend the list: {m.old!r}")
    if not stale and not args.check:
        sys.exit(campaign(chosen))
    print(f"{len(chosen)} mutations, {len(stale)} of them stale")
    sys.exit(int(bool(stale)))


def campaign(chosen: Sequence[Mutation]) -> int:
    """Run them all and print the table; the exit status."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mutations-") as name:
        copy = Path(name)
        for folder in FOLDERS:
            shutil.copytree(TOP / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(TOP / "pyproject.toml", copy)
        compiled = [m for m in chosen if m.file.endswith(SUFFIXES)]
        if compiled and not build(copy):
            print("the compiled libraries cannot be built without any mutation")
            return 1
        tests = sorted({t for m in chosen for t in m.tests})
        if (failed := run(copy, tests))[0] != "passed":
            print(f"the tests {failed[0]} without any mutation: {' '.join(tests)}")
            return 1
        survivors = []
        print("| | seconds | file | old | new |\n|---|---|---|---|---|")
        for m in chosen:
            outcome, seconds = mutated(copy, m)
            word = "SURVIVED" if outcome == "passed" else outcome
            print(f"| {word} | {seconds:.1f} | {m.file} | `{short(m.old)}` | `{short(m.new)}` |", flush=True)
            survivors += [m] if outcome in ("passed", UNBUILT) else []
    unexplained = [m for m in survivors if not m.why]
    killed = [m for m in chosen if m.why and m not in survivors]
    print(f"\n{len(chosen)} mutations, {len(survivors)} survive, {len(unexplained)} of them unexplained")
    for m in survivors:
        print(f"- {m.file}: `{short(m.old)}` -> `{short(m.new)}`: {m.why or 'UNEXPLAINED'}")
    for m in killed:
        print(f"- {m.file}: `{short(m.old)}` is noticed, although the list explains why it would not be")
    return int(bool(unexplained))


def mutated(copy: Path, m: Mutation) -> tuple[str, float]:
    """What :func:`run` says of the copy with this mutation, which is as before afterwards."""
    path = copy / m.file
    source = path.read_text(encoding="utf-8")
    built = {p: p.read_bytes() for lib in libraries(copy) if m.file in lib.files for p in lib.products(copy)}
    path.write_text(source.replace(m.old, m.new), encoding="utf-8")
    try:
        if m.file.endswith(SUFFIXES) and not build(copy, m.file):
            return UNBUILT, 0.0
        return run(copy, m.tests)
    finally:
        path.write_text(source, encoding="utf-8")
        for product, content in built.items():
            product.unlink(missing_ok=True)  # it may be loaded: a new file, not a new content
            product.write_bytes(content)


def run(copy: Path, tests: Sequence[str]) -> tuple[str, float]:
    """Whether the test files of ``copy`` passed, failed, or did not end; and the seconds."""
    process = multiprocessing.get_context("fork").Process(target=_tests, args=(copy, tests))
    begin = time.monotonic()
    process.start()
    process.join(LIMIT * max(1, len(tests)))
    if process.is_alive():
        process.kill()
        process.join()
        return "does not end", time.monotonic() - begin
    return "passed" if process.exitcode == 0 else "failed", time.monotonic() - begin


def _tests(copy: Path, tests: Sequence[str]) -> None:
    """In a process of its own: the tree that is imported is ``copy``, and nothing is printed."""
    if any(name.split(".")[0] in FOLDERS for name in sys.modules):
        os._exit(3)  # the tree itself is loaded already: its files, not those of the copy, would be tested
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    os.chdir(copy)
    sys.dont_write_bytecode = True
    sys.path[:] = [str(copy), *(p for p in sys.path if Path(p or ".").resolve() != TOP)]
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])
    sys.stdout.flush()
    os._exit(int(code))


def short(text: str, length: int = 70) -> str:
    """On one line, and not long."""
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= length else line[: length - 3] + "..."


if __name__ == "__main__":
    for library in ("hypothesis", "odl", "scipy.special", "skimage"):  # loaded before the forks, like torch
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    main()
