"""Which files of a folder are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from datasets.errors import DataError


def files_of(path: Path, chosen: Callable[[Path], bool], kind: str, recursive: bool = False) -> list[Path]:
    """The file itself, or the files of a folder that are not hidden and ``chosen``, in the order of their names.

    Parameters
    ----------
    path : Path
        Of the folder, or of a file.
    chosen : callable
        Whether a file of the folder is read.
    kind : str
        Of the files, and what they are known by, for the message.
    recursive : bool
        Read the folders inside the folder too.

    Raises
    ------
    DataError
        There is no such file or folder, or no such file in it.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    found = path.rglob("*") if recursive else path.iterdir()
    files = sorted(file for file in found if not file.name.startswith(".") and file.is_file() and chosen(file))
    if not files:
        raise DataError(f"{path}: the folder has no {kind}")
    return files
