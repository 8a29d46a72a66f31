"""``summary.json``, beside every result of every program: what made it, how it ended, its main numbers.

=========== ==========================================================================================================
command     the program and what it was to make: ``reconstruct``, ``compare``, ``fit``, ``demo``, ``reproduce tv-dfo``
version     of this library
seconds     of the work; of a training that went on, of all of it
status      how it ended: ``finished``, ``failed`` (some part of it), ``accuracy not reached``, ``incomplete`` (more is
            to come), or as a method of learning says it
written     names of the files and folders, sorted
=========== ==========================================================================================================

All other entries are the main numbers of the program. Numbers that are infinite or NaN are null.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from models.files.storage import library_version
from recon.commands.output.runs import finite
from recon.files import write_files

SUMMARY = "summary.json"


def summary(command: str, seconds: float, status: str, numbers: Mapping[str, object]) -> dict[str, object]:
    """The entries of the module's table but ``written``, and ``numbers``."""
    head = {"command": command, "version": library_version(), "seconds": round(seconds, 2), "status": status}
    return head | finite(numbers)


def write_summary(folder: Path, command: str, seconds: float, status: str, numbers: Mapping[str, object]) -> None:
    """Write ``summary.json`` into a folder that holds what this command has written, and nothing else.

    Parameters
    ----------
    folder : Path
        Of the result.
    command, seconds, status
        See the module.
    numbers : Mapping[str, object]
        The main numbers, at the top level of the file.

    Raises
    ------
    ValueError
        A number inside of its entries is not finite.
    OSError
        The file cannot be written.
    """
    found = {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {SUMMARY}
    content = summary(command, seconds, status, numbers) | {"written": sorted(found)}
    write_files({folder / SUMMARY: content})
