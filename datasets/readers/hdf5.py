"""Readers of the HDF5 files of LoDoPaB-CT and fastMRI, and what all readers of HDF5 share."""

from __future__ import annotations

import contextlib
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from datasets.errors import DataError, check_finite, reading
from datasets.physics import MAX_HU, hu_to_attenuation
from datasets.readers.limits import check_memory
from datasets.readers.optional import require
from datasets.sources.images import PatientSource, Split

if TYPE_CHECKING:
    import h5py

#: what selects a part of a dataset
Key = int | slice | EllipsisType | tuple[int | slice | EllipsisType, ...]


@contextlib.contextmanager
def open_hdf5(path: str | Path) -> Iterator[h5py.File]:
    """The ``h5py.File`` of ``path``, for reading.

    Raises
    ------
    DataError
        no such file, no HDF5 file, truncated; also when data inside turn out to be unreadable.
    ImportError
        h5py is not installed.
    """
    h5py = require("h5py", "reading HDF5")
    # h5py raises OSError for what is no HDF5 file or ends too early, and errors of many kinds for damage inside
    with reading(path, "HDF5"), h5py.File(path, "r") as file:
        yield file


class Bounded:
    """A dataset of an open HDF5 file, of which no more is read than memory is allowed for.

    ``shape``, ``ndim``, ``dtype``, ``attrs`` and ``len`` are those of the ``h5py.Dataset``, and so are ``[...]`` and
    ``np.asarray``, but a selection that would take more than the limit, alone or with the chunk that has to be unpacked
    for it, raises ``DataError``.
    """

    def __init__(self, dataset: h5py.Dataset, path: str | Path) -> None:
        self._dataset, self._path = dataset, path
        self.shape: tuple[int, ...] = tuple(dataset.shape or ())
        self.ndim, self.dtype, self.attrs = len(self.shape), dataset.dtype, dataset.attrs

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Key) -> np.ndarray:
        what, itemsize = self._dataset.name, self.dtype.itemsize
        check_memory(self._path, what, self._selected(key), itemsize)
        check_memory(self._path, f"one chunk of {what}", self._dataset.chunks or (), itemsize)
        return np.asarray(self._dataset[key])

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[()], dtype=dtype)

    def _selected(self, key: Key) -> tuple[int, ...]:
        """The shape of a selection, by one value that is seen as all of them; other selections count as everything."""
        if key == () or not all(k is ... or isinstance(k, (int, slice, np.integer)) for k in np.index_exp[key]):
            return self.shape
        return tuple(np.broadcast_to(np.uint8(0), self.shape)[key].shape)


def find_dataset(file: h5py.File, key: str, path: str | Path) -> Bounded:
    """The dataset ``key`` of an open HDF5 file, as :class:`Bounded`.

    Raises
    ------
    DataError
        there is none; the message lists the datasets that are there.
    """
    h5py = require("h5py", "reading HDF5")
    found = file.get(key)
    if isinstance(found, h5py.Dataset):
        return Bounded(found, path)
    there: list[str] = []
    file.visititems(lambda name, item: there.append(name) if isinstance(item, h5py.Dataset) else None)
    listed = ", ".join(sorted(there)[:20]) + (", ..." if len(there) > 20 else "")
    raise DataError(f"{path}: has no dataset {key!r}; it has {listed or 'none at all'}")


def attribute(item: Bounded | h5py.File, name: str) -> str:
    """An attribute of an HDF5 object as text, empty if there is none; some programs write it as an array of one."""
    value = item.attrs.get(name, "")
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


# --- LoDoPaB-CT ------------------------------------------------------------------------------------------------------

#: µ in 1/mm to which the pictures of LoDoPaB-CT are normalized: 3071 HU with µ of water 0.02 and of air 0.00002
LODOPAB_MU_MAX = float(hu_to_attenuation(torch.tensor(MAX_HU, dtype=torch.float64), 0.02, 0.00002))

#: emitted photons for each ray in the simulation of LoDoPaB-CT
LODOPAB_PHOTONS = 4096

_PER_FILE = 128
# Pictures of each part (data descriptor, table 2). The last ground-truth file of a part may be padded with zeros.
_LENGTHS = {"train": 35820, "validation": 3522, "test": 3553}

LodopabPart = Literal["train", "validation", "test"]

#: what its parts are called elsewhere
LODOPAB_PARTS: dict[Split, LodopabPart] = {"train": "train", "val": "validation", "test": "test"}


