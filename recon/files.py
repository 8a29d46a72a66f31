"""Files that are written completely or not at all, and never with values that are not finite.

Everything that this program writes goes through :func:`write_files`: arrays, pictures and reports are encoded here, so
that no way around the check is left.
"""

from __future__ import annotations

import io
import json
import math
import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

#: bytes as they are; an array, encoded as the suffix says; the content of a JSON file
Content = bytes | np.ndarray | Mapping[str, object]


class NotFiniteError(ValueError):
    """Values that are NaN or infinite, where a file was to be written; the message names it."""


def write_files(files: Mapping[Path, Content]) -> None:
    """Write several files so that an error or a kill leaves no half-written one.

    Everything is first encoded and written, and flushed to the disk, under temporary names in the same folders; only
    when all of it is there do the files get their names. Folders that are missing are made.

    Parameters
    ----------
    files
        bytes are written as they are. Arrays are encoded by the suffix: ``.npy`` as they are, ``.tif`` as float32,
        ``.png`` as 8 bits, from floating-point values on [0, 1], clipped. Mappings become JSON.

    Raises
    ------
    NotFiniteError
        (a ValueError) an array or a mapping holds NaN or infinite values, also those that only float32 cannot hold;
        nothing is written then.
    OSError
        the disk is full, a folder cannot be made or written to; the message names the file.
    """
    contents = {path: encoded(path, content) for path, content in files.items()}
    written: list[tuple[Path, Path]] = []
    path = Path()
    try:
        for path, content in contents.items():
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


def encoded(path: Path, content: Content) -> bytes:
    """The bytes of a file, see :func:`write_files`; ``path`` gives the kind, and its name to errors.

    Raises
    ------
    NotFiniteError
        (a ValueError) as :func:`write_files`.
    ValueError
        an array for a file of another suffix, or values that JSON does not know.
    """
    if isinstance(content, bytes):
        return content
    check_finite(content, str(path))
    if isinstance(content, Mapping):
        try:
            return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
        except TypeError as error:
            raise ValueError(f"{path}: cannot be written as JSON ({error})") from error
    buffer = io.BytesIO()
    if path.suffix == ".npy":
        np.save(buffer, content, allow_pickle=False)
    elif path.suffix == ".tif":
        import tifffile  # not before a TIFF file is written: it takes long to import

        with np.errstate(over="ignore"):
            values = content.astype(np.float32)
        if not np.isfinite(values).all():
            raise NotFiniteError(
                f"{path}: not written, its values reach {np.abs(content).max():.3g}, more than float32 holds"
            )
        tifffile.imwrite(buffer, values)
    elif path.suffix == ".png":
        pixels = content if content.dtype == np.uint8 else np.rint(255 * content.clip(0, 1)).astype(np.uint8)
        Image.fromarray(pixels).save(buffer, format="png")
    else:
        raise ValueError(f"{path}: arrays are written as .npy, .tif and .png")
    return buffer.getvalue()


def check_finite(content: object, name: str, entry: str = "") -> None:
    """Check an array, or the numbers in nested mappings and lists.

    Raises
    ------
    NotFiniteError
        (a ValueError) some are NaN or infinite; it gives ``name`` and the entry.
    """
    where = f"{name}: not written" + (f", {entry}" if entry else "")
    if isinstance(content, np.ndarray):
        bad = content.size - int(np.count_nonzero(np.isfinite(content)))
        if bad:
            raise NotFiniteError(f"{where}: {bad} of {content.size} values are NaN or infinite")
    elif isinstance(content, float) and not math.isfinite(content):
        raise NotFiniteError(f"{where} is {content}; numbers that are written are finite")
    elif isinstance(content, Mapping):
        for key, value in content.items():
            check_finite(value, name, f"{entry}.{key}" if entry else str(key))
    elif isinstance(content, (list, tuple)):
        for number, value in enumerate(content):
            check_finite(value, name, f"{entry}[{number}]")


def prepare_folder(folder: Path) -> None:
    """Make a folder for results if it is missing, and see that it can be written to, before any work is done.

    Raises
    ------
    OSError
        it cannot be made or written to, or is a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
