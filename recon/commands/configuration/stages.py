"""Trainings in several stages: what every stage changes of the common part of a configuration.

A configuration of ``recon fit`` may have a list ``stages``, whose entries have ``model``, ``data`` and ``trainer`` of
their own, merged into what the file has beside it, and perhaps a ``name``. Mappings are merged, everything else is
replaced; a class other than the common one replaces it with its arguments. Only of ``model`` itself those arguments
stay that the other class takes, too: the regularizer, above all.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from recon.commands.configuration.classes import takes
from recon.commands.configuration.yaml_files import read_yaml

STAGES = "stages"
SECTIONS = ("model", "data", "trainer")
KEYS = ("name", *SECTIONS)


@dataclass(frozen=True)
class StageConfiguration:
    """A stage: its name, and the whole configuration of ``recon fit`` that it is."""

    name: str
    content: dict[str, object]


def read_stages(path: Path) -> list[StageConfiguration] | None:
    """The stages of the configuration in a YAML file; None if it has no ``stages``.

    Raises
    ------
    ValueError
        ``stages`` is no such list; the message names the stage and the key.
    OSError
        The file, or one that it names as a section, cannot be read.
    """
    content = read_yaml(path)
    if not isinstance(content, dict) or STAGES not in content:
        return None
    entries = content[STAGES]
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: stages is {entries!r}, but must be a list with a mapping for every stage")
    common = _resolved({key: value for key, value in content.items() if key != STAGES}, path.parent)
    stages: list[StageConfiguration] = []
    for i, entry in enumerate(entries):
        name = _checked(path, i + 1, entry)
        if name in [stage.name for stage in stages]:
            raise ValueError(f"{path}: two stages have the name {name}; give every stage another one")
        own = _resolved({key: value for key, value in entry.items() if key != "name"}, path.parent)
        whole = common | {key: merge(common.get(key), value, key == "model") for key, value in own.items()}
        stages.append(StageConfiguration(name, whole))
    return stages


def _checked(path: Path, number: int, entry: object) -> str:
    """The name of a stage, ``stage`` if it has none."""
    if not isinstance(entry, dict):
        raise ValueError(f"{path}: stage {number} is {entry!r}, but must be a mapping with {', '.join(KEYS)}")
    name = entry.get("name", f"stage{number}")
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+-]*", name):
        raise ValueError(f"{path}: stage {number} has the name {name!r}; names are of letters, digits, and _ . + -")
    if unknown := [str(key) for key in entry if key not in KEYS]:
        raise ValueError(f"{path}: stage {name} has no use for {', '.join(unknown)}; valid are {', '.join(KEYS)}")
    trainer = entry.get("trainer")
    if isinstance(trainer, dict) and "default_root_dir" in trainer:
        raise ValueError(
            f"{path}: stage {name} has trainer.default_root_dir; all stages have one, beside `stages` or as an option"
        )
    return name


def _resolved(content: Mapping[str, object], folder: Path) -> dict[str, object]:
    """With the content of the files that stand for sections, relative to ``folder``."""
    return {
        key: read_yaml(folder / value) if key in SECTIONS and isinstance(value, str) else value
        for key, value in content.items()
    }


def merge(common: object, own: object, keep: bool = False) -> object:
    """A section of the common part with what a stage changes of it.

    Parameters
    ----------
    common, own : plain values
        As read from a file; they are not changed.
    keep : bool
        Whether arguments of ``common`` stay that the other class of ``own`` takes, too.
    """
    if not isinstance(common, Mapping) or not isinstance(own, Mapping):
        return own
    path = own.get("class_path")
    if path is not None and path != common.get("class_path", path):
        if not keep:
            return own
        arguments = common.get("init_args")
        if isinstance(arguments, Mapping):
            common = {"init_args": {key: value for key, value in arguments.items() if _takes(path, key)}}
    return {**common, **{key: merge(common.get(key), value) for key, value in own.items()}}


def _takes(path: object, key: str) -> bool:
    """Whether the class takes the argument; yes if nobody knows, for whoever reads the configuration to refuse it."""
    try:
        return takes(pkgutil.resolve_name(str(path)), key)
    except (ImportError, AttributeError, ValueError):
        return True