class LoDoPaB(PatientSource):
    """LoDoPaB-CT (Leuschner et al., Scientific Data 8:109, 2021): pictures, low-dose sinograms, and patients.

    ``source[i]`` is the picture µ / µ_max of shape (1, 362, 362) on [0, 1], µ_max = ``LODOPAB_MU_MAX``.
    ``source.observation(i)`` is the sinogram of that picture, (1, 1000, 513), with pixels of 260/362 mm and lengths in
    mm, so that observation = A picture + noise with A in mm: the files hold line integrals of µ divided by µ_max in
    1/m, i.e. lengths in m. Their geometry is ``datasets.lodopab_geometry``. The
    first axis of pictures is x (to the patient's left), the second y (to the back): transpose them for the usual view.

    Files: ``ground_truth_{part}_{number:03d}.hdf5`` and ``observation_{part}_{number:03d}.hdf5``, each with a dataset
    ``data`` of up to 128 entries, and ``patient_ids_rand_{part}.csv`` with one number for each picture.

    Parameters
    ----------
    folder
        of these files; a subset of the files will do.
    part
        ``"train"``, ``"validation"`` or ``"test"``.
    size, crop_size
        of the pictures, see ``ImageSource``.

    Raises
    ------
    DataError
        no folder, no file of that part, a file without ``data`` or of another shape; when read, NaN.
    """

    def __init__(
        self, folder: str | Path, part: LodopabPart = "train", size: int | None = None, crop_size: int | None = None
    ) -> None:
        self.folder, self.part = Path(folder).expanduser(), part
        if part not in _LENGTHS:
            raise DataError(f"part is {part!r}; valid are {', '.join(_LENGTHS)}")
        if not self.folder.is_dir():
            raise DataError(f"{self.folder}: no such folder")
        files = sorted(self.folder.glob(f"ground_truth_{part}_*.hdf5"))
        if not files:
            raise DataError(f"{self.folder}: has no file ground_truth_{part}_*.hdf5 of LoDoPaB-CT")
        super().__init__((f"{file}[{row}]" for file in files for row in range(_entries(file, part))), size, crop_size)

    def _load(self, name: str) -> Tensor:
        file, row = _split_name(name)
        return _entry(file, row)

    def observation(self, index: int) -> Tensor:
        """The sinogram of picture ``index``, (1, angles, detectors), float64: line integrals with lengths in mm.

        Raises
        ------
        DataError
            its file is missing or has no such entry.
        """
        file, row = _split_name(self.names[index])
        return 1000.0 * _entry(file.with_name(file.name.replace("ground_truth", "observation")), row)

    @property
    def patients(self) -> list[str]:
        """The patient of each picture, read from the CSV file each time.

        Raises
        ------
        DataError
            the CSV file is missing, or too short.
        """
        path = self.folder / f"patient_ids_rand_{self.part}.csv"
        if not path.is_file():
            raise DataError(f"{path}: no such file; it says which picture is of which patient")
        ids = path.read_text().split()
        entries = (_split_name(name) for name in self.names)
        numbers = [_PER_FILE * _file_number(file) + row for file, row in entries]
        if numbers and max(numbers) >= len(ids):
            raise DataError(f"{path}: has {len(ids)} lines, but there is a picture of number {max(numbers)}")
        return [ids[number] for number in numbers]


def holds_lodopab(path: Path) -> bool:
    """Whether a path is a folder with ground truth of LoDoPaB-CT."""
    return path.is_dir() and next(path.glob("ground_truth_*.hdf5"), None) is not None


def _entries(path: Path, part: str) -> int:
    with open_hdf5(path) as file:
        shape = find_dataset(file, "data", path).shape
    if len(shape) != 3:
        raise DataError(f"{path}: data has the shape {shape}; valid are three axes (pictures, 362, 362)")
    return int(min(shape[0], _PER_FILE, _LENGTHS[part] - _PER_FILE * _file_number(path)))


def _entry(path: Path, row: int) -> Tensor:
    with open_hdf5(path) as file:
        data = find_dataset(file, "data", path)
        if data.ndim != 3 or row >= data.shape[0]:
            raise DataError(f"{path}: data has the shape {data.shape}, so there is no entry {row}")
        values = np.asarray(data[row], dtype=np.float64)
    check_finite(values, path, f"data[{row}]")
    return torch.from_numpy(values)[None]


def _split_name(name: str) -> tuple[Path, int]:
    file, _, row = name.removesuffix("]").rpartition("[")
    return Path(file), int(row)


def _file_number(path: Path) -> int:
    number = path.stem.rpartition("_")[2]
    if not number.isdigit():
        raise DataError(f"{path}: the name of the file does not end in its number, as in ground_truth_train_000.hdf5")
    return int(number)


