"""Sinograms for ``recon reconstruct``: options, geometry of the file or of YAML, and the choice of views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from datasets.modules.tomography import MU_UNIT
from datasets.readers.hdf5 import LODOPAB_MU_MAX, find_dataset, open_hdf5
from datasets.readers.pictures import DataError
from datasets.scans.counts import HDF5_SUFFIXES, plain_array
from datasets.scans.reading import read_sinogram
from datasets.scans.rotation import assumed_centre, rotation_centre
from datasets.scans.scan import Scan, lodopab_geometry
from recon.commands.configuration.yaml_files import check_counts, read_yaml
from recon.commands.reconstruct.options import option
from recon.operators import FanBeam, Geometry, ParallelBeam, RayTransform, geometry_from_dict
from recon.operators.tomography.ray_transform import Backend
from recon.reconstruction import Origin

#: of attenuation
UNIT = "1/mm"
# Views closer than this (radians) to a full turn after the first one repeat it.
_SAME = 1e-6

# Twice the distance of the axis to the farther end of the detector, relative to the detector: displaced on purpose.
_DISPLACED = 1.1


@dataclass(frozen=True)
class Reading:
    """How a file is read, as its reader takes it: which slice, and what its values mean.

    With ``counts``, the file holds the photons that arrived. ``flat``, ``dark`` and ``angles`` are numbers or names of
    files, ``ring_filter`` a number of detector pixels.
    """

    index: int = 0
    rotation_centre: str | None = None
    counts: bool = False
    flat: str | None = None
    dark: str | None = None
    angles: str | None = None
    ring_filter: int | None = None


@dataclass(frozen=True)
class RayNoise:
    """The noise on the scale of the file, or the photons of a ray through air; ``seed`` and ``number`` fix that of a
    simulation."""

    deviation: float | None = None
    photons: float | None = None
    seed: int = 0
    number: int = 0


@dataclass(frozen=True)
class CTOptions:
    """What is asked for on the command line; lengths in mm, angles in degrees."""

    geometry: Path | None = None
    size: int | None = None
    pixel_size: float | None = None
    views: int | None = None
    angle_range: tuple[float, float] | None = None
    reading: Reading = Reading()
    noise: RayNoise = RayNoise()
    filter: str = "ram-lak"
    backend: Backend = "matrix"


@dataclass(frozen=True)
class Sinogram:
    """Line integrals along the rays of a geometry, x = µ / ``mu_unit``.

    Parameters
    ----------
    origin : Origin
        Where they are from.
    values : Tensor
        (angles, detectors).
    geometry : Geometry
        Of the rays.
    mu_unit : float
        µ in the unit of the result of a pixel of value 1.
    reference : Tensor, optional
        The true picture, where it is known.
    beam : Tensor, optional
        Counts of each ray in arbitrary units, 0 where nothing was measured, of the shape of ``values``.
    repeats : Tensor, optional
        How many views were averaged for each view of ``values``, (angles,); None: none was. ``beam`` counts all.
    photons : Tensor, optional
        Photons that arrived on each ray, of the shape of ``values``.
    operator : RayTransform, optional
        Of this geometry, if there is one already.
    """

    origin: Origin
    values: Tensor
    geometry: Geometry
    mu_unit: float = MU_UNIT
    reference: Tensor | None = None
    beam: Tensor | None = None
    repeats: Tensor | None = None
    photons: Tensor | None = None
    operator: RayTransform | None = None


def read(path: Path, options: CTOptions) -> Sinogram:
    """All views of a file.

    Raises
    ------
    DataError
        (a ValueError) the file cannot be used, or does not fit the geometry.
    ValueError
        options do not go with the file.
    """
    if path.suffix.lower() in HDF5_SUFFIXES and _is_lodopab(path):
        return _read_lodopab(path, options)
    if options.geometry is not None:
        return _read_with_geometry(path, options.geometry, options)
    scan = _without_repeated_view(read_sinogram(path, **_reader_options(path, options)))
    scan, details = _centred(scan, options)
    detectors = _pixels_across(scan)
    size = detectors if options.size is None else options.size
    pixel_size = options.pixel_size
    if pixel_size is None:
        field = float(scan.detector_spacing / scan.magnification) * detectors
        if "effectivePixelSizePost" in scan.metadata:
            field = 512 * float(scan.metadata["effectivePixelSizePost"])  # the field of the challenge's pictures
        pixel_size = field / size
    unit = UNIT if scan.metadata.get("length_unit", "mm") == "mm" else "1/detector pixel"
    geometry = scan.geometry((size, size), pixel_size)
    return _of_scan(scan, geometry, Origin.of_slice(path, options.reading.index, unit), details)


def _pixels_across(scan: Scan) -> int:
    """Detector pixels across the circle that the scan sees: those of the detector, or more where it is displaced.

    Over a full turn a detector beside the axis sees both sides one after the other, twice as far as its farther end.
    """
    detectors = scan.sinogram.shape[1]
    reach = max(scan.centre, detectors - 1 - scan.centre) + 0.5
    turn = float(scan.angles[-1] - scan.angles[0]) > 1.9 * math.pi
    return math.ceil(2 * reach) if turn and 2 * reach > _DISPLACED * detectors else detectors


def _centred(scan: Scan, options: CTOptions) -> tuple[Scan, dict[str, object]]:
    """The scan with its rotation centre, given or estimated, and what the report says of it."""
    centre = options.reading.rotation_centre
    if centre is None and scan.path.suffix.lower() in HDF5_SUFFIXES:
        centre = "estimate"  # the format has no place for it, and it is hardly ever the middle
    entry: dict[str, object] = {"detector_pixel": scan.centre, "estimated": centre == "estimate"}
    said: tuple[str, ...] = ()
    if centre == "estimate":
        found = rotation_centre(scan)
        scan = replace(scan, rotation_centre=found.centre)
        entry |= {"detector_pixel": found.centre, "method": found.method, "uncertainty": found.uncertainty}
        if found.doubt is not None:
            said = (
                f"{scan.path}: its rotation centre, detector pixel {found.centre:.2f} from {found.method}, is "
                f"doubtful: {found.doubt}; give --rotation-centre",
            )
    elif centre is not None:
        scan = replace(scan, rotation_centre=_number(centre))
        entry["detector_pixel"] = scan.centre
    elif scan.rotation_centre is None:
        said = assumed_centre(scan)
    return replace(scan, warnings=(*scan.warnings, *said)), {"rotation_centre": entry}


def selected(sinogram: Sinogram, options: CTOptions) -> Sinogram:
    """The views within ``angle_range`` (degrees after the first view), thinned out to ``views`` at equal distances."""
    views = chosen_views(sinogram.geometry, options, sinogram.origin.data)
    beam = None if sinogram.beam is None else sinogram.beam[views]
    repeats = None if sinogram.repeats is None else sinogram.repeats[views]
    geometry = sinogram.geometry.select(views)
    return replace(sinogram, values=sinogram.values[views], geometry=geometry, beam=beam, repeats=repeats)


def chosen_views(geometry: Geometry, options: CTOptions, path: Path) -> list[int]:
    """The numbers of the views that :func:`selected` takes."""
    angles = np.asarray(geometry.angles)
    chosen = np.arange(len(angles))
    if options.angle_range is not None:
        start, stop = (math.radians(a) for a in options.angle_range)
        after = angles - angles[0]
        # rounding of the angles must not decide on the views at the ends
        chosen = np.flatnonzero((after >= start - _SAME) & (after < stop - _SAME))
        if not len(chosen):
            raise DataError(
                f"{path}: no view lies between {options.angle_range[0]:g} and {options.angle_range[1]:g} degrees after "
                f"the first; the scan spans {math.degrees(after[-1]):g} degrees"
            )
    if options.views is not None:
        if options.views > len(chosen):
            raise DataError(f"{path}: --views is {options.views}, but there are only {len(chosen)} to choose from")
        chosen = chosen[np.arange(options.views) * len(chosen) // options.views]
    return [int(k) for k in chosen]


class ReaderOptions(TypedDict, total=False):
    """What :func:`datasets.read_sinogram` is told."""

    row: int
    angles_degrees: float | np.ndarray
    flat: float | Path
    dark: float | Path
    photons: float
    ring_filter: int | None
    # known from a geometry
    angles: np.ndarray
    detector_spacing: float
    shape: tuple[int, ...]


def _reader_options(path: Path, options: CTOptions) -> ReaderOptions:
    """Slice, angles, and what the values of the file mean."""
    asked, photons = options.reading, options.noise.photons
    made: ReaderOptions = {"ring_filter": asked.ring_filter}
    raw = path.suffix.lower() in HDF5_SUFFIXES
    if raw:
        made["row"] = asked.index
    elif asked.index != 0:
        raise DataError(f"{path}: there is no slice {asked.index}; the file holds one, 0")
    if asked.angles is not None:
        made["angles_degrees"] = _angles(asked.angles)
    if asked.flat is not None:
        made["flat"] = _number_or_file(asked.flat)
    if asked.dark is not None:
        made["dark"] = _number_or_file(asked.dark)
    if asked.counts:
        if raw or asked.flat is not None:
            what = f"{path}, whose" if raw else "--flat:"
            raise ValueError(f"--counts does not go with {what} flat fields say what the values mean")
        if photons is None:
            raise ValueError("--counts needs --photons, those of a ray through air")
        made["flat"] = photons
    if photons is not None and (raw or "flat" in made):
        made["photons"] = photons
    return made


def _number_or_file(text: str) -> float | Path:
    try:
        return float(text)
    except ValueError:
        return Path(text)


def _angles(text: str) -> float | np.ndarray:
    """An arc in degrees, or the angles of all views in degrees out of a file: .npy, or text with one in a line."""
    given = _number_or_file(text)
    if isinstance(given, float):
        return given
    if given.suffix.lower() == ".npy":
        return np.atleast_1d(plain_array(given)).ravel()
    if not given.is_file():
        raise DataError(f"{given}: no such file; --angles is an arc in degrees, or a file with one angle for each view")
    try:
        return np.array([float(word) for word in given.read_text().replace(",", " ").split()])
    except ValueError as error:  # UnicodeDecodeError is one
        raise DataError(
            f"{given}: cannot be read as angles, numbers in degrees with space between ({error})"
        ) from error


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"--rotation-centre is {text!r}; valid are a detector pixel, or `estimate`") from error


def _without_repeated_view(scan: Scan) -> Scan:
    """A full turn measured from 0 to 360 degrees has its first view twice."""
    last = float(scan.angles[-1] - scan.angles[0])
    return scan.select(slice(0, -1)) if last > 2 * math.pi - _SAME and len(scan.angles) > 1 else scan


def _refuse(options: CTOptions, names: Sequence[str], reason: str) -> None:
    """Raise ``ValueError`` for an option of these names that was given."""
    given = {**vars(options), **vars(options.reading)}
    for name in names:
        if given[name] not in (None, False):
            raise ValueError(f"{option(name)} does not go with {reason}")


def _read_with_geometry(path: Path, file: Path, options: CTOptions) -> Sinogram:
    geometry = read_geometry(file)
    if options.size is not None or options.pixel_size is not None:
        raise ValueError(f"--size and --pixel-size do not go with --geometry: {file} has image_shape and pixel_size")
    _refuse(options, ("angles", "rotation_centre"), f"--geometry: {file} says what it is")
    told = _reader_options(path, options)
    told["angles"], told["detector_spacing"] = np.asarray(geometry.angles), geometry.detector_spacing
    if path.suffix.lower() == ".mat":
        told["shape"] = geometry.range_shape[1:]
    scan = read_sinogram(path, **told)
    if tuple(scan.sinogram.shape) != geometry.range_shape[1:]:
        raise DataError(
            f"{path}: its sinogram has the shape {tuple(scan.sinogram.shape)}, but {file} describes "
            f"{geometry.range_shape[1]} angles and {geometry.range_shape[2]} detector pixels"
        )
    return _of_scan(scan, geometry, Origin.of_slice(path, options.reading.index, UNIT), {"geometry_file": str(file)})


def _of_scan(scan: Scan, geometry: Geometry, origin: Origin, details: dict[str, object]) -> Sinogram:
    if scan.repeats is not None:
        details = {**details, "views_averaged": int(scan.repeats.sum())}
    details = {**details, **{key: scan.metadata[key] for key in ("bad_pixels", "ring_filter") if key in scan.metadata}}
    origin = replace(origin, details=details, warnings=scan.warnings)
    return Sinogram(origin, scan.sinogram, geometry, beam=scan.weights, repeats=scan.repeats)


def read_geometry(file: Path) -> ParallelBeam | FanBeam:
    """The geometry in a YAML file, see docs/geometry.md.

    Raises
    ------
    OSError
        the file cannot be read.
    DataError
        it is no YAML, or no parallel or fan beam in the plane.
    """
    values = read_yaml(file)
    check_counts(values, file)
    try:
        geometry = geometry_from_dict(values)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise DataError(f"{file}: {error}") from error
    if geometry.ndim != 2 or not isinstance(geometry, (ParallelBeam, FanBeam)):
        raise DataError(f"{file}: describes a {geometry.kind} beam; valid here are parallel and fan")
    return geometry


def _is_lodopab(path: Path) -> bool:
    with open_hdf5(path) as file:
        return "data" in file and "exchange" not in file


def _read_lodopab(path: Path, options: CTOptions) -> Sinogram:
    """Observation ``index`` of a file of LoDoPaB-CT, and its ground truth where the file is beside it."""
    if not path.name.startswith("observation"):
        raise DataError(f"{path}: has a dataset `data` as LoDoPaB-CT, but is no file observation_*.hdf5 of it")
    known = ("geometry", "size", "angles", "flat", "dark", "counts", "rotation_centre")
    _refuse(options, known, "LoDoPaB-CT, whose line integrals and geometry are known")
    geometry = lodopab_geometry()
    index = options.reading.index
    values = _entry(path, index, geometry.range_shape[1:])
    truth = path.with_name(path.name.replace("observation", "ground_truth", 1))
    reference = _entry(truth, index, geometry.image_shape) * LODOPAB_MU_MAX if truth.is_file() else None
    # the files count lengths in m, and µ in units of µ_max
    origin = Origin.of_slice(path, index, UNIT)
    return Sinogram(origin, 1000 * LODOPAB_MU_MAX * values, geometry, LODOPAB_MU_MAX, reference)


def _entry(path: Path, index: int, shape: tuple[int, ...]) -> Tensor:
    with open_hdf5(path) as file:
        data = find_dataset(file, "data", path)
        if data.ndim != 3 or tuple(data.shape[1:]) != shape or not 0 <= index < data.shape[0]:
            raise DataError(f"{path}: data has the shape {data.shape}; entry {index} of shape {shape} was asked for")
        values = torch.from_numpy(np.asarray(data[index], dtype=np.float64))
    if not bool(torch.isfinite(values).all()):
        raise DataError(f"{path}: entry {index} has values that are NaN or infinite")
    return values
