"""Reader of ISMRMRD raw data (Inati et al., Magn. Reson. Med. 77, 2017): Cartesian slices out of acquisitions."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from datasets.errors import DataError, check_finite
from datasets.readers.hdf5 import Bounded, find_dataset, open_hdf5

if TYPE_CHECKING:
    import h5py

# Flags of acquisitions, bits counted from 1 (ismrmrd.h).
_NOISE, _CALIBRATION, _CALIBRATION_AND_IMAGE, _REVERSE = 19, 20, 21, 22
# Navigators, phase correction, feedback, dummies, surface coils, phase stabilization: no lines of the image.
_NO_IMAGE = (23, 24, 26, 27, 28, 29, 30, 31)
_FIELDS = ("flags", "number_of_samples", "active_channels", "center_sample", "idx")
# Counters of which one value belongs to a picture.
_OTHERS = ("contrast", "phase", "repetition", "set")


@dataclass(frozen=True)
class MeasuredKSpace:
    """One slice of measured k-space, on the scale of its file."""

    values: Tensor
    """complex128 (coils, height, width), centre at (height // 2, width // 2), zero where nothing was measured."""
    target: Tensor | None = None
    """(H, W) float64: the reconstruction in a fastMRI file."""
    pixel_size: tuple[float, float] | None = None
    """Height and width in mm of a pixel."""
    noise: Tensor | None = None
    """complex128 (coils, samples): noise with the variance of ``values``, where the file has a scan of it."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Space:
    """Matrix and field of view of the header along readout and lines; ``centre`` is the line of the zero frequency."""

    matrix: tuple[int, int]
    extent: tuple[float, float]
    readout: float
    """Field of view of the reconstruction along the readout in mm."""
    centre: int
    embedded: bool
    """Whether lines for calibration were measured as those of the image."""


def holds_ismrmrd(file: h5py.File) -> bool:
    """Whether an open HDF5 file has the acquisitions of ISMRMRD, a table ``data`` beside ``xml`` in some group."""
    return _group(file) is not None


def read_ismrmrd(path: str | Path, index: int = 0) -> MeasuredKSpace:
    """Read slice ``index``, in the order of slice numbers: (coils, readout, lines).

    Each acquisition is a line along the first axis, at ``kspace_encode_step_1`` relative to the centre of the encoding
    limits. Where the field of view that is encoded along the readout is larger than that of the reconstruction
    (oversampling), the image is cut to the latter: F_m C F_n^-1 with unitary transforms, which keep the variance of
    noise. Acquisitions of one line are averaged. Of contrasts, phases, repetitions and sets the first is read, with a
    warning.

    Raises
    ------
    DataError
        no such file or slice; acquisitions without counters, a header without matrix sizes; trajectories that are not
        Cartesian, readouts in both directions, three-dimensional encoding, numbers of averages that differ between
        lines, oversampled readouts that are not complete; values that are NaN or infinite.
    ImportError
        h5py is not installed.
    """
    path = Path(path)
    space, heads, rows = _open(path)
    chosen, texts = _image_rows(heads, index, space.embedded, path)
    kspace, averages = _grid(heads, rows, chosen, space, path)
    kspace = _cut_readout(kspace, space, path)
    noise = _noise(heads, rows, chosen[0], path)
    return MeasuredKSpace(
        torch.from_numpy(kspace),
        pixel_size=(space.extent[0] / space.matrix[0], space.extent[1] / space.matrix[1]),
        noise=None if noise is None else torch.from_numpy(noise) / math.sqrt(averages),
        warnings=tuple(texts),
    )


def read_ismrmrd_noise(path: str | Path) -> Tensor:
    """The acquisitions of noise of a file, complex128 (coils, samples), with the variance of its lines.

    Raises
    ------
    DataError
        the file cannot be read, or has none.
    """
    path = Path(path)
    _, heads, rows = _open(path)
    line = next((k for k in range(len(rows)) if not _flag(heads[k], _NOISE)), None)
    noise = None if line is None else _noise(heads, rows, line, path)
    if noise is None:
        raise DataError(f"{path}: has no acquisition of noise (flag {_NOISE})")
    return torch.from_numpy(noise)


def _group(file: h5py.File) -> h5py.Group | None:
    for item in file.values():
        if hasattr(item, "keys") and "data" in item and "xml" in item and item["data"].dtype.names is not None:
            return item
    return None


def _open(path: Path) -> tuple[_Space, np.ndarray, list[np.ndarray]]:
    """Header, heads of the acquisitions, and their samples, complex (channels, samples)."""
    with open_hdf5(path) as file:
        group = _group(file)
        if group is None:
            find_dataset(file, "dataset/data", path)  # names what is there
            raise DataError(f"{path}: has no acquisitions of ISMRMRD")
        table, header = (Bounded(group[name], path)[()] for name in ("data", "xml"))
    names = table.dtype.names or ()
    fields = (table.dtype["head"].names or ()) if "head" in names else ()
    missing = [name for name in _FIELDS if name not in fields] + ["data"] * ("data" not in names)
    if missing:
        raise DataError(
            f"{path}: its acquisitions have no {', no '.join(missing)}, so nobody can tell which lines of k-space they "
            "are, nor how many samples are oversampling; write the file with the ISMRMRD library, or give the k-space "
            "of a slice as .npy, complex (coils, height, width) with the zero frequency in the middle"
        )
    heads = table["head"]
    rows = []
    for number, (head, data) in enumerate(zip(heads, table["data"], strict=True)):
        shape = (int(head["active_channels"]), int(head["number_of_samples"]))
        values = np.asarray(data, dtype=np.float64).ravel()
        if values.size != 2 * math.prod(shape):
            raise DataError(
                f"{path}: acquisition {number} has {values.size} numbers, but its head says {shape[0]} channels with "
                f"{shape[1]} complex samples"
            )
        check_finite(values, path, f"acquisition {number}")
        rows.append(values.view(np.complex128).reshape(shape))
    return _space(header, path), heads, rows


def _space(header: np.ndarray, path: Path) -> _Space:
    text = header.ravel()[0]
    try:
        root = ElementTree.fromstring(text)
        encodings = root.findall("{*}encoding")
        if len(encodings) != 1:
            raise ValueError(f"it has {len(encodings)} encodings; valid is one")
        encoding = encodings[0]
        trajectory = (encoding.findtext("{*}trajectory") or "").strip().lower()
        if trajectory != "cartesian":
            raise ValueError(f"its trajectory is {trajectory or 'not given'}; valid is cartesian")
        x, y, z = (int(_text(encoding, f"encodedSpace/matrixSize/{a}")) for a in "xyz")
        extent = tuple(float(_text(encoding, f"encodedSpace/fieldOfView_mm/{a}")) for a in "xy")
        readout = float(_text(encoding, "reconSpace/fieldOfView_mm/x"))
        limits = encoding.findtext("{*}encodingLimits/{*}kspace_encoding_step_1/{*}center")
        centre = y // 2 if limits is None else int(limits)
        if z != 1:
            raise ValueError(f"{z} partitions are encoded in three dimensions; valid are single slices")
        if min(x, y) < 1 or not all(0 < v < math.inf for v in (*extent, readout)):
            raise ValueError("matrix sizes and fields of view must be positive")
    except (ElementTree.ParseError, ValueError, TypeError) as error:
        raise DataError(f"{path}: its ISMRMRD header cannot be used ({error})") from error
    mode = (encoding.findtext("{*}parallelImaging/{*}calibrationMode") or "").strip().lower()
    return _Space((x, y), (extent[0], extent[1]), readout, centre, mode == "embedded")


def _text(encoding: ElementTree.Element, place: str) -> str:
    found = encoding.findtext("/".join(f"{{*}}{part}" for part in place.split("/")))
    if found is None:
        raise ValueError(f"it has no {place}")
    return found


def _flag(head: np.void, bit: int) -> bool:
    return bool(int(head["flags"]) >> (bit - 1) & 1)


def _image_rows(heads: np.ndarray, index: int, embedded: bool, path: Path) -> tuple[list[int], list[str]]:
    """The acquisitions of a slice, and what was left out."""
    used = [k for k in range(len(heads)) if not any(_flag(heads[k], bit) for bit in (_NOISE, *_NO_IMAGE))]
    # lines for calibration alone may be of another contrast, unless the header says that they are embedded
    image = [
        k for k in used if embedded or not _flag(heads[k], _CALIBRATION) or _flag(heads[k], _CALIBRATION_AND_IMAGE)
    ]
    if not image:
        raise DataError(f"{path}: has no acquisition of an image among {len(heads)}")
    slices = sorted({int(heads[k]["idx"]["slice"]) for k in image})
    if not 0 <= index < len(slices):
        raise DataError(f"{path}: there is no slice {index}; valid are 0 to {len(slices) - 1}")
    chosen, texts = [k for k in image if int(heads[k]["idx"]["slice"]) == slices[index]], []
    for name in _OTHERS:
        values = sorted({int(heads[k]["idx"][name]) for k in chosen})
        if len(values) > 1:
            texts.append(f"{path}: has {len(values)} values of {name}; only the first is reconstructed")
            chosen = [k for k in chosen if int(heads[k]["idx"][name]) == values[0]]
    if len(image) < len(used):
        texts.append(f"{path}: {len(used) - len(image)} lines that are for calibration alone are not used")
    reverse = sum(_flag(heads[k], _REVERSE) for k in chosen)
    if reverse:
        raise DataError(
            f"{path}: {reverse} lines are read in the reverse direction (EPI), which needs a correction of phases; "
            "give corrected k-space as .npy"
        )
    return chosen, texts


def _grid(
    heads: np.ndarray, rows: list[np.ndarray], chosen: list[int], space: _Space, path: Path
) -> tuple[np.ndarray, int]:
    """k-space (coils, readout, lines), and how many acquisitions of each line were averaged."""
    width, height = space.matrix
    channels = {len(rows[k]) for k in chosen}
    if len(channels) != 1:
        raise DataError(f"{path}: its lines have different numbers of channels, {sorted(channels)}")
    made = np.zeros((channels.pop(), width, height), dtype=np.complex128)
    counts = np.zeros(height, dtype=int)
    names = heads.dtype.names or ()
    for k in chosen:
        head = heads[k]
        if "trajectory_dimensions" in names and int(head["trajectory_dimensions"]) > 0:
            raise DataError(f"{path}: acquisition {k} has a trajectory of its own; valid are Cartesian lines")
        before = int(head["discard_pre"]) if "discard_pre" in names else 0
        after = rows[k].shape[1] - (int(head["discard_post"]) if "discard_post" in names else 0)
        start = width // 2 - int(head["center_sample"])
        line = height // 2 - space.centre + int(head["idx"]["kspace_encode_step_1"])
        if not (0 <= line < height and 0 <= start + before < start + after <= width):
            raise DataError(
                f"{path}: acquisition {k} is line {line} with samples {start + before} to {start + after}, outside of "
                f"the encoded {width}x{height} points"
            )
        made[:, start + before : start + after, line] += rows[k][:, before:after]
        counts[line] += 1
    averages = set(counts[counts > 0].tolist())
    if len(averages) != 1:
        raise DataError(
            f"{path}: lines were measured {min(averages)} to {max(averages)} times, so their noise differs; valid is "
            "the same number for all lines"
        )
    number = int(averages.pop())
    return made / number, number


def _cut_readout(kspace: np.ndarray, space: _Space, path: Path) -> np.ndarray:
    """Without the oversampling along the readout, axis 1."""
    size = space.matrix[0]
    kept = round(size * space.readout / space.extent[0])
    if kept >= size:
        return kspace
    sampled = (kspace != 0).any(0)
    lines = sampled.any(0)
    if kept < 1 or not sampled[:, lines].all():
        raise DataError(
            f"{path}: its readout is oversampled ({size} samples for {kept} pixels) but not complete (partial echo), "
            "so the oversampling cannot be removed; give k-space as .npy"
        )
    image = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(kspace, axes=1), axis=1, norm="ortho"), axes=1)
    image = image[:, size // 2 - kept // 2 : size // 2 - kept // 2 + kept]
    made = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(image, axes=1), axis=1, norm="ortho"), axes=1)
    made[:, :, ~lines] = 0.0  # exactly
    return np.asarray(made)


def _noise(heads: np.ndarray, rows: list[np.ndarray], line: int, path: Path) -> np.ndarray | None:
    """Noise (coils, samples) with the variance of a line, which is inverse to the dwell time; None without any."""
    parts = []
    for k in (k for k in range(len(rows)) if _flag(heads[k], _NOISE)):
        if len(rows[k]) != len(rows[line]):
            raise DataError(f"{path}: noise of {len(rows[k])} channels, but lines of {len(rows[line])}")
        ratio = 1.0
        if "sample_time_us" in (heads.dtype.names or ()):
            dwell, of_line = float(heads[k]["sample_time_us"]), float(heads[line]["sample_time_us"])
            ratio = dwell / of_line if dwell > 0 and of_line > 0 else 1.0
        parts.append(rows[k] * math.sqrt(ratio))
    return np.concatenate(parts, axis=1) if parts else None
