"""Writer of reconstructions as DICOM slices that are derived from the slice they belong to."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch

from datasets.errors import DataError, check_finite
from datasets.readers.dicom.orientation import directions
from datasets.readers.dicom.slices import read_dicom, read_header
from datasets.readers.optional import require
from recon.files import write_files

if TYPE_CHECKING:
    from pydicom import Dataset

_LOWEST, _HIGHEST = -(2**15), 2**15 - 1

# What describes the values of the source's pixels, and would be wrong for others.
_OBSOLETE = (
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "SmallestImagePixelValue",
    "LargestImagePixelValue",
    "SmallestPixelValueInSeries",
    "LargestPixelValueInSeries",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)


def write_dicom(
    path: str | Path,
    image: torch.Tensor,
    like: str | Path,
    description: str = "reconstruction",
    pixel_size: tuple[float, float] | None = None,
) -> None:
    """Write a picture as a DICOM slice derived from ``like``, completely or not at all.

    Patient, study and position are those of ``like``. Series and instance are new: all slices with the same source
    series and ``description`` form one series. The image type is DERIVED\\SECONDARY, and the source is referenced.

    Values are stored as 16-bit integers with sign. For CT they are Hounsfield units, rounded to whole ones (slope 1,
    intercept 0). For MR, the slope is chosen so that the largest value is 32767.

    Parameters
    ----------
    path
        of the new file; folders that are missing are made.
    image
        (H, W) or (1, H, W) in the view that ``read_dicom`` gives; HU for CT.
    like
        the file of the source.
    description
        goes into the series description, at most 64 characters.
    pixel_size
        between rows and between columns in mm; None is that of ``like``, and needs a picture of its shape. With another
        size or shape, the picture's centre stays where it is.

    Raises
    ------
    DataError
        ``like`` cannot be read; a picture of another shape without ``pixel_size``; values that are NaN, infinite, or
        too large for 16 bits.
    OSError
        the file cannot be written.
    ImportError
        pydicom is not installed.
    """
    pydicom = require("pydicom", "writing DICOM")
    path, like = Path(path), Path(like)
    source = read_dicom(like)
    picture = _picture(image, path)
    if pixel_size is None and picture.shape != tuple(source.image.shape):
        raise DataError(
            f"{path}: a picture of {picture.shape[0]}x{picture.shape[1]} pixels, but {like} has "
            f"{source.image.shape[0]}x{source.image.shape[1]}; give pixel_size"
        )
    display = source.display
    size = source.pixel_size if pixel_size is None else pixel_size
    pixels = display.undo(picture)
    stored, slope = _quantized(pixels, source.modality == "CT", path)
    dataset = copy.deepcopy(read_header(like))
    _place(dataset, pixels.shape, size[::-1] if display.transposed else size)
    _describe(dataset, description, pydicom)
    dataset.set_pixel_data(stored, "MONOCHROME2", 16)
    dataset.RescaleSlope, dataset.RescaleIntercept = f"{slope:.10g}", "0"
    dataset.RescaleType = "HU" if source.modality == "CT" else "US"
    write_files({path: _encoded(dataset, pydicom)})


def _picture(image: torch.Tensor, path: Path) -> np.ndarray:
    """The values of (H, W) or (1, H, W)."""
    picture = image.detach().cpu().double().numpy()
    picture = picture[0] if picture.ndim == 3 and len(picture) == 1 else picture
    if picture.ndim != 2 or 0 in picture.shape:
        raise DataError(f"{path}: a picture of shape {picture.shape}; valid are (H, W) and (1, H, W)")
    return np.asarray(picture)


def _encoded(dataset: Dataset, pydicom: ModuleType) -> bytes:
    """The bytes of a file."""
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def _quantized(pixels: np.ndarray, hounsfield: bool, path: Path) -> tuple[np.ndarray, float]:
    """16-bit integers and the slope that turns them into values."""
    check_finite(pixels, path)
    slope = 1.0
    if not hounsfield:
        # the slope as it is written, in 16 characters
        slope = float(f"{float(np.abs(pixels).max()) / _HIGHEST or 1.0:.10g}")
    values = np.rint(pixels / slope)
    if hounsfield and (values.min() < _LOWEST or values.max() > _HIGHEST):
        raise DataError(
            f"{path}: values from {pixels.min():g} to {pixels.max():g}; valid are Hounsfield units from {_LOWEST} to "
            f"{_HIGHEST}"
        )
    return values.clip(_LOWEST, _HIGHEST).astype(np.int16), slope


def _place(dataset: Dataset, shape: Sequence[int], spacing: tuple[float, float]) -> None:
    """New spacing, and the position of the first pixel that keeps the centre (DICOM PS3.3, C.7.6.2.1.1)."""
    position, axes = dataset.get("ImagePositionPatient"), dataset.get("ImageOrientationPatient")
    if position is not None and axes is not None:
        first = np.array([float(v) for v in position])
        along_columns, along_rows = directions(axes)
        old = [float(v) for v in dataset.PixelSpacing]
        rows, columns = int(dataset.Rows), int(dataset.Columns)
        down = 0.5 * (old[0] * (rows - 1) - spacing[0] * (shape[0] - 1))
        right = 0.5 * (old[1] * (columns - 1) - spacing[1] * (shape[1] - 1))
        dataset.ImagePositionPatient = [f"{v:.10g}" for v in first + down * along_rows + right * along_columns]
    dataset.PixelSpacing = [f"{v:.10g}" for v in spacing]


def _describe(dataset: Dataset, description: str, pydicom: ModuleType) -> None:
    """New identifiers, where the picture comes from, and nothing that describes the pixels of the source."""
    for name in _OBSOLETE:
        if name in dataset:
            del dataset[name]
    reference = pydicom.Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    dataset.SourceImageSequence = [reference]
    kind = [str(value) for value in dataset.get("ImageType", None) or []]
    dataset.ImageType = ["DERIVED", "SECONDARY", *kind[2:]]
    dataset.SeriesInstanceUID = pydicom.uid.generate_uid(
        entropy_srcs=[str(dataset.get("SeriesInstanceUID", "")), description]
    )
    dataset.SOPInstanceUID = pydicom.uid.generate_uid()
    dataset.SeriesDescription = dataset.DerivationDescription = description[:64]
