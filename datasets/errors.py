"""What readers raise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


class DataError(ValueError):
    """Data that cannot be used; the message names the file or picture and says what would be valid."""


@contextlib.contextmanager
def reading(path: str | Path, kind: str) -> Iterator[None]:
    """Within it, errors of any kind become a ``DataError`` that names the file: libraries raise many for damaged ones.

    ``DataError`` itself, and packages that are not installed, pass.
    """
    try:
        yield
    except (DataError, ImportError):
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot be read as {kind}, it may be truncated or corrupt ({text})") from error
