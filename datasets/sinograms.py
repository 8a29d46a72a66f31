"""Readers of measured sinograms: HTC2022 (.mat), DXchange as of tomopy (.h5), NumPy (.npy, .npz)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.hdf5 import check_finite, find_dataset, open_hdf5
from datasets.limits import load_arrays
from datasets.matlab import check_mat
from datasets.physics import line_integrals, transmission_weights
from datasets.reading import DataError
from datasets.scans import Scan, degrees_to_radians, ordered_views

SINOGRAM_SUFFIXES = (".mat", ".h5", ".hdf5", ".npy", ".npz")

# More detector pixels without light than this share are no defects that neighbours could replace.
_MAX_DEAD = 0.05


def read_sinogram(path: str | Path, **options: Any) -> Scan:
    """Read a scan by the suffix of its file: ``read_htc``, ``read_dxchange`` or ``read_numpy``, whose options it takes.

    Raises:
        DataError: an unknown suffix, and whatever the reader raises.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SINOGRAM_SUFFIXES:
        raise DataError(f"{path}: unknown kind of sinogram file; valid suffixes are {', '.join(SINOGRAM_SUFFIXES)}")
    if suffix == ".mat":
        return read_htc(path, **options)
    if suffix in (".npy", ".npz"):
        return read_numpy(path, **options)
    return read_dxchange(path, **options)


def read_htc(path: str | Path) -> Scan:
    """Read a fan-beam scan of the Helsinki Tomography Challenge 2022 (Meaney et al., Zenodo 7418878).

    A MATLAB file (version 5 to 7.2) with the structure ``CtDataFull`` or ``CtDataLimited``: ``sinogram`` (angles,
    detectors), line integrals, and ``parameters`` with ``angles`` in degrees, ``distanceSourceOrigin``,
    ``distanceSourceDetector`` and ``pixelSizePost`` (of the detector, after binning) in mm.

    The axis projects onto the middle of the detector. A quarter turn is added to the angles, so that reconstructions
    have the orientation of the organisers' pictures. Those have pixels of ``effectivePixelSizePost`` mm, and their
    values are per pixel: divide them by that size for 1/mm.

    Raises:
        DataError: no such file, not readable as MATLAB, a field that is missing, and what ``Scan`` does not accept.
    """
    path = Path(path)
    data = _load_mat(path)
    name = next((name for name in ("CtDataFull", "CtDataLimited") if name in data), None)
    if name is None:
        there = ", ".join(sorted(key for key in data if not key.startswith("_"))) or "nothing"
        raise DataError(f"{path}: has no structure CtDataFull or CtDataLimited; it has {there}")
    parameters = _member(data[name], "parameters", path)
    values = {key: getattr(parameters, key) for key in getattr(parameters, "_fieldnames", [])}
    degrees = np.atleast_1d(np.asarray(_member(parameters, "angles", path), dtype=np.float64))
    source = _length(parameters, "distanceSourceOrigin", path)
    sinogram = np.atleast_2d(np.asarray(_member(data[name], "sinogram", path), dtype=np.float64))
    sinogram, angles = ordered_views(sinogram, degrees_to_radians(degrees, path) + math.pi / 2)
    return Scan(
        sinogram=_tensor(sinogram),
        angles=_tensor(angles),
        detector_spacing=_length(parameters, "pixelSizePost", path),
        source_distance=source,
        detector_distance=_length(parameters, "distanceSourceDetector", path) - source,
        metadata={key: value for key, value in values.items() if key != "angles"},
        path=path,
    )