# --- fastMRI ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FastMRISlice:
    """One slice of a fastMRI file; arrays keep the scale of the file."""

    kspace: Tensor
    """(coils, height, width) complex, readout along the height; one coil in the single-coil track. Its centre is in the
    middle."""
    target: Tensor | None
    """(1, height, width) float64: ``reconstruction_rss`` or ``reconstruction_esc``, where the file has it."""
    mask: Tensor | None
    """(width,) bool: the columns that were sampled, in files of the test part."""
    patient: str
    acquisition: str
    pixel_size: tuple[float, float] | None
    """Height and width in mm of a pixel of ``target``, from the header; None without a header."""


def fastmri_slices(path: str | Path) -> int:
    """Number of slices of a fastMRI file.

    Raises
    ------
    DataError
        the file cannot be read or has no ``kspace``.
    """
    with open_hdf5(path) as file:
        shape = find_dataset(file, "kspace", path).shape
    if len(shape) not in (3, 4):
        raise DataError(f"{path}: kspace has the shape {shape}; valid are (slices, coils, height, width), or no coils")
    return int(shape[0])


def fastmri_patient(path: str | Path) -> str:
    """The patient of a fastMRI file, ``patient_id``; empty if it does not tell.

    Raises
    ------
    DataError
        the file cannot be read.
    """
    with open_hdf5(path) as file:
        return attribute(file, "patient_id")


def read_fastmri(path: str | Path, index: int = 0, target: str | None = None) -> FastMRISlice:
    """Read one slice of a fastMRI file (Zbontar et al., arXiv:1811.08839).

    Parameters
    ----------
    path
        file with ``kspace`` of shape (slices, coils, height, width), or (slices, height, width) for a single coil.
    index
        of the slice.
    target
        ``"reconstruction_rss"`` or ``"reconstruction_esc"``; None takes what fits the number of coils, if it is there.

    Raises
    ------
    DataError
        the file cannot be read; no ``kspace``, no such target, another shape, NaN, or no such slice.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        data = find_dataset(file, "kspace", path)
        if data.ndim not in (3, 4) or not np.issubdtype(data.dtype, np.complexfloating):
            raise DataError(
                f"{path}: kspace has the shape {data.shape} and type {data.dtype}; valid are complex values of shape "
                "(slices, coils, height, width) or (slices, height, width)"
            )
        if not 0 <= index < data.shape[0]:
            raise DataError(f"{path}: there is no slice {index}; valid are 0 to {data.shape[0] - 1}")
        kspace = np.asarray(data[index]) if data.ndim == 4 else np.asarray(data[index])[None]
        fitting = "reconstruction_rss" if data.ndim == 4 else "reconstruction_esc"
        picture = None
        if target is not None or fitting in file:
            pictures = find_dataset(file, target or fitting, path)
            if pictures.ndim != 3 or len(pictures) != len(data):
                raise DataError(
                    f"{path}: {target or fitting} has the shape {pictures.shape}; valid is ({len(data)}, height, width)"
                )
            picture = np.asarray(pictures[index], dtype=np.float64)
            check_finite(picture, path, target or fitting)
        mask = np.asarray(find_dataset(file, "mask", path)).astype(bool).ravel() if "mask" in file else None
        patient, acquisition = attribute(file, "patient_id"), attribute(file, "acquisition")
        header = find_dataset(file, "ismrmrd_header", path)[()] if "ismrmrd_header" in file else None
    check_finite(kspace, path, "kspace")
    if mask is not None and mask.shape != kspace.shape[-1:]:
        raise DataError(f"{path}: mask has {mask.size} entries, but kspace has {kspace.shape[-1]} columns")
    return FastMRISlice(
        kspace=torch.from_numpy(kspace),
        target=None if picture is None else torch.from_numpy(picture)[None],
        mask=None if mask is None else torch.from_numpy(mask),
        patient=patient,
        acquisition=acquisition,
        pixel_size=None if header is None else _pixel_size(header, path),
    )


def _pixel_size(header: np.ndarray, path: Path) -> tuple[float, float] | None:
    """Field of view over matrix size of the reconstruction; x in the header is the readout, the height of the files."""
    try:
        space = ElementTree.fromstring(header.item()).find(".//{*}encoding/{*}reconSpace")
        if space is None:
            return None
        height, width = (_axis(space, axis) for axis in ("x", "y"))
    except (ElementTree.ParseError, TypeError, ValueError, ZeroDivisionError) as error:
        raise DataError(f"{path}: ismrmrd_header cannot be understood ({error})") from error
    return height, width


def _axis(space: ElementTree.Element, axis: str) -> float:
    fov, pixels = space.findtext(f"{{*}}fieldOfView_mm/{{*}}{axis}"), space.findtext(f"{{*}}matrixSize/{{*}}{axis}")
    size = float(fov or "") / int(pixels or "")
    if not 0 < size < math.inf:
        raise ValueError(f"pixel size {size}")
    return size
