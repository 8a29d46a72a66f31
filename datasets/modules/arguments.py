"""Checks of arguments that several data modules have in common."""

from __future__ import annotations

import math

import torch

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def torch_dtype(name: str) -> torch.dtype:
    """The type of that name.

    Raises:
        ValueError: it is neither ``"float32"`` nor ``"float64"``.
    """
    if name not in _DTYPES:
        raise ValueError(f"dtype is {name!r}; valid are {', '.join(_DTYPES)}")
    return _DTYPES[name]


def check_counts(**values: int | None) -> None:
    """Check numbers of things and sides in pixels; None is always valid.

    Raises:
        ValueError: one is less than 1.
    """
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")


def check_positive(**values: float | None) -> None:
    """Check physical quantities; None is always valid.

    Raises:
        ValueError: one is not positive or not finite.
    """
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; it must be positive and finite")


def check_side(size: int | None, crop_size: int | None) -> None:
    """Check that at most one of the two ways to the same size is taken.

    Raises:
        ValueError: both are set.
    """
    if size is not None and crop_size is not None:
        raise ValueError(f"size ({size}) and crop_size ({crop_size}) exclude each other; set one of them")
