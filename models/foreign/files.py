"""Files of other programs: tensors, numbers, words and containers of them, within limits, and nothing else."""

from __future__ import annotations

import json
import math
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recon.limits import archive_excess, size

#: of a file, and of all that its archive declares to hold; the checkpoints that are read here have less than 1 MB
LARGEST, LARGEST_UNPACKED = 64e6, 256e6
LARGEST_JSON = 1e6


class ForeignError(ValueError):
    """A file of another program that cannot be used; the message names it and says why."""


def read_archive(path: Path) -> dict[str, Any]:
    """What ``torch.save`` wrote, on the CPU, by ``torch.load(..., weights_only=True)``: no code in it is executed.

    Raises
    ------
    FileNotFoundError
        there is no such file.
    ForeignError
        it is too large, no archive of ``torch.save``, damaged, or holds objects other than tensors and plain values.
    """
    _check_size(path, LARGEST)
    if not zipfile.is_zipfile(path):
        raise ForeignError(f"{path}: is no archive of torch.save (PyTorch 1.6 and later), or truncated")
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
        wrong = archive_excess(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ForeignError(f"{path}: is damaged ({error})") from error
    if unpacked > LARGEST_UNPACKED or wrong:
        limit = wrong or f"would take {size(unpacked)}, but the limit is {size(LARGEST_UNPACKED)}"
        raise ForeignError(f"{path}: unpacked, it {limit}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile and pickle raise their own, and hostile files others
        reason = str(error).strip().partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise ForeignError(
            f"{path}: is damaged, or holds objects that could run code; only tensors, numbers, words and containers of "
            f"them are read ({reason})"
        ) from error
    if not isinstance(content, dict):
        raise ForeignError(f"{path}: holds a {type(content).__name__}, but must hold a dictionary")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """A configuration.

    Raises
    ------
    FileNotFoundError
        there is no such file.
    ForeignError
        it is too large, or no JSON file with names at its top level.
    """
    _check_size(path, LARGEST_JSON)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ForeignError(f"{path}: is no JSON file ({error})") from error
    if not isinstance(content, dict):
        raise ForeignError(f"{path}: must hold an object, with names")
    return content


def _check_size(path: Path, largest: float) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size > largest:
        raise ForeignError(f"{path}: has {size(path.stat().st_size)}, but the limit of such files is {size(largest)}")


def tensors(state: object, shapes: Mapping[str, tuple[int, ...]], path: Path) -> dict[str, Tensor]:
    """The entries of a state dictionary, which must be exactly these, in float64.

    Raises
    ------
    ForeignError
        entries are missing, unknown, no dense tensors of floating-point numbers, of other shapes, or not finite.
    """
    if not isinstance(state, dict):
        raise ForeignError(f"{path}: its state_dict is a {type(state).__name__}, but must map names to tensors")
    if state.keys() != shapes.keys():
        missing = [name for name in shapes if name not in state]
        unknown = [str(name) for name in state if name not in shapes]
        wrong = [f"{what} {', '.join(n)}" for what, n in (("lacks", missing), ("has also", unknown)) if n]
        raise ForeignError(f"{path}: its state_dict {' and '.join(wrong)}; needed are exactly {', '.join(shapes)}")
    found = {}
    for name, shape in shapes.items():
        value = state[name]
        if not isinstance(value, Tensor) or value.layout != torch.strided or not value.dtype.is_floating_point:
            raise ForeignError(f"{path}: {name} is no dense tensor of floating-point numbers")
        if tuple(value.shape) != shape:
            raise ForeignError(f"{path}: {name} has the shape {tuple(value.shape)}, but must have {shape}")
        found[name] = value.detach().double()
        if not bool(found[name].isfinite().all()):
            raise ForeignError(f"{path}: {name} holds values that are NaN or infinite")
    return found


def number(values: Mapping[str, Any], name: str, path: Path, low: float = -math.inf, high: float = math.inf) -> float:
    """A number of a configuration, within [low, high].

    Raises
    ------
    ForeignError
        it is missing, no number, or out of range.
    """
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high or math.isinf(value):
        raise ForeignError(f"{path}: {name} is {value!r}, but must be a number between {low:g} and {high:g}")
    return float(value)


def whole(values: Mapping[str, Any], name: str, path: Path, low: int, high: int) -> int:
    """A whole number of a configuration, as :func:`number`."""
    value = number(values, name, path, low, high)
    if value != int(value):
        raise ForeignError(f"{path}: {name} is {value:g}, but must be a whole number")
    return int(value)


def wholes(values: Mapping[str, Any], name: str, path: Path, low: int, high: int) -> list[int]:
    """A list of 1 to 8 whole numbers of a configuration, as :func:`number`."""
    found = values.get(name)
    if not isinstance(found, list) or not 1 <= len(found) <= 8:
        raise ForeignError(f"{path}: {name} is {found!r}, but must be a list of 1 to 8 whole numbers")
    return [whole({name: value}, name, path, low, high) for value in found]


def section(config: Mapping[str, Any], name: str, path: Path, known: set[str]) -> dict[str, Any]:
    """A section of a configuration, with no entries but the known ones.

    Raises
    ------
    ForeignError
        it is missing, or has others, which might change what the parameters mean.
    """
    found = config.get(name)
    if not isinstance(found, dict):
        raise ForeignError(f"{path}: lacks the section {name}")
    if unknown := sorted(str(key) for key in found.keys() - known):
        raise ForeignError(
            f"{path}: {name} has {', '.join(unknown)}, which is not known; known: {', '.join(sorted(known))}"
        )
    return found
