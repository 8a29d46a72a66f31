"""Compiled libraries of a copy of the tree, quickly: for :mod:`benchmarks.mutations`."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import NamedTuple

#: what files of compiled libraries end with
SUFFIXES = (".cpp", ".hpp", ".inc")


class Library(NamedTuple):
    """A table of ``ext-modules``: its name with dots, sources and the files that these include, and arguments."""

    name: str
    sources: list[str]
    files: list[str]
    arguments: list[str]

    def products(self, copy: Path) -> list[Path]:
        """The files that are loaded or linked: the library, and what the compiler makes of every source."""
        objects = [(copy / source).with_suffix(".mutation.o") for source in self.sources]
        return [copy / (self.name.replace(".", "/") + ".abi3.so"), *objects]


def libraries(copy: Path) -> list[Library]:
    """Those of ``pyproject.toml``."""
    tables = tomllib.loads((copy / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["ext-modules"]
    return [
        Library(t["name"], t["sources"], t["sources"] + t.get("depends", []), t["extra-compile-args"]) for t in tables
    ]


def compiler() -> str | None:
    """What the environment variable CXX names, or what there is of c++, g++ and clang++."""
    names = os.environ.get("CXX", ""), "c++", "g++", "clang++"
    return next((found for name in names if (found := shutil.which(name))), None)


def build(copy: Path, file: str | None = None) -> bool:
    """Compile the libraries that are made of ``file`` (default: all), without optimization that takes long.

    False where the compiler refuses the source. The fused operations and vectors of the real build are kept.
    """
    used = compiler()
    if used is None:
        raise RuntimeError("mutations of C++ need a compiler: install one, or choose others by --only")
    for library in libraries(copy):
        if file is not None and file not in library.files:
            continue
        target, *objects = library.products(copy)
        changed = [s for s in library.sources if file is None or file == s or not file.endswith(".cpp")]
        processes = []
        for source in changed:
            command = [used, *library.arguments, "-O1", "-fPIC", "-c", source]
            command += ["-o", str((copy / source).with_suffix(".mutation.o"))]
            processes.append(subprocess.Popen(command, cwd=copy, stderr=subprocess.DEVNULL))
        ends = [process.wait() for process in processes]  # of all, before the next ones start
        if any(ends):
            return False
        target.unlink(missing_ok=True)  # a process that has loaded it keeps the old one
        subprocess.run([used, "-shared", *map(str, objects), "-o", str(target)], cwd=copy, check=True)
    return True
