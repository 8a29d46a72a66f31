"""The configuration of ``recon compare``, see :mod:`recon.commands.compare.main`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from recon.commands.configuration.data import data_section
from recon.commands.configuration.yaml_files import read_yaml

FLAGS = ("nonnegative", "weighted")
NUMBERS = ("accuracy", "validation_images", "show", *FLAGS)
KEYS = {"data", "methods", *NUMBERS}
METHOD_KEYS = {"baseline": {"mu"}, "model": {"unchecked", "trust"}, "config": set[str]()}


class Section(TypedDict):
    """The data module of a configuration."""

    class_path: str
    init_args: dict[str, object]


class Entry(TypedDict, total=False):
    """A method of a configuration: one of the first three, and options of it."""

    baseline: str
    model: str
    config: str
    mu: float
    unchecked: bool
    trust: list[str]


@dataclass(frozen=True)
class Comparison:
    """A configuration that was read, see the module; ``methods`` by name, ``folder`` is what paths are relative to."""

    folder: Path
    data: Section
    methods: dict[str, Entry]
    accuracy: float | None = None
    validation_images: int = 4
    show: int = 0
    nonnegative: bool = False
    weighted: bool = False


def read_comparison(path: Path, folders: Mapping[str, str] | None = None) -> Comparison:
    """The configuration in a YAML file; ``folders`` (train, val, test) replace those of the data.

    Raises
    ------
    ValueError
        it is no such configuration.
    OSError
        the file cannot be read.
    """
    content = read_mapping(path)
    if not content.keys() <= KEYS:
        unknown = ", ".join(sorted(map(str, content.keys() - KEYS)))
        raise ValueError(f"{path}: has no use for {unknown}; valid are {', '.join(sorted(KEYS))}")
    data, methods = data_section(content, path.parent), content.get("methods")
    if not isinstance(data, dict) or not isinstance(data.get("class_path"), str):
        raise ValueError(f"{path}: needs `data` with class_path and init_args of a data module")
    if not isinstance(methods, dict) or not methods:
        raise ValueError(f"{path}: needs `methods`, which maps names to methods")
    for name, entry in methods.items():
        _check_entry(path, name, entry)
    section: Section = {
        "class_path": data["class_path"],
        "init_args": {**(data.get("init_args") or {}), **(folders or {})},
    }
    numbers = {key: content[key] for key in NUMBERS if key in content}
    _check_numbers(path, numbers)
    return Comparison(path.parent, section, methods, **numbers)


def _check_numbers(path: Path, numbers: Mapping[str, object]) -> None:
    accuracy = numbers.get("accuracy", 1.0)
    if isinstance(accuracy, bool) or not isinstance(accuracy, (int, float)) or not 0 < accuracy < math.inf:
        raise ValueError(f"{path}: accuracy is {accuracy!r}, but must be a positive number")
    for key, least in (("validation_images", 1), ("show", 0)):
        value = numbers.get(key, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{path}: {key} is {value!r}, but must be an integer, at least {least}")
    for key in FLAGS:
        if not isinstance(numbers.get(key, False), bool):
            raise ValueError(f"{path}: {key} is {numbers[key]!r}; valid are true and false")


def _check_entry(path: Path, name: object, entry: object) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+-]*", name):
        raise ValueError(f"{path}: a method is called {name!r}; names are of letters, digits, and _ . + -")
    kinds = [key for key in METHOD_KEYS if isinstance(entry, dict) and key in entry]
    if not isinstance(entry, dict) or len(kinds) != 1:
        found = "neither" if not kinds else " and ".join(kinds)
        raise ValueError(
            f"{path}: the method {name} has {found}; it needs one of `model` (a file), `config` (of recon fit) and "
            "`baseline` (fbp, zero_filled, tv)"
        )
    unknown = entry.keys() - METHOD_KEYS[kinds[0]] - {kinds[0]}
    if unknown or not isinstance(entry[kinds[0]], str):
        what = ", ".join(sorted(map(str, unknown))) or f"{kinds[0]}: {entry[kinds[0]]!r}"
        raise ValueError(f"{path}: the method {name} cannot have {what}")
    mu = entry.get("mu", 0.0)
    if isinstance(mu, bool) or not isinstance(mu, (int, float)) or not 0 <= mu < math.inf:
        raise ValueError(f"{path}: mu of the method {name} is {mu!r}, but must be a number that is not negative")
    if not isinstance(entry.get("unchecked", False), bool):
        raise ValueError(f"{path}: unchecked of the method {name} is {entry['unchecked']!r}; valid are true and false")
    trust = entry.get("trust", [])
    if not isinstance(trust, list) or not all(isinstance(module, str) for module in trust):
        raise ValueError(f"{path}: trust of the method {name} is {trust!r}, but must be a list of Python modules")


def read_mapping(path: Path) -> dict[str, Any]:
    """The content of a configuration.

    Raises
    ------
    ValueError
        it is none.
    OSError
        the file cannot be read.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: is no configuration, which maps names to values")
    return content
