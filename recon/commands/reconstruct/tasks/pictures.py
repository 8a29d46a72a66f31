"""The pictures that ``recon reconstruct`` denoises, or simulates measurements of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets import DataError, ImageFolder, read_dicom, read_image
from datasets.modules.tomography import MU_UNIT
from datasets.physics import hu_to_attenuation
from datasets.readers.dicom.slices import DicomFolder, Modality, holds_dicom
from datasets.readers.nifti import is_nifti, read_nifti
from datasets.readers.pictures import SUFFIXES
from datasets.sources.images import resize


@dataclass(frozen=True)
class Picture:
    """A gray picture; ``scale * x`` is in the unit of the result.

    Parameters
    ----------
    x : Tensor
        (H, W) float64, on the scale that models are trained on.
    scale : float
        See above.
    pixel_size : tuple of float, optional
        Between rows and between columns in mm; None if the file does not tell.
    dicom : bool
        Whether the file is DICOM.
    """

    x: Tensor
    scale: float
    pixel_size: tuple[float, float] | None
    dicom: bool


def picture_files(path: Path, modality: Modality = "CT") -> list[Path]:
    """The images of a folder, or its DICOM slices if it has any; or the one file.

    Raises
    ------
    DataError
        no such file or folder, an empty folder, slices of another modality.
    """
    if is_nifti(path):
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        return [path]
    if not holds_dicom(path):
        return [Path(name) for name in ImageFolder(path).names]
    return [path] if path.is_file() else [Path(name) for name in DicomFolder(path, modality).names]


def is_picture(path: Path) -> bool:
    """Whether a file holds a picture: DICOM, NIfTI, or an image file; not NumPy arrays of complex values."""
    if path.suffix.lower() == ".npy":
        return not holds_complex(path)
    return path.suffix.lower() in SUFFIXES or is_nifti(path) or holds_dicom(path)


def holds_complex(path: Path) -> bool:
    """Whether a file is a NumPy array of complex values; files that cannot be read are not."""
    if path.suffix.lower() != ".npy" or not path.is_file():
        return False
    try:
        return bool(np.iscomplexobj(np.load(path, mmap_mode="r", allow_pickle=False)))
    except Exception:  # of many kinds, for headers that are none
        return False  # whose reader says what is wrong with the file


def read_values(
    path: Path, modality: Modality | None = None, gray: bool = True
) -> tuple[Tensor, tuple[float, float] | None]:
    """Values (channels, H, W) of a slice or picture as its reader gives them, and distances of pixels in mm if known.

    Raises
    ------
    DataError
        the file cannot be used, or is of another modality.
    """
    if holds_dicom(path):
        part = read_dicom(path, modality)
        return part.image[None], part.pixel_size
    if is_nifti(path):
        found = read_nifti(path)
        return found.image[None], found.pixel_size
    return read_image(path, gray), None


def read_picture(path: Path, task: str, size: int | None) -> Picture:
    """A picture to simulate measurements of; with ``size``, its central square reduced to so many pixels a side.

    CT: x = µ / ``MU_UNIT``, at least 0, from the Hounsfield units of DICOM; other pictures are taken as x.
    MRI: the magnitude divided by its maximum, which is the scale.

    Raises
    ------
    DataError
        the file cannot be used, or is of another modality; ``size`` exceeds it; (MRI) a negative value, or none that is
        positive.
    """
    if is_nifti(path) and task == "ct":
        raise DataError(f"{path}: nothing says which attenuation the values of NIfTI are; give DICOM, or a picture")
    dicom = holds_dicom(path)
    values, spacing = read_values(path, "CT" if task == "ct" else "MR")
    x = (hu_to_attenuation(values[0]) / MU_UNIT).clamp_min(0) if dicom and task == "ct" else values[0]
    if size is not None:
        if spacing is not None:
            spacing = (spacing[0] * min(x.shape) / size, spacing[1] * min(x.shape) / size)
        x = resize(x[None], size, str(path))[0]
    scale = MU_UNIT
    if task == "mri":
        scale = float(x.max())
        if not 0 < scale < math.inf or float(x.min()) < 0:
            raise DataError(
                f"{path}: values from {float(x.min()):g} to {scale:g}; the magnitudes of an MRI picture are not "
                "negative, and some are positive"
            )
        x = x / scale
    return Picture(x.to(torch.float64), scale, spacing, dicom)
