"""Readers of measured sinograms: Helsinki's .mat, DXchange and NXtomo (.h5, .nxs), NumPy (.npy, .npz), TIFF."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.physics import MIN_COUNT
from datasets.readers.hdf5 import check_finite, find_dataset, open_hdf5
from datasets.readers.limits import load_arrays
from datasets.readers.pictures import TIFF_SUFFIXES, DataError
from datasets.scans.angles import ordered_views, view_angles
from datasets.scans.counts import HDF5_SUFFIXES, Attenuation, Field, attenuation, field_row, plain_array, starved
from datasets.scans.detector import without_bad_pixels
from datasets.scans.matlab import read_matlab
from datasets.scans.nxtomo import attribute, read_frames
from datasets.scans.plausibility import background, implausible
from datasets.scans.rings import without_rings
from datasets.scans.scan import Scan


def read_sinogram(path: str | Path, ring_filter: int | None = None, **options: Any) -> Scan:
    """Read a scan by its kind of file: ``read_numbers``, ``read_dxchange`` or ``read_nxtomo``, whose options it takes.

    Values that cannot be line integrals in the units of the file are refused, or said in ``Scan.warnings``; see
    ``datasets.scans.plausibility``. Detector pixels that did not measure are found and weigh 0; see
    ``datasets.scans.detector.without_bad_pixels``. Rays without light and air that is not 0 are said. ``ring_filter``
    removes rings, with a median over so many detector pixels; see ``datasets.scans.rings``.

    Raises
    ------
    DataError
        an unknown suffix, and whatever the reader raises; raw counts or transmissions that are taken for line
        integrals; a ring filter that is no odd number.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise DataError(f"{path}: unknown kind of sinogram file; valid suffixes are {', '.join(READERS)}")
    scan = READERS[suffix](path, **options)
    counted = scan.weights is not None
    scan = without_bad_pixels(replace(scan, warnings=(*scan.warnings, *implausible(scan))))
    said = background(scan, counted)
    if scan.weights is not None:
        said = (*starved(scan.weights, scan.metadata.get("bad_pixels", ()), path, options.get("photons")), *said)
    scan = replace(scan, warnings=(*scan.warnings, *said))
    return scan if ring_filter is None else without_rings(scan, ring_filter)


def _read_hdf5(path: Path, **options: Any) -> Scan:
    return (read_nxtomo if _is_nxtomo(path) else read_dxchange)(path, **options)


def _is_nxtomo(path: Path) -> bool:
    with open_hdf5(path) as file:
        if "exchange" in file:
            return False
        keys: list[str] = []
        file.visit(lambda name: keys.append(name) if name.rpartition("/")[2] == "image_key" else None)
        return bool(keys)


