"""Slices of CT and MR that come inside packages, so that nothing is downloaded: built-in test images.

* pydicom and ``pydicom-data`` (extra ``data``, no dependencies): three CT slices of
  512 x 512 pixels, of three patients, and two MR slices.
* dipy (extra ``brain``): a T1-weighted coronal slice of a brain, 256 x 256, of one person, without the skull. nilearn
  has a T1 brain too, but the average of 152 persons, too smooth to tell regularizers apart, and needs pandas and
  scikit-learn. dipy is not imported, as only the file is needed.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch

from datasets.errors import DataError
from datasets.readers.dicom.slices import Modality, on_unit_scale, read_dicom
from datasets.readers.optional import missing, require
from datasets.sources.images import ImageSource

#: Name of the T1 brain of dipy in data modules.
BRAIN = "brain"

_SLICES: dict[Modality, dict[str, str]] = {
    "CT": {"head": "693_UNCR.dcm", "abdomen": "explicit_VR-UN.dcm", "skull_base": "J2K_pixelrep_mismatch.dcm"},
    "MR": {"abdomen": "MR-SIEMENS-DICOM-WithOverlays.dcm", "shoulder": "MR2_UNCR.dcm"},
}


class BuiltinSlices(ImageSource):
    """The slices of one modality, (1, H, W) on the scale [0, 1] of ``DicomFolder``, in the usual view.

    CT: ``head``, ``abdomen`` and ``skull_base``, 512 x 512. MR: ``abdomen`` (484 x 484) and ``shoulder`` (1024 x 1024).

    Parameters
    ----------
    modality
        ``"CT"`` or ``"MR"``.
    size, crop_size
        see ``ImageSource``.

    Raises
    ------
    ImportError
        pydicom or pydicom-data is not installed.
    DataError
        an unknown modality; see ``ImageSource`` for the sizes.
    """

    def __init__(self, modality: Modality, size: int | None = None, crop_size: int | None = None) -> None:
        if modality not in _SLICES:
            raise DataError(f"modality is {modality!r}; valid are {', '.join(_SLICES)}")
        self.modality = modality
        self._paths = {name: _pydicom_file(file) for name, file in _SLICES[modality].items()}
        super().__init__(self._paths, size, crop_size)

    def _load(self, name: str) -> torch.Tensor:
        return on_unit_scale(read_dicom(self._paths[name], self.modality))


class BrainSlice(ImageSource):
    """The T1-weighted coronal slice of dipy, (1, 256, 256) on the scale [0, 1].

    Parameters
    ----------
    size, crop_size
        see ``ImageSource``.

    Raises
    ------
    ImportError
        dipy is not installed.
    DataError
        it does not have the file; see ``ImageSource`` for the sizes.
    """

    def __init__(self, size: int | None = None, crop_size: int | None = None) -> None:
        found = importlib.util.find_spec("dipy")
        if found is None or not found.submodule_search_locations:
            raise missing("dipy", "the built-in T1 brain", "brain")
        self.path = Path(next(iter(found.submodule_search_locations))) / "data" / "files" / "t1_coronal_slice.npy"
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file; this version of dipy has no T1 slice, 1.12 has")
        super().__init__([BRAIN], size, crop_size)

    def _load(self, name: str) -> torch.Tensor:
        return torch.from_numpy(np.load(self.path, allow_pickle=False).astype(np.float64))[None]


def _pydicom_file(name: str) -> Path:
    """Where a test file of pydicom or pydicom-data lies; nothing is downloaded."""
    require("pydicom", "built-in CT and MR slices")
    data = require("pydicom.data", "built-in CT and MR slices")
    path = data.get_testdata_file(name, download=False)
    if path is None:
        raise missing("pydicom-data", "built-in CT and MR slices", "data")
    return Path(path)
