"""Sequences of pictures: the files of a folder, and those that come with the packages that are installed."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np
import skimage.data
import skimage.transform
import torch
from PIL import Image

from datasets.errors import DataError
from datasets.readers.folders import files_of
from datasets.readers.pictures import LUMINANCE, SUFFIXES, read_image


class Images(Protocol):
    """What every function of this package takes as pictures: a list, a stacked tensor, an ``ImageSource``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> torch.Tensor: ...


class ImageSource(ABC):
    """Pictures that are read when they are asked for, always in the same order.

    ``source[i]`` is a float64 tensor of shape (channels, H, W) with values on the scale [0, 1]; ``source.names[i]``
    says where it comes from.

    Parameters
    ----------
    names
        one name for each picture, used in messages and for the files that are written.
    size
        side in pixels of the square to which the central square of every picture is reduced, antialiased.
    crop_size
        side in pixels of the central square that is cut out instead, without a change of scale.

    Raises
    ------
    DataError
        both are given, one is not positive, or (when the picture is read) a picture is smaller.
    """

    def __init__(self, names: Iterable[str], size: int | None = None, crop_size: int | None = None) -> None:
        if size is not None and crop_size is not None:
            raise DataError(f"size ({size}) and crop_size ({crop_size}) exclude each other; set one of them")
        for name, value in (("size", size), ("crop_size", crop_size)):
            if value is not None and value < 1:
                raise DataError(f"{name} is {value}; it must be at least 1 pixel")
        self.names = list(names)
        self.size = size
        self.crop_size = crop_size

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> torch.Tensor:
        image, name = self._load(self.names[index]), self.names[index]
        if self.size is not None:
            return resize(image, self.size, name)
        if self.crop_size is not None:
            return center_crop(image, self.crop_size, name)
        return image

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[index] for index in range(len(self)))

    @abstractmethod
    def _load(self, name: str) -> torch.Tensor:
        """The picture of that name as it is stored."""

    def subset(self, start: int, stop: int | None = None) -> Self:
        """The pictures ``start, ..., stop - 1`` as a source of the same kind."""
        return self.select(range(len(self))[start:stop])

    def select(self, indices: Iterable[int]) -> Self:
        """The pictures of these numbers as a source of the same kind, e.g. one part of ``split_by_patient``."""
        part = copy.copy(self)
        part.names = [self.names[index] for index in indices]
        return part


class PatientSource(ImageSource):
    """Pictures whose patients are known."""

    @property
    @abstractmethod
    def patients(self) -> list[str]:
        """The patient of each picture."""


class ImageFolder(ImageSource):
    """The pictures of a folder in the order of their names, or a single file.

    Hidden files and files with other suffixes than ``SUFFIXES`` are passed over.

    Parameters
    ----------
    path
        the folder, or a file.
    gray
        replace colour by luminance, see ``read_image``.
    recursive
        read the folders inside the folder too.
    size, crop_size
        see ``ImageSource``.

    Raises
    ------
    DataError
        the folder is missing or has no picture; reading raises what ``read_image`` does.
    """

    def __init__(
        self,
        path: str | Path,
        gray: bool = True,
        recursive: bool = False,
        size: int | None = None,
        crop_size: int | None = None,
    ) -> None:
        self.path = Path(path).expanduser()
        self.gray = gray
        files = files_of(self.path, self._is_image, f"image; looked for {', '.join(SUFFIXES)}", recursive)
        super().__init__(map(str, files), size, crop_size)

    def _is_image(self, file: Path) -> bool:
        """By its suffix, and not in a hidden folder."""
        hidden = any(part.startswith(".") for part in file.relative_to(self.path).parts)
        return file.suffix.lower() in SUFFIXES and not hidden

    def _load(self, name: str) -> torch.Tensor:
        return read_image(name, self.gray)


class ColourFolder(ImageFolder):
    """The pictures of a folder in colour, ``(3, H, W)``; arguments as of :class:`ImageFolder`.

    Raises
    ------
    DataError
        (when the picture is read) one is gray.
    """

    def __init__(self, path: str | Path, size: int | None = None, crop_size: int | None = None) -> None:
        super().__init__(path, gray=False, size=size, crop_size=crop_size)

    def _load(self, name: str) -> torch.Tensor:
        image = super()._load(name)
        if len(image) != 3:
            raise DataError(f"{name}: a gray picture among those in colour; leave it out, or take all in gray")
        return image


Split = Literal["train", "val", "test"]


def _hopper() -> np.ndarray:
    from matplotlib.cbook import get_sample_data  # takes long to import

    return np.asarray(Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)))


# Only pictures that lie inside the package, so that nothing is downloaded; no picture is in two of the splits. The
# pictures with most variety come first, as `limit` keeps the first ones.
_BUILTIN: dict[str, dict[str, Callable[[], np.ndarray]]] = {
    "train": {
        "astronaut": skimage.data.astronaut,
        "motorcycle": lambda: skimage.data.stereo_motorcycle()[0],
        "coffee": skimage.data.coffee,
        "gravel": skimage.data.gravel,
        "immunohistochemistry": skimage.data.immunohistochemistry,
        "grass": skimage.data.grass,
        "brick": skimage.data.brick,
        "retina": skimage.data.retina,
        "hubble_deep_field": skimage.data.hubble_deep_field,
    },
    "val": {"coins": skimage.data.coins, "rocket": skimage.data.rocket},
    "test": {"camera": skimage.data.camera, "chelsea": skimage.data.chelsea, "moon": skimage.data.moon},
}


