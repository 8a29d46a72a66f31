"""The program ``recon`` run in this process, and the numbers in the files that it writes."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.numpy import load_file

from benchmarks.golden_cases.common import digest, exact, public
from recon.commands.main import main

#: entries that say when, where and with what, or how long it took
_UNSTABLE = re.compile(r"second|time|date|version|machine|python|torch|created|host|user|cpu|device|path|sha256|commit")
#: files whose names say when, or that hold pictures and logs; only their kinds are compared
_NAMED_ONLY = (".png", ".tif", ".pdf", ".dcm", ".ckpt", ".yaml", ".md", ".html", ".txt", ".log", ".lock")


def class_path(module: str, name: str) -> str:
    """The full name of a class for a configuration, wherever it lies now."""
    found = public(module, name)
    return f"{found.__module__}.{found.__qualname__}"


def configuration(folder: Path, name: str, content: dict[str, Any]) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def run(*arguments: str, folder: Path) -> dict[str, Any]:
    """The status of ``recon`` with these arguments in the folder ``folder``; where it is not 0, the error too."""
    out, errors = io.StringIO(), io.StringIO()
    with _in(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        status = main(list(arguments))
    torch.set_num_threads(1)
    if status in (130, 143):  # of the whole of this program, not of `recon`
        raise KeyboardInterrupt
    if status == 0:
        return {"status": 0}
    lines = [line for line in errors.getvalue().splitlines() if line.startswith("recon")]
    return {"status": status, "error": lines[-1:]}


@contextlib.contextmanager
def _in(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def contents(folder: Path) -> dict[str, Any]:
    """All files below ``folder``: numbers exactly, arrays by their bits, pictures and logs by their names."""
    result: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if path.name.startswith("events.out"):  # of TensorBoard
            continue
        if path.suffix == ".json":
            result[name] = stable(json.loads(path.read_text()))
        elif path.suffix == ".csv":
            result[name] = _table(path)
        elif path.suffix == ".npy":
            result[name] = _array(np.load(path))
        elif path.suffix == ".safetensors":
            result[name] = {key: _array(value) for key, value in sorted(load_file(path).items())}
        elif path.suffix in _NAMED_ONLY:
            result[name] = "there"
        else:
            result[name] = f"there, {digest(path.read_bytes())}"
    return result


def stable(value: Any) -> Any:
    """Without the entries that differ from run to run."""
    if isinstance(value, dict):
        return {k: stable(v) for k, v in value.items() if not _UNSTABLE.search(k.lower())}
    if isinstance(value, list):
        return [stable(v) for v in value]
    return exact(value)


def _table(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{str(k): v for k, v in row.items() if not _UNSTABLE.search(str(k).lower())} for row in rows]


def _array(values: np.ndarray) -> str:
    return f"{values.dtype} {list(values.shape)} {digest(np.ascontiguousarray(values).tobytes())}"