def read_dxchange(
    path: str | Path,
    row: int = 0,
    rotation_centre: float | None = None,
    detector_spacing: float | None = None,
    flat: Field | None = None,
    dark: Field | None = None,
    angles: np.ndarray | None = None,
    angles_degrees: np.ndarray | float | None = None,
    photons: float | None = None,
) -> Scan:
    """Read one slice of a parallel-beam scan in the DXchange format (De Carlo et al., J. Synchrotron Rad. 21, 2014).

    Datasets: ``exchange/data`` (angles, rows, columns), ``exchange/data_white`` and ``exchange/data_dark`` (frames,
    rows, columns), all raw counts in a common unit, and ``exchange/theta`` in degrees (or radians, if its attribute
    ``units`` says so). Flat and dark frames are averaged; see ``datasets.scans.counts.attenuation`` for line integrals,
    weights, and detector pixels without light, which are listed in ``metadata["dead_pixels"]``. Views are sorted by
    their angles, and averaged where a scan over several turns has them at the same angle (``ordered_views``).

    Parameters
    ----------
    path
        the file.
    row
        detector row, i.e. the slice.
    rotation_centre
        detector column of the axis (columns count from 0 at their centres); None is the middle. The format has no place
        for it; ``estimate_rotation_centre`` finds it from the data.
    detector_spacing
        in mm; None is 1, so that all lengths are in detector pixels (``metadata["length_unit"]``).
    flat, dark
        in place of the frames of the file: a count, an array or a file, see ``datasets.scans.counts.field_row``.
    angles, angles_degrees
        in place of those of the file: radians; or degrees, or one number, the arc of the scan.
    photons
        of a ray through air in one view, if they are known.

    Raises
    ------
    DataError
        not readable, a dataset that is missing (missing flats too), shapes that do not fit, NaN, no such row, more than
        5 % of pixels without light.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        stored = find_dataset(file, "exchange/data", path)
        if stored.ndim != 3:
            raise DataError(f"{path}: exchange/data has the shape {stored.shape}; valid is (angles, rows, columns)")
        if not 0 <= row < stored.shape[1]:
            raise DataError(f"{path}: there is no detector row {row}; valid are 0 to {stored.shape[1] - 1}")
        place = (row, *stored.shape[1:])
        data = np.asarray(stored[:, row], dtype=np.float64)
        check_finite(data, "exchange/data", path)
        white = _frames(file, "exchange/data_white", "flat", flat, place, path)
        black = _frames(file, "exchange/data_dark", "dark", dark, place, path)
        if angles is None and angles_degrees is None:
            if "exchange/theta" not in file:
                _without_angles(file, path)
            theta = find_dataset(file, "exchange/theta", path)
            angles, angles_degrees = _in_unit(np.asarray(theta, dtype=np.float64), attribute(theta, "units"), path)
    geometry = {"rotation_centre": rotation_centre, "detector_spacing": detector_spacing}
    return _from_counts(path, (data, white, black), (angles, angles_degrees), photons, geometry, {"row": row})


def read_nxtomo(
    path: str | Path,
    row: int = 0,
    rotation_centre: float | None = None,
    detector_spacing: float | None = None,
    flat: Field | None = None,
    dark: Field | None = None,
    angles: np.ndarray | None = None,
    angles_degrees: np.ndarray | float | None = None,
    photons: float | None = None,
) -> Scan:
    """Read one slice of a parallel-beam scan in the NeXus format NXtomo.

    Frames ``data`` (frames, rows, columns) with their ``image_key``, 0 for projections, 1 for flat and 2 for dark
    fields, and ``rotation_angle`` in degrees (or radians, if its attribute ``units`` says so). ``x_pixel_size`` is the
    detector spacing where it has a unit of length. Everything else, and the options, as ``read_dxchange``.

    Raises
    ------
    DataError
        see ``read_dxchange`` and ``datasets.scans.nxtomo.read_frames``.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        frames = read_frames(file, row, path)
    place = (row, frames.rows, frames.data.shape[1])
    fields = []
    for name, given, own in (("flat", flat, frames.flat), ("dark", dark, frames.dark)):
        if given is None and own is None:
            raise DataError(_MISSING.format(path=path, name=name, where="image_key"))
        fields.append(np.asarray(own) if given is None else field_row(given, name, place, path))
    if angles is None and angles_degrees is None:
        if frames.angles is None:
            raise DataError(f"{path}: has no rotation_angle; give the angles (--angles: a file, or the arc in degrees)")
        angles, angles_degrees = _in_unit(frames.angles, frames.angle_units, path)
    spacing = frames.detector_spacing if detector_spacing is None else detector_spacing
    geometry = {"rotation_centre": rotation_centre, "detector_spacing": spacing}
    data = (frames.data, fields[0], fields[1])
    return _from_counts(path, data, (angles, angles_degrees), photons, geometry, {"row": row})


def _from_counts(
    path: Path,
    fields: tuple[np.ndarray, np.ndarray, np.ndarray],
    angles: tuple[np.ndarray | None, np.ndarray | float | None],
    photons: float | None,
    geometry: dict[str, Any],
    metadata: dict[str, Any],
) -> Scan:
    """The scan of counts with flat and dark field; ``angles`` in radians or in degrees."""
    data, white, black = fields
    radians, said = view_angles(*angles, len(data), path)
    views = ordered_views(data, radians, path)
    made = attenuation(views.values, white, black, path, photons, views.repeats, metadata.get("row"))
    spacing = geometry["detector_spacing"]
    return Scan(
        sinogram=made.sinogram,
        angles=_tensor(views.angles),
        repeats=None if views.repeats is None else _tensor(views.repeats),
        weights=made.weights,
        metadata={
            **metadata,
            "dead_pixels": np.flatnonzero(made.dead).tolist(),
            "flat": float(white.mean()),
            "dark": float(black.mean()),
            "length_unit": "detector pixel" if spacing is None else "mm",
        },
        path=path,
        warnings=(*said, *views.warnings),
        **{**geometry, "detector_spacing": 1.0 if spacing is None else spacing},
    )


