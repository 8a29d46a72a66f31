"""DICOM files that look like slices and are none, and what stored values mean; slices that come with pydicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.readers.dicom.slices import DicomFolder, read_dicom
from datasets.readers.pictures import DataError
from tests.datasets.readers.test_dicom import _pixels, _write

pydicom = pytest.importorskip("pydicom")

_MR = {"Modality": "MR", "RescaleSlope": None, "RescaleIntercept": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "is a secondary capture"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}, "is a secondary capture"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "picture of a screen .*SCREEN SAVE"),
        ({"ImageType": ["DERIVED", "SECONDARY", "OTHER", "SCREENSHOT"]}, "picture of a screen"),
        ({"ImageType": ["DERIVED", "SECONDARY", "DOSE_INFO"]}, "picture of a screen"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]}, "mosaic of several slices .* 6x8 pixels"),
    ],
)
@pytest.mark.parametrize("modality", [{}, _MR])
def test_kinds_that_are_no_slices(
    tmp_path: Path, changes: dict[str, Any], message: str, modality: dict[str, Any]
) -> None:
    _write(tmp_path / "a.dcm", **modality, **changes)
    kind: Any = modality.get("Modality", "CT")
    with pytest.raises(DataError, match=rf"a\.dcm: is .*{message.removeprefix('is ')}"):
        read_dicom(tmp_path / "a.dcm")
    with pytest.raises(DataError, match=message):
        DicomFolder(tmp_path, kind)


def test_mosaic_by_the_number_of_its_tiles(tmp_path: Path) -> None:
    _write(tmp_path / "a.dcm", **_MR)
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    block = dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    block.add_new(0x0A, "US", 7)
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(DataError, match="mosaic of 7 slices"):
        read_dicom(tmp_path / "a.dcm")
    dataset[0x0019, 0x100A].value = 1
    dataset.save_as(tmp_path / "a.dcm")
    assert read_dicom(tmp_path / "a.dcm").image.shape == (6, 8)


def test_colour(tmp_path: Path) -> None:
    _write(tmp_path / "a.dcm", **_MR)
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    pixels = np.zeros((6, 8, 3), np.uint8)
    dataset.set_pixel_data(pixels, "RGB", 8, generate_instance_uid=False)
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(DataError, match="3 values for each pixel"):
        read_dicom(tmp_path / "a.dcm")


# --- values ----------------------------------------------------------------------------------------------------------


def _table(first: int, data: list[int], kind: str = "HU", **changes: Any) -> Any:
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", [len(data), first % 2**16, 16])
    item.ModalityLUTType = kind
    item.add_new("LUTData", "OW" if changes.pop("words", False) else "US", data)
    for key, value in changes.items():
        setattr(item, key, value)
    return pydicom.Sequence([item])


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_modality_table(tmp_path: Path, modality: str) -> None:
    stored = np.array([[3, 4, 5], [6, 7, 300]], np.uint16)
    table = _table(4, [10, 20, 50, 700], "HU" if modality == "CT" else "US")
    _write(
        tmp_path / "a.dcm",
        stored,
        Modality=modality,
        RescaleSlope=None,
        RescaleIntercept=None,
        ModalityLUTSequence=table,
    )
    assert read_dicom(tmp_path / "a.dcm").image.tolist() == [[10, 10, 20], [50, 700, 700]]


def test_modality_table_of_signed_pixels_agrees_with_pydicom(tmp_path: Path) -> None:
    stored = np.arange(-6, 6, dtype=np.int16).reshape(3, 4)
    data = [int(v) for v in np.random.default_rng(0).integers(0, 4000, 9)]
    none = {"RescaleSlope": None, "RescaleIntercept": None}
    _write(tmp_path / "a.dcm", stored, **(_MR | none), ModalityLUTSequence=_table(-4, data, "US"))
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    expected = [data[int(np.clip(v + 4, 0, 8))] for v in stored.ravel()]
    assert read_dicom(tmp_path / "a.dcm").image.ravel().tolist() == expected
    assert dataset.ModalityLUTSequence[0].LUTDescriptor[0] == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ModalityLUTSequence": _table(0, [1, 2, 3])}, "Modality LUT and RescaleSlope and RescaleIntercept"),
        (
            {"ModalityLUTSequence": _table(0, [1, 2], "OD"), "RescaleSlope": None, "RescaleIntercept": None},
            "type of its Modality LUT is OD; valid for CT is HU",
        ),
        (
            {
                "ModalityLUTSequence": _table(0, [1, 2], LUTDescriptor=[5, 0, 16]),
                "RescaleSlope": None,
                "RescaleIntercept": None,
            },
            "has 2 entries",
        ),
        ({**_MR, "RescaleSlope": "2"}, "has no RescaleIntercept, so its values have no known scale"),
        ({"RescaleType": "OD"}, "rescale type is OD; valid is HU"),
    ],
)
def test_values_that_are_not_understood(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    _write(tmp_path / "a.dcm", **changes)
    with pytest.raises(DataError, match=message):
        read_dicom(tmp_path / "a.dcm")


@pytest.mark.parametrize("kind", ["US", None])
@pytest.mark.parametrize("slope", ["1e-5", "1e-4"])  # attenuation in 1/mm and in 1/cm
def test_attenuation_is_not_taken_for_hounsfield_units(tmp_path: Path, kind: str | None, slope: str) -> None:
    _write(tmp_path / "a.dcm", _pixels(), RescaleSlope=slope, RescaleIntercept="0", RescaleType=kind)
    with pytest.raises(DataError, match=r"no Hounsfield units.*rescale type is"):
        read_dicom(tmp_path / "a.dcm")


def test_rescaled_values_of_mr(tmp_path: Path) -> None:
    pixels = _write(tmp_path / "a.dcm", Modality="MR", RescaleSlope="0.25", RescaleIntercept="-3", RescaleType="US")
    np.testing.assert_array_equal(read_dicom(tmp_path / "a.dcm").image.numpy(), 0.25 * pixels - 3)


# --- files of pydicom ------------------------------------------------------------------------------------------------


def _packaged() -> list[Path]:
    folders = [Path(pydicom.__file__).parent / "data" / "test_files"]
    return [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]


def test_exact_hounsfield_units_of_every_slice_of_pydicom() -> None:
    """Slope × stored + intercept with the stored values as pydicom decodes them, wherever a file is one CT slice."""
    read = 0
    for file in _packaged():
        try:
            header = pydicom.dcmread(file)
            stored = header.pixel_array.astype(np.float64)
        except Exception:  # pydicom ships damaged files and such that need other decoders
            continue
        localizer = "LOCALIZER" in (header.get("ImageType") or [])
        if header.get("Modality") != "CT" or stored.ndim != 2 or localizer or header.get("RescaleSlope") is None:
            continue
        expected = float(header.RescaleSlope) * stored + float(header.RescaleIntercept)
        padding = header.get("PixelPaddingValue")
        if padding is not None:
            expected[stored == np.array([padding]).astype(header.pixel_array.dtype)] = -1024
        found = read_dicom(file, "CT", clip=None, reorient=False).image.numpy()
        np.testing.assert_array_equal(found, expected, err_msg=str(file))
        read += 1
    assert read >= 10


@pytest.mark.parametrize(
    ("name", "low", "high", "total"),
    [
        ("CT_small.dcm", -896.0, 1167.0, -1950906.0),
        ("693_J2KI.dcm", -3995.0, 1812.0, -269629240.0),
        ("J2K_pixelrep_mismatch.dcm", -2000.0, 1896.0, -172605258.0),
    ],
)
def test_hounsfield_units_of_single_files(name: str, low: float, high: float, total: float) -> None:
    """The values of the release before."""
    file = next((f for f in _packaged() if f.name == name), None)
    if file is None:
        pytest.skip(f"pydicom does not bring {name}")
    try:
        image = read_dicom(file, "CT", clip=None, reorient=False).image
    except DataError as error:
        if "cannot be decoded" in str(error):
            pytest.skip("needs a decoder of JPEG 2000")
        raise
    assert (float(image.min()), float(image.max()), round(float(image.sum()), 3)) == (low, high, total)
