"""Which figures there are: modules of ``figures``, and races that ``configs/figures`` describes."""

from __future__ import annotations

import importlib
import itertools
import os
import pkgutil
from pathlib import Path
from types import ModuleType

from recon.commands.reproduce import figures

FOLDER = Path(__file__).resolve().parents[3] / "configs" / "figures"


def names() -> list[str]:
    """The figures that can be made."""
    return sorted({*programs(), *races()})


def descriptions() -> dict[str, str]:
    """What each figure shows: the beginning of the docstring of its module, or of the comment in its configuration."""
    found = {}
    for name in names():
        if name in programs():
            text = (program(name).__doc__ or "").strip().partition("\n\n")[0]
        else:
            lines = (FOLDER / name / "quick.yaml").read_text().splitlines()
            text = " ".join(line[1:] for line in itertools.takewhile(lambda line: line.startswith("#"), lines))
            text = text.partition("  recon reproduce")[0]
        found[name] = " ".join(text.split())
    return found


def programs() -> list[str]:
    """Those that are programs of their own; the others are runs that a configuration describes."""
    return [module.name.replace("_", "-") for module in pkgutil.iter_modules(figures.__path__)]


def program(name: str) -> ModuleType:
    """The module of one of these, imported now."""
    return importlib.import_module(f"{figures.__name__}.{name.replace('-', '_')}")


def data_folder(name: str) -> Path:
    """The folder of pictures in ``$RECON_DATA`` or ``data``.

    Raises
    ------
    ValueError
        there is none.
    """
    places = [Path(place) for place in (os.environ.get("RECON_DATA"), "data") if place]
    for folder in (place / name for place in places):
        if folder.is_dir():
            return folder
    raise ValueError(f"there is no folder {name} in $RECON_DATA or data; set RECON_DATA to the folder that has it")


def races() -> list[str]:
    """The figures that ``configs/figures`` describes."""
    return sorted(path.name for path in FOLDER.glob("*") if path.is_dir())
