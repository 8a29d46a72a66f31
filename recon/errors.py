"""Checks of arguments: what is wrong by its name, and what would be valid. None is an argument that is not given."""

from __future__ import annotations

import math
from collections.abc import Sequence


def positive(**values: float | None) -> None:
    """Raise ``ValueError`` for a number that is not positive and finite."""
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}, but must be positive and finite")


def not_negative(**values: float | None) -> None:
    """Raise ``ValueError`` for a number that is negative, or not finite."""
    for name, value in values.items():
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}, but must be finite and not negative")


def fraction(place: str = "", /, **values: float | None) -> None:
    """Raise ``ValueError`` for a number, of the group ``place``, that is not between 0 and 1."""
    for name, value in values.items():
        if value is not None and not 0 < value < 1:
            raise ValueError(f"{place}{name} is {value}, but must be between 0 and 1")


def at_least(least: float, place: str = "", /, **values: float | None) -> None:
    """Raise ``ValueError`` for a number, of the group ``place``, below ``least``."""
    for name, value in values.items():
        if value is not None and not value >= least:
            raise ValueError(f"{place}{name} is {value}, but must be at least {least}")


def one_of(valid: Sequence[str], **values: str) -> None:
    """Raise ``ValueError`` for a word that is none of ``valid``."""
    for name, value in values.items():
        if value not in valid:
            raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(valid)}")


def instance(kind: type, **values: object) -> None:
    """Raise ``TypeError`` for a value that is of another class than ``kind``."""
    for name, value in values.items():
        if not isinstance(value, kind):
            raise TypeError(f"{name} is {value!r}, but must be an instance of {kind.__name__}")
