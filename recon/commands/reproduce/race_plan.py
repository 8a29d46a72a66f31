"""The YAML of a race, see :mod:`recon.commands.reproduce.race`: what it may say, and how it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import yaml

from datasets import DenoisingDataModule, MRIDataModule
from recon.commands.configuration.data import data_section
from recon.commands.reproduce.race_pictures import slug

Values = Mapping[str, object]

MODULES = (DenoisingDataModule.__name__, MRIDataModule.__name__)


class Needed(TypedDict):
    """What the configuration of every figure has, see :mod:`recon.commands.reproduce.race`."""

    data: dict[str, object]
    regularizer: Values
    budget: float
    runs: dict[str, Values]


class Plan(Needed, total=False):
    """The configuration of a figure: what it may have as well."""

    mu: float
    reference: str
    true_losses: int


def read_figure(path: Path) -> Plan:
    """The configuration of a figure.

    Raises
    ------
    ValueError
        it is none.
    OSError
        the file cannot be read.
    """
    try:
        content: Plan = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    needed, optional = Plan.__required_keys__, Plan.__optional_keys__
    if not isinstance(content, dict) or content.keys() - optional != needed:
        raise ValueError(
            f"{path}: must have {', '.join(sorted(needed))}, may have {', '.join(sorted(optional))}, and nothing else"
        )
    data = data_section(content, path.parent)
    budget, runs = content["budget"], content["runs"]
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget < math.inf:
        raise ValueError(f"{path}: budget is {budget!r}, but must be a positive number of evaluations")
    if not isinstance(runs, dict) or not runs or not isinstance(data, dict):
        raise ValueError(f"{path}: data and runs must map names to values")
    content["data"] = data
    if data.get("class", DenoisingDataModule.__name__) not in MODULES:
        raise ValueError(f"{path}: data.class is {data['class']!r}, but must be {' or '.join(MODULES)}")
    for name, entry in runs.items():
        if not isinstance(entry, dict) or not entry.keys() <= {"optimizer", "solver"}:
            raise ValueError(f"{path}: the run {name} may have `optimizer` and `solver`, and nothing else")
    slugs = [slug(str(name)) for name in runs]
    if len(set(slugs)) < len(slugs):
        raise ValueError(f"{path}: runs need names that differ in letters or digits, got {', '.join(runs)}")
    if content.get("reference", next(iter(runs))) not in runs:
        raise ValueError(f"{path}: reference is {content['reference']!r}, but must be one of {', '.join(runs)}")
    true = content.get("true_losses", 0)
    if isinstance(true, bool) or not isinstance(true, int) or true < 0:
        raise ValueError(f"{path}: true_losses is {true!r}, but must be a number of iterations")
    return content
