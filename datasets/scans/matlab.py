"""Sinograms in MATLAB files: structures of the Helsinki data sets (HTC2022, FIPS, HelTomo), and plain arrays."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from datasets.errors import DataError, reading
from datasets.readers.mat_format import check_mat

#: of a file, or of a structure in it
Fields = dict[str, Any]

# The names in the published data sets, in this order of preference.
_STRUCTURES = ("CtDataFull", "CtDataLimited", "CtData")


def read_matlab(path: Path, shape: tuple[int, int] | None = None) -> dict[str, Any]:
    """The sinogram of a MATLAB file (version 5 to 7.2) and what the file says about its geometry.

    Parameters
    ----------
    path
        the file.
    shape
        (angles, detectors), if they are known: an array in the file that has this shape, or as in the older data sets
        of FIPS (lotus root, walnut, cheese) its transpose, is the sinogram, and no geometry is needed.

    Returns
    -------
    dict[str, Any]
        ``sinogram`` (angles, detectors) and what is there of ``angles_degrees``, ``detector_spacing``,
        ``source_distance``, ``detector_distance`` and ``metadata``, see ``read_sinogram``. ``turn`` is to be added to
        the angles (radians): a quarter turn, so that reconstructions have the orientation of the organisers' pictures.

    Raises
    ------
    DataError
        no such file, not readable as MATLAB, no sinogram in it or several, a field that is missing.
    """
    data = _load_mat(path)
    name = _structure(data, path)
    if name is not None:
        return _of_structure(data[name], path, known=shape is not None)
    arrays = {
        key: value
        for key, value in data.items()
        if isinstance(value, np.ndarray) and value.ndim == 2 and np.issubdtype(value.dtype, np.number)
    }
    there = ", ".join(f"{k} {v.shape}" if k in arrays else k for k, v in sorted(data.items()) if k[0] != "_")
    if shape is None:
        names = ", ".join(sorted(key for key in data if key[0] != "_")) or "nothing"
        hint = ", and an array is read with the geometry of its scan (--geometry)" if arrays else ""
        raise DataError(
            f"{path}: has no structure CtDataFull or CtDataLimited; it has {names}. A structure CtData is read "
            f"too{hint}"
        )
    fitting = [key for key, value in arrays.items() if value.shape in (shape, shape[::-1])]
    fitting = ["sinogram"] if "sinogram" in fitting else fitting
    if len(fitting) != 1:
        raise DataError(
            f"{path}: has {len(fitting)} arrays of {shape[0]} angles and {shape[1]} detector pixels, as the geometry "
            f"says; valid is one, in either orientation; it has {there or 'nothing'}"
        )
    if shape[0] == shape[1]:
        raise DataError(
            f"{path}: {fitting[0]} has {shape[0]} rows and columns, so which of them are the angles is not known; save "
            "it as .npy with the shape (angles, detectors)"
        )
    values = arrays[fitting[0]]
    return {"sinogram": values if values.shape == shape else values.T}


def _structure(data: Fields, path: Path) -> str | None:
    found = [key for key, value in data.items() if isinstance(value, dict) and {"sinogram", "parameters"} & set(value)]
    named = [name for name in _STRUCTURES if name in found]
    if not named and len(found) > 1:
        raise DataError(f"{path}: has several scans, {', '.join(sorted(found))}; save one of them in a file of its own")
    return next(iter(named or found), None)


def _of_structure(structure: Fields, path: Path, known: bool) -> dict[str, Any]:
    """``known``: the geometry is, so that only the sinogram is needed."""
    sinogram = np.asarray(_member(structure, "sinogram", path))
    if sinogram.ndim > 2:
        raise DataError(
            f"{path}: its sinogram has the shape {sinogram.shape}, that of a scan in 3D; valid is (angles, detectors) "
            "of one slice"
        )
    if known:
        return {"sinogram": np.atleast_2d(sinogram)}
    parameters = _member(structure, "parameters", path)
    source = _length(parameters, "distanceSourceOrigin", path)
    return {
        "sinogram": np.atleast_2d(sinogram),
        "angles_degrees": np.atleast_1d(np.asarray(_member(parameters, "angles", path), dtype=np.float64)),
        "turn": math.pi / 2,
        "detector_spacing": _length(parameters, "pixelSizePost", path),
        "source_distance": source,
        "detector_distance": _length(parameters, "distanceSourceDetector", path) - source,
        "metadata": {key: value for key, value in parameters.items() if key != "angles"},
    }


def _load_mat(path: Path) -> Fields:
    import scipy.io

    check_mat(path)
    with reading(path, "a MATLAB file"):  # scipy's own MatReadError is an Exception only
        try:
            loaded: Fields = scipy.io.loadmat(str(path), simplify_cells=True)
        except NotImplementedError as error:
            raise DataError(f"{path}: MATLAB files of version 7.3 are not supported; save with `-v7`") from error
    return loaded


def _member(structure: object, name: str, path: Path) -> Any:
    fields = structure if isinstance(structure, dict) else {}
    if name not in fields:
        there = ", ".join(fields) or "none"
        raise DataError(f"{path}: has no field {name!r}; it has {there}. --geometry can describe the scan instead")
    return fields[name]


def _length(structure: object, name: str, path: Path) -> float:
    value = np.asarray(_member(structure, name, path))
    if value.size != 1 or not np.issubdtype(value.dtype, np.number):
        raise DataError(f"{path}: {name} is {value.tolist()}; it must be one length in mm")
    return float(value.item())
