"""Reads what measured reconstructions are compared with, in their unit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.io
import torch
from torch import Tensor

from datasets.physics import hu_to_attenuation
from datasets.readers.dicom.slices import holds_dicom
from datasets.readers.limits import load_array
from datasets.readers.mat_format import check_mat
from datasets.readers.pictures import DataError, read_image
from recon.commands.reconstruct.tasks.pictures import read_values

#: side of the organisers' pixels in mm: the detector's, divided by the magnification
HTC_PIXEL = 0.2 * 410.66 / 553.74


def read_reference(path: Path, task: str) -> Tensor:
    """(H, W), float64: attenuation in 1/mm for CT, magnitudes on the scale of the data for MRI.

    ``.npy``, floating-point TIFF and NIfTI as they are (complex values by their magnitude); DICOM of CT from Hounsfield
    units;
    the organisers' reconstructions of HTC2022 (``.mat``), which are per pixel of the detector at the axis.

    Raises
    ------
    DataError
        no such file, another kind of file, values that are not finite.
    """
    if task == "ct" and path.suffix.lower() == ".mat":
        return _htc(path)
    if path.suffix.lower() == ".npy" and path.is_file():
        array = load_array(path)
        if np.iscomplexobj(array) and np.isfinite(array).all() and array.ndim == 2:
            return torch.from_numpy(np.abs(array).astype(np.float64))
    # folders of slices are none
    values = (read_image(path) if path.is_dir() else read_values(path)[0])[0]
    return hu_to_attenuation(values).clamp_min(0) if task == "ct" and path.is_file() and holds_dicom(path) else values


def _htc(path: Path) -> Tensor:
    check_mat(path)
    try:
        values = scipy.io.loadmat(str(path)).get("reconFullFbp")
    # damaged files end in any kind of error, scipy's own MatReadError is an Exception only
    except Exception as error:
        raise DataError(f"{path}: cannot be read as a MATLAB file of version 5 to 7.2 ({error})") from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or not np.isfinite(values).all():
        raise DataError(f"{path}: has no reconstruction reconFullFbp of HTC2022")
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64)) / HTC_PIXEL