# The same for colours. Gray and colour have splits of their own: coffee is among the training pictures in gray.
_BUILTIN_COLOUR: dict[str, dict[str, Callable[[], np.ndarray]]] = {
    "train": {
        "astronaut": skimage.data.astronaut,
        "motorcycle": lambda: skimage.data.stereo_motorcycle()[0],
        "grace_hopper": _hopper,
        "immunohistochemistry": skimage.data.immunohistochemistry,
        "retina": skimage.data.retina,
        "hubble_deep_field": skimage.data.hubble_deep_field,
    },
    "val": {"rocket": skimage.data.rocket},
    "test": {"chelsea": skimage.data.chelsea, "coffee": skimage.data.coffee},
}


class BuiltinImages(ImageSource):
    """Pictures that come with scikit-image and matplotlib, as squares: they need no download and no folder.

    Parameters
    ----------
    split
        ``"train"`` (9 pictures), ``"val"`` (coins, rocket) or ``"test"`` (camera, chelsea, moon); of colour
        ``"train"`` (6 pictures), ``"val"`` (rocket) or ``"test"`` (chelsea, coffee).
    size
        side in pixels to which the central squares are reduced, antialiased; at most 400 in training, 303 in validation
        and 300 in the test, the shorter sides of the smallest pictures.
    crop_size
        side in pixels of a square cut out of the centre at the original scale; excludes ``size``.
    colour
        pictures in colour, ``(3, H, W)``.

    Without either, the pictures have their original, different sizes.

    Raises
    ------
    DataError
        an unknown split; see ``ImageSource`` for the sizes.
    """

    def __init__(
        self, split: Split, size: int | None = 256, crop_size: int | None = None, colour: bool = False
    ) -> None:
        if split not in _BUILTIN:
            raise DataError(f"split is {split!r}; valid are {', '.join(_BUILTIN)}")
        self.pictures, self.colour = (_BUILTIN_COLOUR if colour else _BUILTIN)[split], colour
        super().__init__(self.pictures, size, crop_size)

    def _load(self, name: str) -> torch.Tensor:
        pixels = self.pictures[name]() / 255.0
        if self.colour:
            return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 0)))
        if pixels.ndim == 3:
            pixels = pixels @ np.asarray(LUMINANCE)
        return torch.from_numpy(pixels)[None]


def center_crop(image: torch.Tensor, side: int, name: str) -> torch.Tensor:
    """The central square (channels, side, side) of a picture (channels, H, W); ``name`` is for the message.

    Raises
    ------
    DataError
        the picture is smaller than the square.
    """
    height, width = check_fits(image, side, name, f"the square of side {side} that is asked for")
    top, left = (height - side) // 2, (width - side) // 2
    return image[..., top : top + side, left : left + side].clone()


def resize(image: torch.Tensor, side: int, name: str) -> torch.Tensor:
    """The central square of a picture (channels, H, W), reduced to (channels, side, side).

    Gaussian antialiasing, then linear interpolation, so that the values stay within their range.

    Raises
    ------
    DataError
        the picture is smaller than ``side``: interpolated pictures are too smooth to learn from.
    """
    sides = check_fits(image, side, name, f"the square of side {side} that is asked for")
    square = center_crop(image, min(sides), name)
    if square.shape[-1] == side:
        return square
    reduced = skimage.transform.resize(
        square.numpy(), (square.shape[0], side, side), order=1, anti_aliasing=True, preserve_range=True
    )
    return torch.from_numpy(reduced)


def check_fits(image: torch.Tensor, side: int, name: str, what: str) -> tuple[int, int]:
    """Height and width of a picture, which is at least as large as ``what`` of that side.

    Raises
    ------
    DataError
        it is smaller.
    """
    height, width = image.shape[-2:]
    if side > min(height, width):
        raise DataError(
            f"{name}: the picture has {height}x{width} pixels, less than {what}; valid are 1 to {min(height, width)}"
        )
    return height, width


def stack_images(images: Images, names: list[str]) -> torch.Tensor:
    """All pictures (C, H, W) as one tensor (N, C, H, W).

    Raises
    ------
    DataError
        no picture, or two pictures of different sizes, which it names.
    """
    if len(images) == 0:
        raise DataError("there is no picture to make a batch of")
    tensors = [images[index] for index in range(len(images))]
    first = tensors[0].shape
    for tensor, name in zip(tensors, names, strict=True):
        if tensor.shape != first:
            raise DataError(
                f"pictures of different sizes cannot form one batch: {names[0]} has {_size(first)}, {name} has "
                f"{_size(tensor.shape)}; set patch_size or crop_size, or size to resize them"
            )
    return torch.stack(tensors)


def _size(shape: torch.Size) -> str:
    channels, height, width = shape
    return f"{height}x{width} pixels" + (f" and {channels} channels" if channels != 1 else "")
