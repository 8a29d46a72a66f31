"""What readers raise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np


class DataError(ValueError):
    """Data that cannot be used; the message names the file or picture and says what would be valid."""


@contextlib.contextmanager
def reading(path: str | Path, kind: str) -> Iterator[None]:
    """Within it, errors of any kind become a ``DataError`` that names the file: libraries raise many for damaged ones.

    ``DataError`` itself, and packages that are not installed, pass.

    Raises
    ------
    DataError
        also where there is no such file.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file")
    try:
        yield
    except (DataError, ImportError):
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path}: cannot be read as {kind}, it may be truncated or corrupt, or of another kind ({text})"
        ) from error


def check_finite(values: np.ndarray, path: str | Path, what: str = "") -> None:
    """Raise ``DataError`` where values, those of the dataset ``what`` of a file, are NaN or infinite."""
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        said = f"{what} has {bad} of {values.size} values that" if what else f"{bad} of {values.size} values"
        raise DataError(f"{path}: {said} are NaN or infinite; all must be finite")
