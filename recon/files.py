"""Files that are written completely or not at all."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write several files so that an error or a kill leaves no half-written one.

    Everything is first written, and flushed to the disk, under temporary names in the same folders; only when all of
    it is there do the files get their names. Folders that are missing are made.

    Raises:
        OSError: the disk is full, a folder cannot be made or written to; the message names the file.
    """
    written: list[tuple[Path, Path]] = []
    path = Path()
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
            written.append((temporary, path))
            _write(temporary, content)
        for temporary, path in written:
            temporary.replace(path)
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        for temporary, _ in written:
            temporary.unlink(missing_ok=True)


def prepare_folder(folder: Path) -> None:
    """Make a folder for results if it is missing, and see that it can be written to, before any work is done.

    Raises:
        OSError: it cannot be made or written to, or is a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