def read_numbers(
    path: str | Path,
    angles: np.ndarray | None = None,
    angles_degrees: np.ndarray | float | None = None,
    detector_spacing: float | None = None,
    source_distance: float | None = None,
    detector_distance: float | None = None,
    rotation_centre: float | None = None,
    flat: Field | None = None,
    dark: Field | None = None,
    photons: float | None = None,
    shape: tuple[int, int] | None = None,
) -> Scan:
    """Read line integrals (angles, detectors) from ``.npy``, TIFF or ``.npz``, or from the MATLAB files of Helsinki.

    A ``.npz`` file has ``sinogram`` and, with the names of the arguments here, whatever describes its geometry, and
    MATLAB files have structures (HTC2022: Meaney et al., Zenodo 7418878) or arrays (``datasets.scans.matlab``).
    Arguments that are given replace what the file says. Lengths are in mm. The angles and the ``detector_spacing`` must
    be known; without the two distances, rays are parallel. Values are taken as they are stored, integers too.

    With ``flat``, the file holds counts, or whatever is proportional to them, see
    ``datasets.scans.counts.attenuation``.

    Parameters
    ----------
    path
        the file.
    angles, angles_degrees
        one of them: radians; or degrees, or one number, the arc of the scan.
    detector_spacing, source_distance, detector_distance, rotation_centre
        see ``Scan``.
    flat, dark
        counts of air and of no light: a number, an array or a file, see ``datasets.scans.counts.field_row``; ``dark``
        is 0 by default.
    photons
        of a ray through air in one view, if they are known.
    shape
        (angles, detectors), of a MATLAB file with arrays.

    Raises
    ------
    DataError
        not readable, no sinogram or no angles, angles given twice, and what ``Scan`` does not accept.
    """
    path = Path(path)
    stored = _load(path, shape)
    if "sinogram" not in stored:
        raise DataError(f"{path}: has no array 'sinogram'; it has {', '.join(sorted(stored)) or 'none'}")
    lengths = _lengths(stored, (detector_spacing, source_distance, detector_distance, rotation_centre), path)
    if angles is None and angles_degrees is None:
        angles, angles_degrees = stored.get("angles"), stored.get("angles_degrees")
    values = np.asarray(stored["sinogram"])
    if not (np.issubdtype(values.dtype, np.floating) or np.issubdtype(values.dtype, np.integer)):
        raise DataError(f"{path}: the sinogram has values of type {values.dtype}; valid are real numbers")
    radians, said = view_angles(angles, angles_degrees, len(np.atleast_1d(values)), path)
    views = ordered_views(values.astype(np.float64), radians + stored.get("turn", 0.0), path)
    made = _counted(views.values, flat, dark, photons, path, views.repeats)
    return Scan(
        sinogram=_tensor(views.values) if made is None else made.sinogram,
        weights=None if made is None else made.weights,
        angles=_tensor(views.angles),
        repeats=None if views.repeats is None else _tensor(views.repeats),
        **lengths,
        metadata=stored.get("metadata", {}) if made is None else {"dead_pixels": np.flatnonzero(made.dead).tolist()},
        path=path,
        warnings=(*said, *views.warnings),
    )


def _counted(
    values: np.ndarray,
    flat: Field | None,
    dark: Field | None,
    photons: float | None,
    path: Path,
    repeats: np.ndarray | None,
) -> Attenuation | None:
    """Line integrals of counts; None if there is no flat field, as the values are line integrals."""
    if flat is None:
        if dark is not None:
            raise DataError(f"{path}: a dark field belongs to counts; give the flat field too (--flat)")
        return None
    if values.ndim != 2:
        raise DataError(f"{path}: a sinogram of shape {values.shape}; valid is (angles, detectors)")
    check_finite(values, "the sinogram", path)
    if dark is None and values.min() < 0:
        raise DataError(f"{path}: has counts of {values.min():g}, but they must be at least 0 without a dark field")
    fractions = (values > 0) & (values < MIN_COUNT)
    if dark is None and flat == photons and fractions.mean() > 0.01:
        raise DataError(
            f"{path}: {int(fractions.sum())} of {values.size} values lie between 0 and half a photon, so they are not "
            "numbers of photons; give the value of air in their unit as --flat, in place of --counts"
        )
    place = (0, 1, values.shape[1])
    black = field_row(0.0 if dark is None else dark, "dark", place, path)
    return attenuation(values, field_row(flat, "flat", place, path), black, path, photons, repeats)


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