def read_dxchange(
    path: str | Path,
    row: int = 0,
    rotation_centre: float | None = None,
    detector_spacing: float | None = None,
    flat: float | None = None,
    dark: float | None = None,
) -> Scan:
    """Read one slice of a parallel-beam scan in the DXchange format (De Carlo et al., J. Synchrotron Rad. 21, 2014).

    Datasets: ``exchange/data`` (angles, rows, columns), ``exchange/data_white`` and ``exchange/data_dark`` (frames,
    rows, columns), all raw counts, and ``exchange/theta`` in degrees (or radians, if its attribute ``units`` says so).
    With the means F and D of flat and dark frames, the line integrals are log((F - D) / max(data - D, 1/2)), see
    ``line_integrals``, and the weights of rays are their counts data - D.

    Detector pixels without light, F <= D, are filled in by linear interpolation between their neighbours in the same
    view, have weight 0, and are listed in ``metadata["dead_pixels"]``.

    Args:
        path: the file.
        row: detector row, i.e. the slice.
        rotation_centre: detector column of the axis (columns count from 0 at their centres); None is the middle. The
            format has no place for it; ``estimate_rotation_centre`` finds it from the data.
        detector_spacing: in mm; None is 1, so that all lengths are in detector pixels
            (``metadata["length_unit"]``).
        flat, dark: constant counts in place of flat and dark frames that are missing.

    Raises:
        DataError: not readable, a dataset that is missing (missing flats too), shapes that do not fit, NaN, no such
            row, more than 5 % of pixels without light.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        stored = find_dataset(file, "exchange/data", path)
        if stored.ndim != 3:
            raise DataError(f"{path}: exchange/data has the shape {stored.shape}; valid is (angles, rows, columns)")
        if not 0 <= row < stored.shape[1]:
            raise DataError(f"{path}: there is no detector row {row}; valid are 0 to {stored.shape[1] - 1}")
        shape = stored.shape[1:]
        data = np.asarray(stored[:, row], dtype=np.float64)
        check_finite(data, "exchange/data", path)
        white = _frames(file, "exchange/data_white", "flat", flat, (row, *shape), path)
        black = _frames(file, "exchange/data_dark", "dark", dark, (row, *shape), path)
        theta = find_dataset(file, "exchange/theta", path)
        units = theta.attrs.get("units", "degrees")
        units = units.decode() if isinstance(units, bytes) else str(units)
        angles = np.asarray(theta, dtype=np.float64).ravel()
    angles = angles if units.lower().startswith("rad") else degrees_to_radians(angles, path)
    data, angles = ordered_views(data, angles)
    beam = white - black
    dead = beam <= 0
    if dead.mean() > _MAX_DEAD:
        raise DataError(
            f"{path}: {int(dead.sum())} of {dead.size} detector pixels of row {row} have flat fields that do not "
            "exceed the dark field; are the flats missing, or exchanged with the darks?"
        )
    counts = _tensor(data - black).clamp_min(0)
    sinogram = line_integrals(counts, _tensor(np.where(dead, 1.0, beam)))
    weights = transmission_weights(counts)
    if dead.any():
        sinogram = _interpolated(sinogram, dead)
        weights[:, _tensor(dead)] = 0.0
    return Scan(
        sinogram=sinogram,
        angles=_tensor(angles),
        detector_spacing=1.0 if detector_spacing is None else detector_spacing,
        rotation_centre=rotation_centre,
        weights=weights,
        metadata={
            "row": row,
            "dead_pixels": np.flatnonzero(dead).tolist(),
            "length_unit": "detector pixel" if detector_spacing is None else "mm",
        },
        path=path,
    )


def read_numpy(
    path: str | Path,
    angles: np.ndarray | None = None,
    angles_degrees: np.ndarray | None = None,
    detector_spacing: float | None = None,
    source_distance: float | None = None,
    detector_distance: float | None = None,
    rotation_centre: float | None = None,
) -> Scan:
    """Read line integrals (angles, detectors) from ``.npy``, or from ``.npz`` together with the geometry.

    A ``.npz`` file has ``sinogram`` and, with the names of the arguments here, whatever describes its geometry;
    arguments that are given replace what the file says. Lengths are in mm. One of ``angles`` (radians) and
    ``angles_degrees`` and the ``detector_spacing`` must be known; without the two distances, rays are parallel.

    Raises:
        DataError: not readable, no sinogram or no angles, angles given twice, and what ``Scan`` does not accept.
    """
    path = Path(path)
    stored = _load_numpy(path)
    if "sinogram" not in stored:
        raise DataError(f"{path}: has no array 'sinogram'; it has {', '.join(sorted(stored)) or 'none'}")
    given: dict[str, Any] = {
        "detector_spacing": detector_spacing,
        "source_distance": source_distance,
        "detector_distance": detector_distance,
        "rotation_centre": rotation_centre,
    }
    numbers: dict[str, Any] = {
        key: _number(stored, key, path) if value is None else value for key, value in given.items()
    }
    if numbers["detector_spacing"] is None:
        raise DataError(f"{path}: detector_spacing is not known; put it into a .npz file or give it, in mm")
    if angles is None and angles_degrees is None:
        angles, angles_degrees = stored.get("angles"), stored.get("angles_degrees")
    if (angles is None) == (angles_degrees is None):
        raise DataError(f"{path}: give one of angles (radians) and angles_degrees")
    radians = np.asarray(angles, np.float64) if angles_degrees is None else degrees_to_radians(angles_degrees, path)
    values = stored["sinogram"]
    if not (np.issubdtype(values.dtype, np.floating) or np.issubdtype(values.dtype, np.integer)):
        raise DataError(f"{path}: the sinogram has values of type {values.dtype}; valid are real numbers")
    sinogram, radians = ordered_views(values.astype(np.float64), radians)
    return Scan(sinogram=_tensor(sinogram), angles=_tensor(radians), **numbers, path=path)


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _load_mat(path: Path) -> dict[str, Any]:
    import scipy.io

    check_mat(path)
    try:
        loaded: dict[str, Any] = scipy.io.loadmat(str(path), squeeze_me=True, struct_as_record=False)
    except NotImplementedError as error:
        raise DataError(f"{path}: MATLAB files of version 7.3 are not supported; save with `-v7`") from error
    # scipy's own MatReadError is an Exception only; damaged files end in any of the others
    except Exception as error:
        raise DataError(f"{path}: cannot be read as a MATLAB file, it may be truncated or corrupt ({error})") from error
    return loaded


def _member(structure: Any, name: str, path: Path) -> Any:
    if not hasattr(structure, name):
        there = ", ".join(getattr(structure, "_fieldnames", [])) or "none"
        raise DataError(f"{path}: has no field {name!r}; it has {there}")
    return getattr(structure, name)


def _length(structure: Any, name: str, path: Path) -> float:
    value = np.asarray(_member(structure, name, path))
    if value.size != 1 or not np.issubdtype(value.dtype, np.number):
        raise DataError(f"{path}: {name} is {value.tolist()}; it must be one length in mm")
    return float(value.item())


def _frames(
    file: Any, key: str, name: str, constant: float | None, place: tuple[int, int, int], path: Path
) -> np.ndarray:
    """Mean over the frames of one detector row, ``place`` = (row, rows, columns)."""
    row, *shape = place
    if constant is not None and key not in file:
        return np.full(shape[1], float(constant))
    if key not in file:
        raise DataError(
            f"{path}: has no {name} fields ({key}), without which counts are no line integrals; give the {name} count "
            f"as `{name}`"
        )
    stored = find_dataset(file, key, path)
    if stored.ndim != 3 or list(stored.shape[1:]) != shape or stored.shape[0] == 0:
        raise DataError(f"{path}: {key} has the shape {stored.shape}; valid is (frames, {shape[0]}, {shape[1]})")
    values = np.asarray(stored[:, row], dtype=np.float64)
    check_finite(values, key, path)
    return np.asarray(values.mean(0))


def _interpolated(sinogram: torch.Tensor, dead: np.ndarray) -> torch.Tensor:
    position, alive = np.arange(dead.size), ~dead
    rows = [np.interp(position, position[alive], view[alive]) for view in sinogram.numpy()]
    return torch.from_numpy(np.stack(rows))


def _load_numpy(path: Path) -> dict[str, np.ndarray]:
    return load_arrays(path, "sinogram")


def _number(stored: dict[str, np.ndarray], key: str, path: Path) -> float | None:
    if key not in stored:
        return None
    if stored[key].size != 1 or not np.issubdtype(stored[key].dtype, np.number):
        raise DataError(f"{path}: {key} has the shape {stored[key].shape}; it must be one number")
    return float(stored[key].item())
