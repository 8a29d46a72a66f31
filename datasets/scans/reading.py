"""Readers of measured sinograms: Helsinki's .mat, DXchange and NXtomo (.h5, .nxs), NumPy (.npy, .npz), TIFF."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.errors import check_finite
from datasets.physics import MIN_COUNT
from datasets.readers.hdf5 import open_hdf5
from datasets.readers.limits import load_arrays
from datasets.readers.pictures import TIFF_SUFFIXES, DataError
from datasets.scans.angles import OrderedViews, ordered_views, view_angles
from datasets.scans.counts import (
    HDF5_SUFFIXES,
    Attenuation,
    Field,
    as_tensor,
    attenuation,
    field_row,
    plain_array,
    starved,
)
from datasets.scans.detector import without_bad_pixels
from datasets.scans.frames import Given, read_dxchange
from datasets.scans.matlab import read_matlab
from datasets.scans.nxtomo import holds_nxtomo, read_nxtomo
from datasets.scans.plausibility import background, implausible
from datasets.scans.rings import without_rings
from datasets.scans.scan import Distances, Scan


def read_sinogram(path: str | Path, ring_filter: int | None = None, **options: Any) -> Scan:
    """Read a scan by its kind of file: ``read_numbers`` or ``read_counts``, whose options it takes.

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
    read = READERS[suffix](path, **options)
    scan = without_bad_pixels(read.warned(*implausible(read)))
    said = background(scan, counted=read.weights is not None)
    if scan.weights is not None:
        said = (*starved(scan.weights, scan.metadata.get("bad_pixels", ()), path, options.get("photons")), *said)
    scan = scan.warned(*said)
    return scan if ring_filter is None else without_rings(scan, ring_filter)


def read_counts(
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
    """Read one slice of a parallel-beam scan with raw counts in HDF5: ``read_dxchange`` or ``read_nxtomo``.

    See ``datasets.scans.counts.attenuation`` for line integrals, weights, and detector pixels without light, which are
    listed in ``metadata["dead_pixels"]``. Views are sorted by their angles, and averaged where a scan over several
    turns has them at the same angle (``ordered_views``).

    Parameters
    ----------
    path
        the file.
    row
        detector row, i.e. the slice.
    rotation_centre
        detector column of the axis (columns count from 0 at their centres); None is the middle. The formats have no
        place for it; ``estimate_rotation_centre`` finds it from the data.
    detector_spacing
        in mm; None is that of the file, or 1, so that all lengths are in detector pixels (``metadata["length_unit"]``).
    flat, dark, angles, angles_degrees, photons
        as in ``read_numbers``, in place of those of the file.

    Raises
    ------
    DataError
        not readable, what is missing (flats too), shapes that do not fit, NaN, no such row, more than 5 % of pixels
        without light.
    """
    path = Path(path)
    given = Given(flat, dark, angles, angles_degrees)
    with open_hdf5(path) as file:
        frames = (read_nxtomo if holds_nxtomo(file) else read_dxchange)(file, row, given, path)
    radians, said = view_angles(*frames.angles, len(frames.data), path)
    views = ordered_views(frames.data, radians, path)
    white, black = frames.fields
    made = attenuation(views.values, white, black, path, photons, views.repeats, row)
    spacing = frames.detector_spacing if detector_spacing is None else detector_spacing
    return replace(
        _scan(views, made, said, path),
        detector_spacing=1.0 if spacing is None else spacing,
        rotation_centre=rotation_centre,
        metadata={
            "row": row,
            "dead_pixels": made.dead_pixels,
            "flat": float(white.mean()),
            "dark": float(black.mean()),
            "length_unit": "detector pixel" if spacing is None else "mm",
        },
    )


def _scan(views: OrderedViews, made: Attenuation | None, said: tuple[str, ...], path: Path) -> Scan:
    """The scan of views that are line integrals, or counts of which line integrals were ``made``; without lengths."""
    return Scan(
        sinogram=as_tensor(views.values) if made is None else made.sinogram,
        angles=as_tensor(views.angles),
        detector_spacing=1.0,
        weights=None if made is None else made.weights,
        repeats=views.repeats,
        path=path,
        warnings=(*said, *views.warnings),
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
    be known; without the two distances, rays are parallel. Values are taken as they are stored, integers too. With
    ``flat``, they are counts, or whatever is proportional to them, see ``datasets.scans.counts.attenuation``.

    Parameters
    ----------
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
    lengths = (detector_spacing, source_distance, detector_distance, rotation_centre)
    spacing, distances, centre = _lengths(stored, lengths, path)
    values, given = np.asarray(stored["sinogram"]), Given(flat, dark, angles, angles_degrees)
    if not (np.issubdtype(values.dtype, np.floating) or np.issubdtype(values.dtype, np.integer)):
        raise DataError(f"{path}: the sinogram has values of type {values.dtype}; valid are real numbers")
    own = given.angles_or(lambda: (stored.get("angles"), stored.get("angles_degrees")))
    radians, said = view_angles(*own, len(np.atleast_1d(values)), path)
    views = ordered_views(values.astype(np.float64), radians + stored.get("turn", 0.0), path)
    made = _counted(views, given, photons, path)
    return replace(
        _scan(views, made, said, path),
        detector_spacing=spacing,
        distances=distances,
        rotation_centre=centre,
        metadata=stored.get("metadata", {}) if made is None else {"dead_pixels": made.dead_pixels},
    )


def _counted(views: OrderedViews, given: Given, photons: float | None, path: Path) -> Attenuation | None:
    """Line integrals of counts; None if there is no flat field, as the values are line integrals."""
    values, flat, dark = views.values, given.flat, given.dark
    if flat is None:
        if dark is not None:
            raise DataError(f"{path}: a dark field belongs to counts; give the flat field too (--flat)")
        return None
    if values.ndim != 2:
        raise DataError(f"{path}: a sinogram of shape {values.shape}; valid is (angles, detectors)")
    check_finite(values, path, "the sinogram")
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
    return attenuation(values, field_row(flat, "flat", place, path), black, path, photons, views.repeats)


def _load(path: Path, shape: tuple[int, int] | None) -> dict[str, Any]:
    suffix = path.suffix.lower()
    if suffix == ".mat":
        return read_matlab(path, shape)
    if suffix in TIFF_SUFFIXES:
        return {"sinogram": plain_array(path)}
    return {key: value for key, value in load_arrays(path, "sinogram").items() if key not in ("turn", "metadata")}


def _lengths(
    stored: dict[str, Any], given: tuple[float | None, ...], path: Path
) -> tuple[float, Distances | None, float | None]:
    """Spacing, distances and rotation centre of the detector: as given, or else as stored."""
    names = ("detector_spacing", "source_distance", "detector_distance", "rotation_centre")
    pairs = zip(names, given, strict=True)
    spacing, source, detector, centre = (_number(stored, name, path) if v is None else v for name, v in pairs)
    if spacing is None:
        raise DataError(f"{path}: detector_spacing is not known; put it into a .npz file or give it, in mm")
    if (source is None) != (detector is None):
        raise DataError(f"{path}: source_distance and detector_distance belong together; give both or neither")
    return spacing, None if source is None or detector is None else Distances(source, detector), centre


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
    **dict.fromkeys(HDF5_SUFFIXES, read_counts),
    ".npy": read_numbers,
    ".npz": read_numbers,
    **dict.fromkeys(TIFF_SUFFIXES, read_numbers),
}
#: of files of a folder that are sinograms; TIFF files are pictures there
SINOGRAM_SUFFIXES = tuple(suffix for suffix in READERS if suffix not in TIFF_SUFFIXES)
