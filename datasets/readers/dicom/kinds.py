"""Kinds of DICOM files that are no slices, and what the stored values of slices mean (Modality LUT module)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datasets.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

# Secondary Capture Image Storage, and its kinds for several frames (DICOM PS3.4, B.5).
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
# What scanners write into ImageType of pictures of their screens: words that start with these.
_SCREENS = ("SCREEN", "DOSE_INFO", "DOSEREPORT", "PROT")
# Siemens: NumberOfImagesInMosaic, in the private block "SIEMENS MR HEADER".
_TILES = (0x0019, 0x100A)


def check_slice(header: Dataset, path: Path) -> None:
    """Refuse what is no single slice, although it looks like one: localizers, screens, mosaics.

    Raises
    ------
    DataError
        it names the kind, and what to do.
    """
    words = [str(value).upper() for value in header.get("ImageType", None) or []]
    if "LOCALIZER" in words:
        raise DataError(f"{path}: is a localizer (scout view), not a slice; remove it from the folder")
    captured = str(header.get("SOPClassUID", "")).startswith(_SECONDARY_CAPTURE)
    if captured or any(word.startswith(_SCREENS) for word in words):
        what = "a secondary capture" if captured else f"a picture of a screen (ImageType {chr(92).join(words)})"
        raise DataError(
            f"{path}: is {what}: its values are gray levels, perhaps with text, and no measurement; remove it from the "
            "folder, or save it as PNG to use it as a picture"
        )
    tiles = _tiles(header)
    if "MOSAIC" in words or tiles > 1:
        number = f"{tiles} slices" if tiles > 1 else "several slices"
        raise DataError(
            f"{path}: is a mosaic of {number} in one picture of {header.get('Rows')}x{header.get('Columns')} pixels "
            "(Siemens); split it into single slices"
        )


def _tiles(header: Dataset) -> int:
    element = header.get(_TILES)
    try:
        value = 0 if element is None else element.value
        # private elements without a type are bytes, as the scanner stored them
        return int.from_bytes(value, "little") if isinstance(value, bytes) else int(value or 0)
    except (TypeError, ValueError):
        return 0


def modality_transform(header: Dataset, path: Path, required: bool) -> Callable[[np.ndarray], np.ndarray]:
    """The map from stored values to those that they stand for (DICOM PS3.3, C.11.1).

    Slope and intercept, or the table of ModalityLUTSequence: value k of the table for the stored value first + k, and
    its ends beyond. None of them is the identity.

    Parameters
    ----------
    required
        whether the values have to be Hounsfield units (CT).

    Raises
    ------
    DataError
        one of slope and intercept alone, or none if required; a table together with them, of another type than HU if
        required, or one that is not as its descriptor says; values that are not finite, slope 0.
    """
    tables = header.get("ModalityLUTSequence")
    there = [name for name in ("RescaleSlope", "RescaleIntercept") if header.get(name) is not None]
    missing = [name for name in ("RescaleSlope", "RescaleIntercept") if name not in there]
    if tables:
        if there:
            raise DataError(f"{path}: has a Modality LUT and {' and '.join(there)}; valid is one or the other")
        return _table(tables[0], path, required, bool(header.get("PixelRepresentation", 0)))
    if missing and (required or there):
        meaning = "cannot be turned into Hounsfield units" if required else "have no known scale"
        raise DataError(f"{path}: has no {' and no '.join(missing)}, so its values {meaning}")
    if missing:
        return lambda stored: stored
    slope, intercept = float(header.RescaleSlope), float(header.RescaleIntercept)
    if not (math.isfinite(slope) and math.isfinite(intercept) and slope != 0):
        raise DataError(
            f"{path}: rescale slope {slope} and intercept {intercept}; valid are finite ones, and slope not 0"
        )
    return lambda stored: stored * slope + intercept


def _table(item: Dataset, path: Path, required: bool, signed: bool) -> Callable[[np.ndarray], np.ndarray]:
    kind = str(item.get("ModalityLUTType", "") or "not given")
    if required and kind != "HU":
        raise DataError(f"{path}: the type of its Modality LUT is {kind}; valid for CT is HU")
    try:
        count, first, bits = (int(v) for v in item.LUTDescriptor)
        data = item.LUTData
        if isinstance(data, bytes):
            data = np.frombuffer(data, dtype="<u2")
        table = np.asarray(data, dtype=np.float64).ravel()
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{path}: its Modality LUT cannot be read ({error})") from error
    if signed and first >= 2**15:  # the sign of the first value was lost
        first -= 2**16
    count = count or 2**16
    if len(table) != count or not 1 <= bits <= 16:
        raise DataError(
            f"{path}: its Modality LUT has {len(table)} entries of {bits} bits; its descriptor says {count}"
        )

    def apply(stored: np.ndarray) -> np.ndarray:
        return np.asarray(table[np.clip(stored - first, 0, count - 1).astype(np.int64)])

    return apply
