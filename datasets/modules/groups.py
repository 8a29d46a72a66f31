"""Arguments that belong together, for data modules: pictures and batches; and where arguments went into them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, TypedDict, TypeVarTuple

import torch

from recon.errors import at_least

Groups = TypeVarTuple("Groups")

Precision = Literal["float32", "float64"]

_DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float64": torch.float64}

#: in pixels, of pictures that need one size where none is given
DEFAULT_SIDE = 128


def torch_dtype(name: Precision) -> torch.dtype:
    """The type of that name.

    Raises
    ------
    ValueError
        It is neither ``"float32"`` nor ``"float64"``.
    """
    if name not in _DTYPES:
        raise ValueError(f"dtype is {name!r}; valid are {', '.join(_DTYPES)}")
    return _DTYPES[name]


@dataclass(frozen=True)
class Pictures:
    """Which pictures, and of what size.

    Parameters
    ----------
    size : int, optional
        Side in pixels of the squares to which all pictures are resized.
    crop_size : int, optional
        Side in pixels of the squares that are cut out of the centre of all pictures; excludes ``size``.
    limit : int, optional
        Number of training pictures, the first in the order of their names; None is all.

    Raises
    ------
    ValueError
        One is less than 1, or both sides are given.
    """

    size: int | None = None
    crop_size: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        at_least(1, size=self.size, crop_size=self.crop_size, limit=self.limit)
        if self.size is not None and self.crop_size is not None:
            raise ValueError(f"size ({self.size}) and crop_size ({self.crop_size}) exclude each other; set one of them")

    @property
    def sides(self) -> tuple[int | None, int | None]:
        """``size`` and ``crop_size``, as every ``ImageSource`` takes them."""
        return self.size, self.crop_size

    @property
    def in_colour(self) -> bool:
        """Whether they keep their colours."""
        return False


@dataclass(frozen=True)
class PatchPictures(Pictures):
    """Which pictures, of what size, and the patches to learn from.

    Parameters
    ----------
    size, crop_size, limit : int, optional
        See :class:`Pictures`.
    patch_size : int, optional
        Side in pixels of the patches to learn from; None learns from whole pictures.
    n_patches : int, optional
        Number of patches; None is one for each training picture.
    colour : bool
        Red, green and blue, (3, H, W), instead of the luminance; gray pictures are then refused. Models of one channel
        take them channel by channel, those with ``in_channels: 3`` as a whole.

    Raises
    ------
    ValueError
        One is less than 1, both sides are given, or a number of patches without their size.
    """

    patch_size: int | None = None
    n_patches: int | None = None
    colour: bool = False

    @property
    def in_colour(self) -> bool:
        return self.colour

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, patch_size=self.patch_size, n_patches=self.n_patches)
        if self.n_patches is not None and self.patch_size is None:
            raise ValueError(f"n_patches is {self.n_patches}, but patch_size is not set; set both or neither")


@dataclass(frozen=True)
class PatientPictures(Pictures):
    """Which pictures, all of one size, and how those of patients are split.

    Parameters
    ----------
    size, crop_size, limit : int, optional
        See :class:`Pictures`; ``size`` is 128 where neither is given.
    fractions : tuple of float
        Of the patients in a folder, for training, validation and test.

    Raises
    ------
    ValueError
        A number is less than 1, or both sides are given.
    """

    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)

    @property
    def side(self) -> int:
        """In pixels, of every picture."""
        return self.size or self.crop_size or DEFAULT_SIDE

    def sized(self) -> Self:
        """These, with the default ``size`` where no side is given."""
        return self if any(self.sides) else replace(self, size=DEFAULT_SIDE)


@dataclass(frozen=True)
class Batches:
    """How many pictures are served at once.

    Parameters
    ----------
    batch_size : int, optional
        Of the training batches; None is one batch with the whole training set.
    eval_batch_size : int
        Of the other batches, for pictures of one size.

    Raises
    ------
    ValueError
        One is less than 1.
    """

    batch_size: int | None = None
    eval_batch_size: int = 1

    def __post_init__(self) -> None:
        at_least(1, batch_size=self.batch_size, eval_batch_size=self.eval_batch_size)


# --- names of arguments before they belonged to groups, to be dropped with the next version ---------------------------


class FlatBatches(TypedDict, total=False):
    """See :class:`Batches`."""

    batch_size: int | None
    eval_batch_size: int


class FlatPictures(FlatBatches, total=False):
    """See :class:`Pictures`."""

    size: int | None
    crop_size: int | None
    limit: int | None


class FlatPatches(FlatPictures, total=False):
    """See :class:`PatchPictures`."""

    patch_size: int | None
    n_patches: int | None


class FlatPatients(FlatPictures, total=False):
    """See :class:`PatientPictures`."""

    fractions: tuple[float, float, float]


def regrouped(flat: Mapping[str, object], names: str, *groups: *Groups) -> tuple[*Groups]:
    """Groups of arguments with the values that a call gives under their flat names, as older versions had them.

    Parameters
    ----------
    flat : mapping
        Flat names and their values, which replace those of the groups.
    names : str
        Names of the groups in their order, separated by blanks.
    *groups : dataclasses
        Whose fields have the flat names.

    Returns
    -------
    tuple
        The groups. Flat names are said in one warning, with their new places.

    Raises
    ------
    TypeError
        No group has a field of that name.
    """
    given: tuple[Any, ...] = groups
    made: list[Any] = []
    places: dict[str, str] = {}
    for name, group in zip(names.split(), given, strict=True):
        own = {field.name: flat[field.name] for field in fields(group) if field.name in flat}
        made.append(replace(group, **own) if own else group)
        places |= {key: f"{name}.{key}" for key in own}
    unknown = sorted(flat.keys() - places.keys())
    if unknown:
        raise TypeError(f"got an unexpected keyword argument {unknown[0]!r}")
    if places:
        warnings.warn(
            f"{', '.join(places)}: now called {', '.join(places.values())}; the old names go with the next version",
            FutureWarning,
            stacklevel=3,
        )
    return tuple(made)
