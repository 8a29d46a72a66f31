"""From the counts of a detector to line integrals: flat and dark fields, and rays that hardly any light passed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.errors import DataError, check_finite, reading
from datasets.physics import MIN_TRANSMISSION, line_integrals, transmission_weights
from datasets.readers.hdf5 import find_dataset, open_hdf5
from datasets.readers.limits import check_memory, load_array
from datasets.readers.pictures import TIFF_SUFFIXES

HDF5_SUFFIXES = (".h5", ".hdf5", ".nxs", ".nx")

# More detector pixels without light than this share are no defects that neighbours could replace.
_MAX_DEAD = 0.05
# Up to this share of pixels without light are defects of the detector.
_FEW = 0.1

#: a flat or dark field: one count for all pixels, an array, or a file (see ``field_row``)
Field = float | np.ndarray | Path


@dataclass(frozen=True)
class Attenuation:
    """Line integrals of a scan with the weights of its rays."""

    sinogram: Tensor
    """(views, columns) float64."""
    weights: Tensor
    """Counts above the dark field, of the same shape; 0 for rays that were not measured."""
    dead: np.ndarray
    """(columns,) True for detector pixels without light."""

    @property
    def dead_pixels(self) -> list[int]:
        """The numbers of these pixels."""
        return [int(k) for k in np.flatnonzero(self.dead)]


def attenuation(
    data: np.ndarray,
    flat: np.ndarray,
    dark: np.ndarray,
    path: Path,
    photons: float | None = None,
    repeats: Tensor | None = None,
    row: int | None = None,
) -> Attenuation:
    """Line integrals z = log((F - D) / max(data - D, floor)) and the weights (data - D) of rays.

    Flat, dark and data may be in any common unit: a common factor changes z by nothing and multiplies the weights. So
    the floor is relative to the flat field, ``MIN_TRANSMISSION`` (F - D), or, where the ``photons`` are known, half a
    photon, mean(F - D) / (2 photons). Rays at the floor were not measured: they weigh 0; ``starved`` counts them.

    Detector pixels without light, F <= D, are filled in by linear interpolation between their neighbours in the same
    view, and weigh 0.

    Parameters
    ----------
    data
        (views, columns).
    flat, dark
        (columns,), F and D.
    path
        for messages.
    photons
        of a ray through air in one view, on average over the pixels.
    repeats
        (views,) how many views were averaged for each.
    row
        of the detector, for messages.

    Raises
    ------
    DataError
        more than 5 % of the pixels have no light.
    """
    beam = flat - dark
    dead = beam <= 0
    if dead.mean() > _MAX_DEAD:
        raise DataError(
            f"{path}: {int(dead.sum())} of {dead.size} detector pixels{'' if row is None else f' of row {row}'} have "
            "flat fields that do not exceed the dark field; are the flats missing, or exchanged with the darks?"
        )
    beam = np.where(dead, 1.0, beam)
    floor = beam * MIN_TRANSMISSION if photons is None else np.full(beam.shape, beam[~dead].mean() / (2 * photons))
    counts = as_tensor(data - dark).clamp_min(0)
    sinogram = line_integrals(counts, as_tensor(beam), floor=as_tensor(floor))
    cut = (counts < as_tensor(floor)) & ~as_tensor(dead)
    weights = transmission_weights(counts)
    weights = weights if repeats is None else weights * repeats[:, None]
    weights[cut] = 0.0
    if dead.any():
        sinogram = torch.from_numpy(lit(sinogram.numpy(), np.broadcast_to(dead, sinogram.shape)))
        weights[:, as_tensor(dead)] = 0.0
    return Attenuation(sinogram, weights, dead)


def starved(weights: Tensor, bad: Sequence[int], path: Path, photons: float | None) -> tuple[str, ...]:
    """``starvation`` of the rays of weight 0, without those of the detector pixels ``bad``, which say it themselves.

    Pixels that are many (more than 10 %) lack light, not health: the rays of all of them count then.
    """
    live = torch.ones(weights.shape[1], dtype=torch.bool)
    if len(bad) <= _FEW * len(live):
        live[list(bad)] = False
    cut = weights[:, live] <= 0
    return starvation(int(cut.sum()), cut.numel(), path, photons)


def starvation(cut: int, rays: int, path: Path, photons: float | None) -> tuple[str, ...]:
    """What to say about ``cut`` of ``rays`` rays at the floor of the logarithm; nothing where there are none."""
    if cut == 0:
        return ()
    floor = f"1/{round(1 / MIN_TRANSMISSION)} of the flat field" if photons is None else "half a photon"
    largest = -math.log(MIN_TRANSMISSION) if photons is None else math.log(2 * photons)
    share = 100 * cut / rays
    text = (
        f"{path}: {cut} of {rays} rays ({share:.2g} %) have less light than {floor}; their line integrals are cut at "
        f"about {largest:.3g}, and they weigh 0 in every method but filtered back-projection"
    )
    if 2 * cut > rays:
        text += (
            ". Photon starvation: most rays measured nothing, so the result says little about the object, whatever its "
            "certificate; use more photons"
        )
    return (text,)


def field_row(field: Field, name: str, place: tuple[int, int, int], path: Path) -> np.ndarray:
    """A flat or dark field for one detector row, averaged over its frames, (columns,).

    Parameters
    ----------
    field
        a count; an array (columns,), (rows, columns), or with frames in front, (frames, rows, columns) and, where there
        is one row, (frames, columns); or a ``.npy``, TIFF or HDF5 file with such an array. HDF5 files have it as
        ``exchange/data_white`` or ``exchange/data_dark``. Values stay as they are stored.
    name
        ``"flat"`` or ``"dark"``.
    place
        (row, rows, columns).
    path
        of the scan, for messages.

    Raises
    ------
    DataError
        the file cannot be read, another shape, values that are not finite, a flat field of 0.
    """
    row, rows, columns = place
    if isinstance(field, Path):
        path, values = field, _read_field(field, name)
    else:
        values = np.asarray(field, dtype=np.float64)
    check_finite(values, path, f"the {name} field")
    if values.ndim == 0:
        if name == "flat" and not values > 0:
            raise DataError(f"{path}: the flat count is {float(values):g}; it must be positive")
        return np.full(columns, float(values))
    if values.shape[-1] == columns:
        if values.ndim == 1:
            return values
        if values.ndim == 3 and values.shape[1] == rows:
            return np.asarray(values[:, row].mean(0))
        if values.ndim == 2 and values.shape[0] == rows:
            return np.asarray(values[row])
        if values.ndim == 2 and rows == 1:
            return np.asarray(values.mean(0))
    raise DataError(
        f"{path}: a {name} field of shape {values.shape}; valid are one number, ({columns},), ({rows}, {columns}) and "
        f"(frames, {rows}, {columns})"
    )


def _read_field(path: Path, name: str) -> np.ndarray:
    if path.suffix.lower() in HDF5_SUFFIXES:
        key = "exchange/data_white" if name == "flat" else "exchange/data_dark"
        with open_hdf5(path) as file:
            return np.asarray(find_dataset(file, key, path), dtype=np.float64)
    return plain_array(path).astype(np.float64)


def plain_array(path: Path) -> np.ndarray:
    """The real numbers in a ``.npy`` or TIFF file, as they are stored.

    Raises
    ------
    DataError
        no such file, another kind of file, damaged, values that are no real numbers.
    """
    suffix = path.suffix.lower()
    if suffix not in (".npy", *TIFF_SUFFIXES):
        raise DataError(f"{path}: unknown kind of file for an array of numbers; valid are .npy, .tif and .tiff")
    with reading(path, "an array"):  # tifffile and its decoders raise errors of many kinds for damaged files
        values = load_array(path) if suffix == ".npy" else np.asarray(_tiff(path))
    if not (np.issubdtype(values.dtype, np.floating) or np.issubdtype(values.dtype, np.integer)):
        raise DataError(f"{path}: has values of type {values.dtype}; valid are real numbers")
    return values


def _tiff(path: Path) -> np.ndarray:
    import tifffile  # not before a TIFF file is met: it takes long to import

    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        check_memory(path, "an array", series.shape)
        check_memory(path, "one strip or tile", file.pages.first.chunks)
        return series.asarray()


def tiff_shape(path: Path) -> tuple[int, ...]:
    """The shape of the array in a TIFF file, () where it cannot be read, as its reader will say."""
    import tifffile  # not before a TIFF file is met: it takes long to import

    try:
        with tifffile.TiffFile(path) as file:
            return tuple(file.series[0].shape)
    except Exception:  # tifffile raises errors of many kinds for damaged files
        return ()


def lit(sinogram: np.ndarray, dark: np.ndarray) -> np.ndarray:
    """A sinogram (views, columns) whose ``dark`` rays, without light, are interpolated linearly in their views.

    Views without any light stay as they are.
    """
    filled, columns = sinogram.copy(), np.arange(sinogram.shape[1])
    for view in np.flatnonzero(dark.any(1) & ~dark.all(1)):
        alive = ~dark[view]
        filled[view] = np.interp(columns, columns[alive], sinogram[view, alive])
    return filled


def as_tensor(values: np.ndarray) -> Tensor:
    """The values, contiguous in memory."""
    return torch.from_numpy(np.ascontiguousarray(values))
