"""Reader of DICOM slices of CT (Hounsfield units) and MR, alone and as folders with patients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from datasets.errors import DataError, reading
from datasets.physics import MAX_HU, MIN_HU, MU_WATER, hu_to_attenuation
from datasets.readers.dicom.kinds import check_slice, modality_transform
from datasets.readers.dicom.orientation import AS_STORED, Display, directions, display_of
from datasets.readers.folders import files_of
from datasets.readers.limits import check_memory, inflated_size
from datasets.readers.optional import require
from datasets.readers.pictures import SUFFIXES as PICTURES
from datasets.sources.images import PatientSource
from recon.limits import excess

if TYPE_CHECKING:
    from pydicom import Dataset, FileDataset

Modality = Literal["CT", "MR"]
Unit = Literal["unit", "attenuation", "stored"]

_SUFFIXES = (".dcm", ".dicom", ".ima")


@dataclass(frozen=True)
class DicomSlice:
    """One slice in the usual view, with what is needed to place it."""

    image: Tensor
    """(H, W) float64: Hounsfield units for CT, rescaled stored values for MR."""
    modality: Modality
    pixel_size: tuple[float, float]
    """Distance in mm between rows and between columns of ``image``."""
    patient: str
    series: str
    path: Path
    display: Display
    """How ``image`` came from the stored pixels."""


# The unit of the values is not specified (DICOM PS3.3, C.11.1.1.2).
_UNSPECIFIED = "US"


def read_dicom(
    path: str | Path,
    modality: Modality | None = None,
    clip: tuple[float, float] | None = (MIN_HU, MAX_HU),
    reorient: bool = True,
) -> DicomSlice:
    """Read one slice.

    CT: HU = RescaleSlope × stored + RescaleIntercept; both are required, as stored values mean nothing without them.
    Pixels with the padding value lie outside of the field of view and get the lower end of ``clip`` (-1024 without).
    MR: slope and intercept are applied where the file has them; padding becomes 0; nothing is clipped.
    A table in place of slope and intercept (Modality LUT) is looked up, for CT if its type is HU.

    Transverse slices are turned to the usual view, rows from anterior to posterior and columns from the patient's right
    to the left, whatever the patient's position in the scanner was; pictures of other planes stay as stored.

    Parameters
    ----------
    path
        the file; one frame, one value for each pixel.
    modality
        ``"CT"`` or ``"MR"``, what the file must be; None takes either.
    clip
        of CT, in HU; None keeps all values.
    reorient
        whether to turn transverse slices.

    Raises
    ------
    DataError
        no such file, no DICOM, truncated, of another modality, several frames, a localizer, a screen save, a mosaic,
        colour; without pixel spacing, or (CT) slope and intercept; a rescale type other than HU; values that are not
        finite.
    ImportError
        pydicom is not installed.
    """
    path = Path(path)
    with reading(path, "DICOM"):
        header = read_header(path)
        kind = _check_header(header, path, modality)
        values = _values(header, path, kind, clip)
        spacing = _spacing(header, path)
        display = display_of(header.get("ImageOrientationPatient")) if reorient else AS_STORED
        return DicomSlice(
            image=torch.from_numpy(np.ascontiguousarray(display.apply(values))),
            modality=kind,
            pixel_size=spacing[::-1] if display.transposed else spacing,
            patient=str(header.get("PatientID", "")),
            series=str(header.get("SeriesInstanceUID", "")),
            path=path,
            display=display,
        )


def _values(header: FileDataset, path: Path, kind: Modality, clip: tuple[float, float] | None) -> np.ndarray:
    """What the stored pixels stand for, see ``read_dicom``."""
    rescale = modality_transform(header, path, required=kind == "CT")
    stored = _pixels(header, path)
    padding = _padding(header, stored)
    values = rescale(stored)
    if kind == "MR":
        values[padding] = 0.0
        return values
    _check_hounsfield(values[~padding], header, path)
    values[padding] = MIN_HU if clip is None else clip[0]
    return values if clip is None else values.clip(*clip)


class DicomFolder(PatientSource):
    """The slices of a folder as pictures, grouped by patient.

    Slices are sorted by patient, series, position along the normal of the slice, number, and name of the file. Files
    that are no DICOM by name or content (licences, notes) are passed over.

    Parameters
    ----------
    path
        the folder, or a single file.
    modality
        ``"CT"`` or ``"MR"``; a slice of another modality is an error.
    unit
        ``"unit"``: on the scale [0, 1]. For CT µ / µ(3071 HU) = (HU + 1000) / 4071, where air is 0 (and so are values
        below it), water 0.246, as in LoDoPaB-CT; for MR, the picture divided by its largest value. ``"attenuation"``: µ
        in 1/mm, at least 0 (CT only). ``"stored"``: HU, or values as stored (MR).
    mu_water
        µ of water in 1/mm, for ``"attenuation"``.
    recursive
        read the folders inside the folder too.
    size, crop_size
        see ``ImageSource``. Reduced pictures have larger pixels than ``slice_of(i).pixel_size``.

    Raises
    ------
    DataError
        the folder is missing or has no slice; for each slice, see ``read_dicom``.
    """

    def __init__(
        self,
        path: str | Path,
        modality: Modality = "CT",
        unit: Unit = "unit",
        mu_water: float = MU_WATER,
        recursive: bool = True,
        size: int | None = None,
        crop_size: int | None = None,
    ) -> None:
        if modality not in get_args(Modality) or unit not in get_args(Unit):
            raise DataError(
                f"modality is {modality!r} and unit {unit!r}; valid are {', '.join(get_args(Modality))} and "
                f"{', '.join(get_args(Unit))}"
            )
        if modality == "MR" and unit == "attenuation":
            raise DataError("unit is 'attenuation', but MR has none; valid for MR are unit and stored")
        self.path = Path(path).expanduser()
        self.modality, self.unit, self.mu_water = modality, unit, mu_water
        keys = []
        kind = f"DICOM file; looked for {', '.join(_SUFFIXES)} and for their preamble"
        for file in files_of(self.path, _is_dicom, kind, recursive):
            with reading(file, "DICOM"):
                header = read_header(file, pixels=False)
                _check_header(header, file, modality)
                keys.append((*_sort_key(header), str(file)))
        keys.sort()
        self._patients = {key[-1]: key[0] for key in keys}
        super().__init__((key[-1] for key in keys), size, crop_size)

    @property
    def patients(self) -> list[str]:
        """The patient of each picture, ``PatientID``; a file without one counts as a patient of its own."""
        return [self._patients[name] or f"patient of {name}" for name in self.names]

    def slice_of(self, index: int) -> DicomSlice:
        """The slice of picture ``index`` in HU (CT) or as stored (MR), in its original size."""
        return read_dicom(self.names[index], self.modality)

    def _load(self, name: str) -> Tensor:
        found = read_dicom(name, self.modality)
        if self.unit == "stored":
            return found.image[None]
        if self.unit == "attenuation":
            return hu_to_attenuation(found.image[None], self.mu_water).clamp_min(0)
        return on_unit_scale(found)


def on_unit_scale(found: DicomSlice) -> Tensor:
    """The picture (1, H, W) on the scale [0, 1], see ``unit`` of ``DicomFolder``.

    Raises
    ------
    DataError
        a slice of MR without a positive value.
    """
    values = found.image[None]
    if found.modality == "CT":
        return hu_to_attenuation(values).clamp_min(0) / (MU_WATER * (1 + MAX_HU / 1000))
    largest = values.max()
    if not largest > 0:
        raise DataError(f"{found.path}: no value is positive, so the picture cannot be scaled to [0, 1]")
    return values / largest


def holds_dicom(path: Path) -> bool:
    """Whether a path is a DICOM file, or a folder with one in it or in a folder inside."""
    if path.is_dir():
        return any(file.is_file() and not file.name.startswith(".") and _is_dicom(file) for file in path.rglob("*"))
    return path.is_file() and _is_dicom(path)


def read_header(path: Path, pixels: bool = True) -> FileDataset:
    """The ``pydicom.Dataset`` of a file.

    Raises
    ------
    DataError
        no such file, no DICOM, truncated.
    ImportError
        pydicom is not installed.
    """
    pydicom = require("pydicom", "reading DICOM")
    # pydicom lets errors of many kinds through for files that end in the middle of an element
    with reading(path, "DICOM"):
        _check_deflated(path, pydicom)
        header: FileDataset = pydicom.dcmread(path, stop_before_pixels=not pixels)
    return header


def _check_deflated(path: Path, pydicom: ModuleType) -> None:
    """Compare the size of a file that is compressed as a whole with the limit: pydicom unpacks it to read anything."""
    with path.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            return
    meta = pydicom.filereader.read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != pydicom.uid.DeflatedExplicitVRLittleEndian:
        return
    begin = 144 + int(meta.FileMetaInformationGroupLength)  # preamble, DICM, and the element with this length itself
    if wrong := excess(inflated_size(path.read_bytes()[begin:], raw=True)):
        raise DataError(f"{path}: unpacked, it {wrong}")


def _check_header(header: Dataset, path: Path, modality: Modality | None) -> Modality:
    valid: tuple[Modality, ...] = get_args(Modality) if modality is None else (modality,)
    stored = str(header.get("Modality", ""))
    found = next((kind for kind in valid if kind == stored), None)
    if found is None:
        raise DataError(f"{path}: its modality is {stored or 'not given'}; valid is {' or '.join(valid)}")
    check_slice(header, path)
    frames, samples = int(header.get("NumberOfFrames", 1) or 1), int(header.get("SamplesPerPixel", 1) or 1)
    if frames != 1 or samples != 1:
        raise DataError(f"{path}: has {frames} frames with {samples} values for each pixel; valid is one of both")
    if header.get("PhotometricInterpretation", "MONOCHROME2") not in ("MONOCHROME1", "MONOCHROME2"):
        raise DataError(f"{path}: is {header.PhotometricInterpretation}; valid are MONOCHROME2 and MONOCHROME1")
    if found == "CT" and str(header.get("RescaleType", "HU") or "HU") not in ("HU", _UNSPECIFIED):
        raise DataError(f"{path}: its rescale type is {header.RescaleType}; valid is HU")
    return found


def _check_hounsfield(values: np.ndarray, header: Dataset, path: Path) -> None:
    """Refuse CT values that are evidently no Hounsfield units; ``values`` are without padding.

    All within 1 HU is attenuation in 1/mm or 1/cm. Where the rescale type says that the unit is not specified, only
    values with air or fat, below -50 HU, are taken for Hounsfield units.
    """
    if not values.size:
        return
    low, high = float(values.min()), float(values.max())
    kind = str(header.get("RescaleType", "") or "not given")
    if (low > -1 and high < 1 and low < high) or (kind == _UNSPECIFIED and low > -50):
        raise DataError(
            f"{path}: its values, {low:g} to {high:g}, are no Hounsfield units (air: -1000), and its rescale type is "
            f"{kind}; convert them, HU = 1000 (µ - µ_water) / µ_water, and set the rescale type to HU"
        )


def _pixels(header: FileDataset, path: Path) -> np.ndarray:
    names = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel")
    check_memory(path, "pixel data", [int(header.get(name, 1) or 1) for name in names])
    try:
        pixels = header.pixel_array
    except Exception as error:  # pydicom and its decoders raise errors of many kinds
        meta = header.file_meta
        name = meta.TransferSyntaxUID.name if "TransferSyntaxUID" in meta else "unknown"
        raise DataError(
            f"{path}: its pixels cannot be decoded; the file may be truncated, or its compression ({name}) needs "
            f"another package, e.g. pylibjpeg ({error})"
        ) from error
    values = np.asarray(pixels, dtype=np.float64)
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        raise DataError(f"{path}: pixels of shape {values.shape}; valid are (rows, columns) with finite values")
    return values


def _padding(header: Dataset, stored: np.ndarray) -> np.ndarray:
    """True where the stored value is padding: one value, or a range of values."""
    first = header.get("PixelPaddingValue")
    if first is None:
        return np.zeros(stored.shape, dtype=bool)
    last = header.get("PixelPaddingRangeLimit")
    ends = [_as_stored(int(first), header), _as_stored(int(first if last is None else last), header)]
    return np.asarray((stored >= min(ends)) & (stored <= max(ends)))


def _as_stored(value: int, header: Dataset) -> int:
    """The value as a pixel: many files declare it as unsigned although their pixels have a sign, 63536 for -2000."""
    bits = int(header.get("BitsAllocated", 16))
    if int(header.get("PixelRepresentation", 0)) == 1 and value >= 2 ** (bits - 1):
        return value - 2**bits
    return value


def _spacing(header: Dataset, path: Path) -> tuple[float, float]:
    values = [float(value) for value in header.get("PixelSpacing", None) or []]
    if len(values) != 2 or not all(0 < value < math.inf for value in values):
        raise DataError(f"{path}: its pixel spacing is {values or 'not given'}; valid are two lengths in mm")
    return values[0], values[1]


def _sort_key(header: Dataset) -> tuple[str, str, float, int]:
    position, axes = header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")
    height = 0.0
    if position and axes and len(position) == 3 and len(axes) == 6:
        height = float(np.cross(*directions(axes)) @ [float(v) for v in position])
    number = int(header.get("InstanceNumber", 0) or 0)
    return str(header.get("PatientID", "")), str(header.get("SeriesInstanceUID", "")), round(height, 3), number


def _is_dicom(file: Path) -> bool:
    """By suffix, or by the letters that follow the preamble of 128 bytes; a DICOMDIR is an index, not a slice."""
    if file.suffix.lower() in (*_SUFFIXES, *PICTURES) or file.name.upper() == "DICOMDIR":
        return file.suffix.lower() in _SUFFIXES
    with file.open("rb") as opened:
        return opened.read(132)[128:] == b"DICM"
