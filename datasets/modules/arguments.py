"""Checks of arguments that several data modules have in common."""

from __future__ import annotations

import torch

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def torch_dtype(name: str) -> torch.dtype:
    """The type of that name.

    Raises
    ------
    ValueError
        it is neither ``"float32"`` nor ``"float64"``.
    """
    if name not in _DTYPES:
        raise ValueError(f"dtype is {name!r}; valid are {', '.join(_DTYPES)}")
    return _DTYPES[name]


def check_side(size: int | None, crop_size: int | None) -> None:
    """Check that at most one of the two ways to the same size is taken.

    Raises
    ------
    ValueError
        both are set.
    """
    if size is not None and crop_size is not None:
        raise ValueError(f"size ({size}) and crop_size ({crop_size}) exclude each other; set one of them")
