"""Fully sampled fastMRI files as complex pictures to learn from."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from datasets.errors import DataError
from datasets.kspace.centre import centred
from datasets.readers.folders import files_of
from datasets.readers.hdf5 import fastmri_patient, fastmri_slices, read_fastmri
from datasets.sources.images import PatientSource
from recon.operators import CartesianMRI
from recon.operators.mri.cartesian import complex_to_channels
from recon.operators.mri.sensitivity import NoCalibrationError, estimate_sensitivities

HDF5_SUFFIXES = (".h5", ".hdf5")


class FastMRIFolder(PatientSource):
    """The slices of fully sampled fastMRI files as complex pictures (2, H, W), divided by their largest modulus.

    One coil: x = F^-1 k, whose modulus, cut to the field of view, is the ``reconstruction_esc`` of the file. Several
    coils: the combination x = sum_c conj(s_c) F^-1 k_c with sensitivities of ``estimate_sensitivities``. Both keep the
    phase and the noise of the measurement. For one coil without ``size``, mask x F x is the measured k-space where the
    mask is; else F x is that of an emulated single coil (Tygert and Zbontar, Simulating single-coil MRI from the
    responses of multiple coils, Commun. Appl. Math. Comput. Sci. 15, 2020).

    Parameters
    ----------
    path
        a file, or a folder with files ``*.h5``, in order of names.
    size, crop_size
        see ``ImageSource``. The readout of the files is oversampled: ``crop_size=320`` is the field of view of the
        knees.

    Raises
    ------
    DataError
        no such path, no file; when read, an undersampled file, a centre that is not sampled, only zeros, and what
        ``read_fastmri`` raises.
    ImportError
        h5py is not installed.
    """

    def __init__(self, path: str | Path, size: int | None = None, crop_size: int | None = None) -> None:
        self.path = Path(path).expanduser()
        files = files_of(self.path, _is_hdf5, f"fastMRI file; looked for {', '.join(HDF5_SUFFIXES)}")
        self._patients = {str(file): fastmri_patient(file) or f"patient of {file}" for file in files}
        super().__init__((f"{file}[{row}]" for file in files for row in range(fastmri_slices(file))), size, crop_size)

    @property
    def patients(self) -> list[str]:
        """The patient of each picture, the attribute ``patient_id``; a file without one is a patient of its own."""
        return [self._patients[name.rpartition("[")[0]] for name in self.names]

    def _load(self, name: str) -> Tensor:
        file, _, row = name.removesuffix("]").rpartition("[")
        scan = read_fastmri(file, int(row))
        if scan.mask is not None and not scan.mask.all():
            raise DataError(
                f"{name}: is undersampled ({int(scan.mask.sum())} of {scan.mask.numel()} columns); pictures to learn "
                "from need fully sampled data"
            )
        kspace, moved = centred(scan.kspace.to(torch.complex128), name)
        for text in moved:
            warnings.warn(text, stacklevel=2)
        picture = combined(kspace, name)
        largest = torch.linalg.vector_norm(picture, dim=0).max()
        if not largest > 0:
            raise DataError(f"{name}: holds only zeros")
        return picture / largest


def combined(kspace: Tensor, name: str) -> Tensor:
    """One picture (2, H, W) out of fully sampled complex k-space (coils, H, W), see ``FastMRIFolder``.

    Raises
    ------
    DataError
        the sensitivities cannot be estimated.
    """
    mask = torch.ones(kspace.shape[-2:], dtype=torch.bool)
    maps = None
    if len(kspace) > 1:
        try:
            maps = estimate_sensitivities(kspace, mask)
        except NoCalibrationError as error:
            raise DataError(f"{name}: {error}") from error
    return CartesianMRI(mask, maps).adjoint(complex_to_channels(kspace)[None])[0]


def holds_fastmri(path: Path) -> bool:
    """Whether a path is an HDF5 file by its suffix, or a folder with one in it."""
    if path.is_dir():
        return any(_is_hdf5(file) for file in path.iterdir())
    return path.is_file() and path.suffix.lower() in HDF5_SUFFIXES


def _is_hdf5(file: Path) -> bool:
    return file.suffix.lower() in HDF5_SUFFIXES and not file.name.startswith(".")
