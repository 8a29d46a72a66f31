"""YAML files of strangers: geometries and configurations, of bounded size, depth and expansion."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from datasets.readers.pictures import DataError

#: bytes of a file, levels of nesting, and nodes with all aliases written out
MOST_BYTES, MOST_LEVELS, MOST_NODES = 10_000_000, 50, 1_000_000
#: of views and of pixels along one axis, in a geometry
MOST_COUNT = 1_000_000


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, in plain values.

    Raises
    ------
    OSError
        the file cannot be read.
    DataError
        it is no YAML, a report of ``recon reconstruct``, or exceeds a bound, see :func:`check_yaml`.
    """
    text = check_yaml(path)
    try:
        content = yaml.safe_load(text)
    # numbers and dates that are none end in ValueError, deep nesting in RecursionError, and some in other errors
    except Exception as error:
        raise DataError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    if isinstance(content, dict) and {"certificate", "images"} <= content.keys():
        schema = content.get("schema", 1)  # which the first one does not say
        raise DataError(f"{path}: is a report of recon reconstruct, of schema {schema}; programs write reports only")
    return content


def check_yaml(path: Path) -> str:
    """The text of a YAML file, after its nodes were counted without making them.

    An alias counts as all that it stands for: nine levels of nine aliases are no bytes, and a billion nodes for whoever
    writes them out.

    Raises
    ------
    OSError
        the file cannot be read.
    DataError
        it is no YAML; too long, nested too deeply, too many nodes, or an alias inside of what it stands for.
    """
    if path.stat().st_size > MOST_BYTES:
        raise DataError(f"{path}: has {path.stat().st_size} bytes; YAML files have at most {MOST_BYTES}")
    try:
        text = path.read_text(encoding="utf-8")
        _count(text)
    except OSError:
        raise
    except Exception as error:
        raise DataError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    return text


def _count(text: str) -> None:
    anchors: dict[str, int] = {}
    # of everything that is open: its anchor and its nodes so far
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) > MOST_LEVELS:
                raise ValueError(f"nested more than {MOST_LEVELS} levels deep")
            continue
        anchor, count = None, 0
        if isinstance(event, yaml.ScalarEvent):
            anchor, count = event.anchor, 1
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise ValueError(f"the alias *{event.anchor} stands for nothing before it, or for what it is part of")
            count = anchors[event.anchor]
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            anchor, count = open_nodes.pop()
        if anchor is not None:
            anchors[anchor] = count
        outer, before = open_nodes[-1]
        open_nodes[-1] = outer, before + count
        if before + count > MOST_NODES:
            raise ValueError(f"more than {MOST_NODES} values, aliases written out")


def check_counts(values: Any, path: Path, name: str = "") -> None:
    """Check that no whole number in a geometry is larger than views and pixels can be.

    Raises
    ------
    DataError
        one is; the message names it.
    """
    if isinstance(values, Mapping):
        for key, value in values.items():
            check_counts(value, path, f"{name}.{key}" if name else str(key))
    elif isinstance(values, (list, tuple)):
        for value in values:
            check_counts(value, path, name)
    elif isinstance(values, (int, float)) and name.rpartition(".")[2] in _COUNTS and abs(values) > MOST_COUNT:
        raise DataError(f"{path}: {name} is {values}; valid are at most {MOST_COUNT}")


_COUNTS = ("views", "image_shape", "detector_pixels")
