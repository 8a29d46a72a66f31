"""Files of measured k-space: NumPy, fastMRI and ISMRMRD, with the zero frequency brought into the middle."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.errors import DataError, check_finite
from datasets.kspace.centre import centred
from datasets.kspace.ismrmrd import MeasuredKSpace, holds_ismrmrd, read_ismrmrd, read_ismrmrd_noise
from datasets.readers.hdf5 import open_hdf5, read_fastmri
from datasets.readers.limits import load_array
from datasets.sources.fastmri import HDF5_SUFFIXES

# Of double precision: energies of some millions of samples stay finite.
_LARGEST = 1e150


def load_kspace(path: str | Path, index: int = 0) -> MeasuredKSpace:
    """Read a slice of k-space from a NumPy, a fastMRI or an ISMRMRD file.

    What was not sampled is exactly zero: in NumPy files that is what zeros mean. A zero frequency in the corner, as
    ``numpy.fft.fft2`` leaves it, is brought into the middle, with a warning.

    Parameters
    ----------
    path
        ``.npy`` with a complex array ``(coils, height, width)``, or ``(height, width)`` of one coil; ``.h5`` as
        ``read_fastmri`` or ``read_ismrmrd``.
    index
        of the slice in an HDF5 file.

    Raises
    ------
    DataError
        no such file, another kind of file, an array that is not complex or of another shape, values that are NaN or
        infinite, too large to be squared, or only zeros; a zero frequency that is neither in the middle nor in the
        corner.
    """
    path = Path(path).expanduser()
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise DataError(f"{path}: unknown kind of k-space file; valid are {', '.join(READERS)}")
    made = READERS[suffix](path, index)
    if not bool(made.values.any()):
        raise DataError(f"{path}: holds only zeros; nothing was sampled")
    largest = float(made.values.abs().max())
    if not largest < _LARGEST:
        raise DataError(f"{path}: has values up to {largest:g}, whose squares overflow; give them on another scale")
    values, moved = centred(made.values, path)
    return replace(made, values=values, warnings=(*made.warnings, *moved))


def read_kspace(path: str | Path, index: int = 0) -> Tensor:
    """The values of ``load_kspace``, complex128 ``(coils, height, width)``; what was noticed is warned of."""
    made = load_kspace(path, index)
    for text in made.warnings:
        warnings.warn(text, stacklevel=2)
    return made.values


def read_noise_scan(path: str | Path) -> Tensor:
    """Noise without signal, complex128 ``(coils, samples)``.

    Parameters
    ----------
    path
        ``.npy`` with a complex array ``(coils, ...)``, or of one axis for one coil; it was measured with the same
        receivers, gain and bandwidth as the k-space that it belongs to. Or an ISMRMRD file with acquisitions of noise,
        whose variance is brought to the bandwidth of the others of the file.

    Raises
    ------
    DataError
        the file cannot be used.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() in HDF5_SUFFIXES:
        return read_ismrmrd_noise(path)
    if path.suffix.lower() != ".npy":
        raise DataError(f"{path}: unknown kind of noise scan; valid are .npy and ISMRMRD {', '.join(HDF5_SUFFIXES)}")
    array = _complex_array(path)
    if array.ndim == 0 or 0 in array.shape:
        raise DataError(f"{path}: an array of shape {array.shape}; valid is (coils, samples)")
    return torch.from_numpy(array.reshape(array.shape[0] if array.ndim > 1 else 1, -1)).to(torch.complex128)


def _read_hdf5(path: Path, index: int) -> MeasuredKSpace:
    with open_hdf5(path) as file:
        raw = holds_ismrmrd(file)
    if raw:
        return read_ismrmrd(path, index)
    scan = read_fastmri(path, index)
    values = scan.kspace if scan.mask is None else scan.kspace * scan.mask
    return MeasuredKSpace(values.to(torch.complex128), None if scan.target is None else scan.target[0], scan.pixel_size)


def _read_numpy(path: Path, index: int) -> MeasuredKSpace:
    if index != 0:
        raise DataError(f"{path}: there is no slice {index}; a NumPy file holds one slice, 0")
    array = _complex_array(path)
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise DataError(f"{path}: an array of shape {array.shape}; valid are (height, width), (coils, height, width)")
    return MeasuredKSpace(torch.from_numpy(array.reshape(-1, *array.shape[-2:])).to(torch.complex128))


def _complex_array(path: Path) -> np.ndarray:
    array = load_array(path)
    if not np.iscomplexobj(array):
        raise DataError(f"{path}: values of type {array.dtype}; k-space is an array of complex values")
    check_finite(array, path)
    return array


#: which function reads a file of k-space, by its suffix: a new kind of file is a line here, whatever the program
READERS: dict[str, Callable[[Path, int], MeasuredKSpace]] = {
    ".npy": _read_numpy,
    **dict.fromkeys(HDF5_SUFFIXES, _read_hdf5),
}