_MISSING = (
    "{path}: has no {name} fields ({where}), without which counts are no line integrals; give the {name} count, an "
    "array or a file as `{name}` (--{name})"
)


def _frames(file: Any, key: str, name: str, given: Field | None, place: tuple[int, int, int], path: Path) -> np.ndarray:
    """Mean over the frames of one detector row, ``place`` = (row, rows, columns)."""
    if given is not None:
        return field_row(given, name, place, path)
    if key not in file:
        raise DataError(_MISSING.format(path=path, name=name, where=key))
    row, *shape = place
    stored = find_dataset(file, key, path)
    if stored.ndim != 3 or list(stored.shape[1:]) != shape or stored.shape[0] == 0:
        raise DataError(f"{path}: {key} has the shape {stored.shape}; valid is (frames, {shape[0]}, {shape[1]})")
    values = np.asarray(stored[:, row], dtype=np.float64)
    check_finite(values, key, path)
    return np.asarray(values.mean(0))


def _without_angles(file: Any, path: Path) -> None:
    try:
        find_dataset(file, "exchange/theta", path)
    except DataError as error:
        raise DataError(f"{error}; give the angles (--angles: a file, or the arc in degrees)") from error


def _in_unit(values: np.ndarray, unit: str, path: Path) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Angles of a file as (radians, None) or (None, degrees); without a unit they are degrees."""
    name = unit.strip().lower()
    if name.startswith("rad"):
        return values.ravel(), None
    if name and not name.startswith(("deg", "°")):
        raise DataError(f"{path}: its angles have the unit {unit!r}; valid are degrees and radians; give --angles")
    return None, values.ravel()


def _load(path: Path, shape: tuple[int, int] | None) -> dict[str, Any]:
    suffix = path.suffix.lower()
    if suffix == ".mat":
        return read_matlab(path, shape)
    if suffix in TIFF_SUFFIXES:
        return {"sinogram": plain_array(path)}
    return {key: value for key, value in _load_numpy(path).items() if key not in ("turn", "metadata")}


def _load_numpy(path: Path) -> dict[str, np.ndarray]:
    return load_arrays(path, "sinogram")


def _lengths(stored: dict[str, Any], given: tuple[float | None, ...], path: Path) -> dict[str, Any]:
    """The numbers of a ``Scan`` that describe its geometry: as given, or else as stored."""
    names = ("detector_spacing", "source_distance", "detector_distance", "rotation_centre")
    pairs = zip(names, given, strict=True)
    lengths = {name: _number(stored, name, path) if value is None else value for name, value in pairs}
    if lengths["detector_spacing"] is None:
        raise DataError(f"{path}: detector_spacing is not known; put it into a .npz file or give it, in mm")
    return lengths


def _number(stored: dict[str, Any], key: str, path: Path) -> float | None:
    if key not in stored:
        return None
    value = np.asarray(stored[key])
    if value.size != 1 or not np.issubdtype(value.dtype, np.number):
        raise DataError(f"{path}: {key} has the shape {value.shape}; it must be one number")
    return float(value.item())


#: which function reads a file of sinograms, by its suffix: a new kind of file is a line here, whatever the program
READERS: dict[str, Callable[..., Scan]] = {
    ".mat": read_numbers,
    **dict.fromkeys(HDF5_SUFFIXES, _read_hdf5),
    ".npy": read_numbers,
    ".npz": read_numbers,
    **dict.fromkeys(TIFF_SUFFIXES, read_numbers),
}
#: of files of a folder that are sinograms; TIFF files are pictures there
SINOGRAM_SUFFIXES = tuple(suffix for suffix in READERS if suffix not in TIFF_SUFFIXES)
