"""Reads one picture from a file: PNG, JPEG, TIFF or NumPy, in gray or colour, of 8 or 16 bits or floating point."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from datasets.errors import DataError as DataError
from datasets.errors import check_finite, reading
from datasets.readers.limits import check_memory, load_array

TIFF_SUFFIXES = (".tif", ".tiff")

# Luminance of linear RGB, ITU-R BT.709: the weights of skimage.color.rgb2gray.
LUMINANCE = (0.2125, 0.7154, 0.0721)


def read_image(path: str | Path, gray: bool = True) -> torch.Tensor:
    """Read a picture.

    8-bit values are divided by 255 and 16-bit values by 65535, so they lie in [0, 1]; black-and-white pictures give 0
    and 1. Floating-point values (TIFF and NumPy) are taken as they are: they are expected on the same scale, may
    exceed [0, 1] as noisy data do, and must be finite. An alpha channel is dropped. A NumPy array has the shape (H, W)
    or (H, W, channels).

    Parameters
    ----------
    path
        the file, with a suffix out of ``SUFFIXES`` (in upper or lower case).
    gray
        replace colour by its luminance 0.2125 R + 0.7154 G + 0.0721 B.

    Returns
    -------
    torch.Tensor
        float64 of shape (1, H, W), or (3, H, W) for colour with ``gray=False``.

    Raises
    ------
    DataError
        no such file, an unknown suffix, a file that cannot be decoded (truncated, corrupt), a shape that is not a
        picture's, another type of values, NaN or infinite values, more pixels than memory is allowed for.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: unknown kind of image file; valid suffixes are {', '.join(SUFFIXES)}")
    # Pillow and tifffile let errors of many kinds through for files that are truncated, corrupt or of another kind
    with reading(path, "an image"):
        pixels = DECODERS[path.suffix.lower()](path)
    return _to_tensor(_scaled(pixels, path), path, gray)


def _decode_with_pillow(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        # Pillow keeps only the upper 8 bits of the 16 of colour pictures, without a word.
        if opened.mode != "I;16" and any(";16" in str(tile) for tile in opened.tile):
            raise DataError(f"{path}: 16 bits per channel with colour or alpha are supported in TIFF only; convert it")
        check_memory(path, "a picture", (opened.height, opened.width, len(opened.getbands())))
        image = ImageOps.exif_transpose(opened)
        if image.mode in ("P", "PA"):
            image = image.convert("RGBA")
        elif image.mode not in ("1", "L", "LA", "RGB", "RGBA", "I;16", "F"):
            image = image.convert("RGB")
        return np.asarray(image)


def _decode_tiff(path: Path) -> np.ndarray:
    import tifffile  # not before a TIFF file is met: it takes long to import

    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        page = file.pages.first
        if len(file.series) > 1 or series.axes not in ("YX", "YXS", "SYX"):
            shapes = ", ".join(f"{s.axes} {tuple(s.shape)}" for s in file.series)
            raise DataError(f"{path}: holds a stack ({shapes}); a file must hold one picture")
        check_memory(path, "a picture", series.shape)
        check_memory(path, "one strip or tile", page.chunks)
        decodable = page.compression in tifffile.TIFF.DECOMPRESSORS
        if decodable and page.photometric in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB):
            pixels = series.asarray()
            return np.moveaxis(pixels, 0, -1) if series.axes == "SYX" else pixels
    # Palettes, inverted gray and the codecs that tifffile leaves to others (LZW, JPEG, fax).
    return _decode_with_pillow(path)


#: which function gives the pixels of a picture, (H, W) or (H, W, channels) of the type they are stored in, by its
#: suffix: a new kind of picture is a line here, whatever the program
DECODERS: dict[str, Callable[[Path], np.ndarray]] = {
    **dict.fromkeys((".png", ".jpg", ".jpeg"), _decode_with_pillow),
    **dict.fromkeys(TIFF_SUFFIXES, _decode_tiff),
    ".npy": load_array,
}
SUFFIXES = tuple(DECODERS)


def _scaled(pixels: np.ndarray, path: Path) -> np.ndarray:
    """The values as float64, integers divided by their largest value."""
    if pixels.dtype == np.bool_ or np.issubdtype(pixels.dtype, np.floating):
        return pixels.astype(np.float64)
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels / float(np.iinfo(pixels.dtype).max)
    raise DataError(f"{path}: values of type {pixels.dtype}; valid are 8 and 16 bits without sign, and floating point")


def _to_tensor(pixels: np.ndarray, path: Path, gray: bool) -> torch.Tensor:
    """(H, W) or (H, W, channels) to (1 or 3, H, W), checked."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 2, 3, 4) or 0 in pixels.shape:
        raise DataError(
            f"{path}: an array of shape {pixels.shape}; valid are (H, W) and (H, W, channels), 1 to 4 channels"
        )
    if pixels.shape[-1] in (2, 4):
        pixels = pixels[..., :-1]
    if gray and pixels.shape[-1] == 3:
        pixels = pixels @ np.asarray(LUMINANCE)[:, None]
    check_finite(pixels, path)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 0)))
