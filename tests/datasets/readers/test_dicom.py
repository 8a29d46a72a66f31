"""DICOM slices: values, orientation, folders with patients, derived files, and files that are no good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datasets.readers.dicom.orientation import Display, display_of
from datasets.readers.dicom.output import write_dicom
from datasets.readers.dicom.slices import DicomFolder, read_dicom
from datasets.readers.pictures import DataError
from datasets.sources.splits import split_by_patient

pydicom = pytest.importorskip("pydicom")

SUPINE, PRONE, DECUBITUS = [1, 0, 0, 0, 1, 0], [-1, 0, 0, 0, -1, 0], [0, -1, 0, 1, 0, 0]


def _pixels(rows: int = 6, columns: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3000, (rows, columns)).astype(np.uint16)


def _write(path: Path, pixels: np.ndarray | None = None, **changes: Any) -> np.ndarray:
    """A CT slice with slope 2 and intercept -1024; a change to None leaves an element out."""
    pixels = _pixels() if pixels is None else pixels
    dataset = pydicom.Dataset()
    dataset.SOPClassUID = pydicom.uid.CTImageStorage
    dataset.SOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[str(path)])
    elements: dict[str, Any] = {
        "Modality": "CT",
        "PatientID": "anna",
        "SeriesInstanceUID": "1.2.3",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "RescaleSlope": "2",
        "RescaleIntercept": "-1024",
        "PixelSpacing": [0.7, 0.5],
        "ImageOrientationPatient": SUPINE,
        "ImagePositionPatient": [-10, -20, 30],
        "InstanceNumber": 1,
    }
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.set_pixel_data(pixels, "MONOCHROME2", 16, generate_instance_uid=False)
    for key, value in (elements | changes).items():
        if value is not None:
            setattr(dataset, key, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return pixels


# --- values ----------------------------------------------------------------------------------------------------------


def test_hounsfield_units(tmp_path: Path) -> None:
    pixels = _write(tmp_path / "a.dcm")
    loaded = read_dicom(tmp_path / "a.dcm")
    expected = (2.0 * pixels - 1024).clip(-1024, 3071)
    np.testing.assert_array_equal(loaded.image.numpy(), expected)
    assert expected.max() == 3071  # the clipping is seen to work
    np.testing.assert_array_equal(read_dicom(tmp_path / "a.dcm", clip=None).image.numpy(), 2.0 * pixels - 1024)
    assert (loaded.modality, loaded.patient, loaded.pixel_size) == ("CT", "anna", (0.7, 0.5))


@pytest.mark.parametrize("kind", ["US", None])
@pytest.mark.parametrize("slope", ["1e-5", "1e-4"])
def test_attenuation_is_not_taken_for_hounsfield_units(tmp_path: Path, kind: str | None, slope: str) -> None:
    """Water of 0.02 / mm or 0.2 / cm, with a rescale type that does not tell, or none."""
    values = {"RescaleSlope": slope, "RescaleIntercept": "0", "RescaleType": kind}
    pixels = np.arange(0, 4000, 250, dtype=np.uint16).reshape(4, 4)
    _write(tmp_path / "a.dcm", pixels, **values)
    with pytest.raises(DataError, match=r"a\.dcm: its values, 0 to 0.*, are no Hounsfield units"):
        read_dicom(tmp_path / "a.dcm")


def test_unspecified_units_that_are_hounsfield_units(tmp_path: Path) -> None:
    pixels = _write(tmp_path / "a.dcm", RescaleType="US")
    np.testing.assert_array_equal(read_dicom(tmp_path / "a.dcm", clip=None).image.numpy(), 2.0 * pixels - 1024)
    _write(tmp_path / "a.dcm", RescaleType="US", RescaleIntercept="0")
    with pytest.raises(DataError, match="its rescale type is US"):
        read_dicom(tmp_path / "a.dcm")


@pytest.mark.parametrize("padding", [{"PixelPaddingValue": -2000}, {"PixelPaddingValue": 63536}])
def test_padding_is_air_even_where_its_sign_was_lost(tmp_path: Path, padding: dict[str, int]) -> None:
    pixels = np.full((4, 4), 10, dtype=np.int16)
    pixels[0, :2] = -2000
    _write(tmp_path / "a.dcm", pixels)
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    dataset.RescaleIntercept = "2500"  # so that clipping alone would not make it air
    dataset.add_new(
        "PixelPaddingValue", "SS" if padding["PixelPaddingValue"] < 0 else "US", padding["PixelPaddingValue"]
    )
    dataset.save_as(tmp_path / "a.dcm")
    image = read_dicom(tmp_path / "a.dcm").image
    assert image[0].tolist() == [-1024, -1024, 2520, 2520]


def test_range_of_padding(tmp_path: Path) -> None:
    pixels = np.arange(16, dtype=np.uint16).reshape(4, 4) + 2000
    _write(tmp_path / "a.dcm", pixels, PixelPaddingValue=2002, PixelPaddingRangeLimit=2004)
    image = read_dicom(tmp_path / "a.dcm", clip=None).image.ravel()
    assert torch.nonzero(image == -1024).ravel().tolist() == [2, 3, 4]


def test_magnetic_resonance(tmp_path: Path) -> None:
    mr = {"Modality": "MR", "RescaleSlope": None, "RescaleIntercept": None}
    pixels = _write(tmp_path / "a.dcm", **mr)
    np.testing.assert_array_equal(read_dicom(tmp_path / "a.dcm").image.numpy(), pixels)
    folder = DicomFolder(tmp_path, "MR")
    np.testing.assert_allclose(folder[0][0].numpy(), pixels / pixels.max())
    with pytest.raises(DataError, match="MR has none"):
        DicomFolder(tmp_path, "MR", unit="attenuation")


# --- orientation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "turn"),
    [
        (SUPINE, lambda stored: stored),
        (PRONE, lambda stored: stored[::-1, ::-1]),
        (DECUBITUS, lambda stored: np.rot90(stored, 1)),
        ([0, 1, 0, 1, 0, 0], lambda stored: stored.T),
        ([1, 0, 0, 0, 0, -1], lambda stored: stored),  # coronal
    ],
)
def test_slices_are_turned_to_the_usual_view(tmp_path: Path, axes: list[float], turn: Any) -> None:
    pixels = _write(tmp_path / "a.dcm", ImageOrientationPatient=axes)
    loaded = read_dicom(tmp_path / "a.dcm", clip=None)
    np.testing.assert_array_equal(loaded.image.numpy(), turn(2.0 * pixels - 1024))
    assert loaded.pixel_size == ((0.5, 0.7) if loaded.display.transposed else (0.7, 0.5))
    stored = read_dicom(tmp_path / "a.dcm", clip=None, reorient=False)
    np.testing.assert_array_equal(stored.image.numpy(), 2.0 * pixels - 1024)


@given(
    tilt=st.floats(-0.4, 0.4),
    spin=st.sampled_from([0, 90, 180, 270]),
    display=st.builds(Display, st.booleans(), st.booleans(), st.booleans()),
)
def test_orientation_of_tilted_slices_and_its_inverse(tilt: float, spin: int, display: Display) -> None:
    c, s = np.cos(np.deg2rad(spin)), np.sin(np.deg2rad(spin))
    along_columns = np.array([c, s, 0.0])
    along_rows = np.array([-s, c, 0.0])
    rotation = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    tilted = [*(rotation @ along_columns), *(rotation @ along_rows)]
    assert display_of(tilted) == display_of([*along_columns, *along_rows])
    pixels = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(display.undo(display.apply(pixels)), pixels)


# --- folders ---------------------------------------------------------------------------------------------------------


def _series(folder: Path) -> None:
    for patient, count in (("berta", 3), ("anna", 2), ("carla", 1)):
        for number in range(count):
            _write(
                folder / patient / f"{9 - number}.dcm",
                PatientID=patient,
                ImagePositionPatient=[0, 0, 5.0 * number],
            )


def test_folder_is_sorted_by_patient_and_position(tmp_path: Path) -> None:
    _series(tmp_path)
    (tmp_path / "LICENSE").write_text("some words " * 50)
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    folder = DicomFolder(tmp_path, unit="stored")
    assert folder.patients == ["anna"] * 2 + ["berta"] * 3 + ["carla"]
    assert [Path(name).name for name in folder.names[2:5]] == ["9.dcm", "8.dcm", "7.dcm"]
    assert folder[0].shape == (1, 6, 8)
    assert folder.select([0, 5]).patients == ["anna", "carla"]
    assert len(folder) == 6
    assert DicomFolder(tmp_path / "anna" / "9.dcm").patients == ["anna"]
    assert folder.slice_of(2).path.name == "9.dcm"


def test_units_of_pictures(tmp_path: Path) -> None:
    pixels = np.array([[0, 12], [512, 2047]], dtype=np.uint16)  # -1024, -1000, 0, 3070 HU
    _write(tmp_path / "a.dcm", pixels)
    unit = DicomFolder(tmp_path)[0].ravel()
    np.testing.assert_allclose(unit.numpy(), [0, 0, 1000 / 4071, 4070 / 4071], atol=1e-12)
    attenuation = DicomFolder(tmp_path, unit="attenuation", mu_water=0.019)[0].ravel()
    np.testing.assert_allclose(attenuation.numpy(), [0, 0, 0.019, 0.019 * 4.07], atol=1e-12)
    with pytest.raises(DataError, match="unit 'HU'; valid are CT, MR and unit, attenuation, stored"):
        DicomFolder(tmp_path, unit="HU")  # type: ignore[arg-type]


@given(
    counts=st.lists(st.integers(1, 5), min_size=3, max_size=30),
    fractions=st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.5), (0.34, 0.33, 0.33), (0.1, 0.2)]),
    seed=st.integers(0, 100),
)
def test_no_patient_is_in_two_parts(counts: list[int], fractions: tuple[float, ...], seed: int) -> None:
    patients = [f"p{number}" for number, count in enumerate(counts) for _ in range(count)]
    parts = split_by_patient(patients, fractions, seed)
    owners = [{patients[index] for index in part} for part in parts]
    assert all(owners)
    assert sum(map(len, owners)) == len(set.union(*owners))
    for owner, fraction in zip(owners, fractions, strict=True):
        assert abs(len(owner) - fraction * len(counts)) < len(fractions)
    chosen = [index for part in parts for index in part]
    assert len(chosen) == sum(count for number, count in enumerate(counts) if f"p{number}" in set.union(*owners))
    assert parts == split_by_patient(patients, fractions, seed)


def test_splits_out_of_range() -> None:
    with pytest.raises(DataError, match="2 patients cannot be split into 3 parts"):
        split_by_patient(["a", "b", "a"])
    for fractions in ((), (0.0, 1.0), (0.9, 0.2), (-0.1,)):
        with pytest.raises(ValueError, match="they must be positive"):
            split_by_patient(["a", "b"], fractions)
    patients = [str(number) for number in range(20)]
    assert split_by_patient(patients, seed=1) != split_by_patient(patients, seed=2)


# --- derived files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [SUPINE, DECUBITUS, [0, 1, 0, 1, 0, 0]])
def test_derived_slice(tmp_path: Path, axes: list[float]) -> None:
    _write(tmp_path / "a.dcm", ImageOrientationPatient=axes, PixelPaddingValue=7)
    source = read_dicom(tmp_path / "a.dcm")
    image = torch.randn(source.image.shape, dtype=torch.float64) * 500
    write_dicom(tmp_path / "out" / "b.dcm", image[None], tmp_path / "a.dcm", "total variation")
    loaded = read_dicom(tmp_path / "out" / "b.dcm", clip=None)
    torch.testing.assert_close(loaded.image, image.round())
    assert (loaded.patient, loaded.pixel_size, loaded.display) == (source.patient, source.pixel_size, source.display)
    old, new = pydicom.dcmread(tmp_path / "a.dcm"), pydicom.dcmread(tmp_path / "out" / "b.dcm")
    assert new.ImageType == ["DERIVED", "SECONDARY", "AXIAL"]
    assert new.SOPInstanceUID != old.SOPInstanceUID
    assert new.file_meta.MediaStorageSOPInstanceUID == new.SOPInstanceUID
    assert new.SeriesInstanceUID != old.SeriesInstanceUID
    assert new.SourceImageSequence[0].ReferencedSOPInstanceUID == old.SOPInstanceUID
    assert new.ImagePositionPatient == old.ImagePositionPatient
    assert new.SeriesDescription == "total variation"
    assert "PixelPaddingValue" not in new
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["b.dcm"]
    write_dicom(tmp_path / "out" / "c.dcm", image, tmp_path / "a.dcm", "total variation")
    assert pydicom.dcmread(tmp_path / "out" / "c.dcm").SeriesInstanceUID == new.SeriesInstanceUID


def test_derived_slice_of_another_size_keeps_its_centre(tmp_path: Path) -> None:
    _write(tmp_path / "a.dcm", ImageOrientationPatient=DECUBITUS)
    write_dicom(tmp_path / "b.dcm", torch.zeros(3, 5), tmp_path / "a.dcm", pixel_size=(1.5, 2.0))

    def centre(path: Path) -> np.ndarray:
        d = pydicom.dcmread(path)
        axes, spacing = np.array(d.ImageOrientationPatient, float), np.array(d.PixelSpacing, float)
        middle = axes[:3] * spacing[1] * (d.Columns - 1) / 2 + axes[3:] * spacing[0] * (d.Rows - 1) / 2
        return np.array(d.ImagePositionPatient, float) + middle

    np.testing.assert_allclose(centre(tmp_path / "b.dcm"), centre(tmp_path / "a.dcm"), atol=1e-9)
    loaded = read_dicom(tmp_path / "b.dcm")
    assert loaded.image.shape == (3, 5)
    assert loaded.pixel_size == (1.5, 2.0)


def test_derived_magnetic_resonance_keeps_small_values(tmp_path: Path) -> None:
    _write(tmp_path / "a.dcm", Modality="MR", RescaleSlope=None, RescaleIntercept=None)
    image = torch.rand(6, 8, dtype=torch.float64)
    write_dicom(tmp_path / "b.dcm", image, tmp_path / "a.dcm")
    torch.testing.assert_close(read_dicom(tmp_path / "b.dcm").image, image, rtol=0, atol=1 / 60000)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    _write(tmp_path / "a.dcm")
    for image, message in (
        (torch.full((6, 8), torch.nan), "48 of 48 values are NaN"),
        (torch.full((6, 8), 1e6), "valid are Hounsfield units from -32768 to 32767"),
        (torch.zeros(8, 6), "a picture of 8x6 pixels, but .* has 6x8; give pixel_size"),
        (torch.zeros(2, 6, 8), r"a picture of shape \(2, 6, 8\)"),
    ):
        with pytest.raises(DataError, match=message):
            write_dicom(tmp_path / "b.dcm", image, tmp_path / "a.dcm")
    assert not (tmp_path / "b.dcm").exists()


# --- bad files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RescaleSlope": None}, "has no RescaleSlope, so its values cannot be turned into Hounsfield units"),
        ({"RescaleSlope": None, "RescaleIntercept": None}, "has no RescaleSlope and no RescaleIntercept"),
        ({"RescaleSlope": "0"}, "rescale slope 0.0"),
        ({"RescaleType": "OD"}, "its rescale type is OD; valid is HU"),
        ({"Modality": "MR"}, "its modality is MR; valid is CT"),
        ({"Modality": None}, "its modality is not given; valid is CT"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "is a localizer"),
        ({"NumberOfFrames": 5}, "has 5 frames"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "is PALETTE COLOR"),
        ({"PixelSpacing": None}, "its pixel spacing is not given"),
        ({"PixelSpacing": [0, 1]}, r"its pixel spacing is \[0.0, 1.0\]"),
    ],
)
def test_slices_that_are_no_good(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    _write(tmp_path / "bad.dcm", **changes)
    with pytest.raises(DataError, match=rf"bad\.dcm: {message}"):
        read_dicom(tmp_path / "bad.dcm", "CT")


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_truncated_files(tmp_path: Path) -> None:
    path = tmp_path / "bad.dcm"
    _write(path)
    content = path.read_bytes()
    for kept in range(0, len(content) - 1, 7):
        path.write_bytes(content[:kept])
        with pytest.raises(DataError, match=r"bad\.dcm: "):
            read_dicom(path)
    with pytest.raises(DataError, match=r"nowhere\.dcm: no such file"):
        read_dicom(tmp_path / "nowhere.dcm")


def test_folders_that_are_no_good(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        DicomFolder(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(DataError, match="the folder has no DICOM file"):
        DicomFolder(tmp_path)
    _write(tmp_path / "a.dcm", Modality="MR")
    with pytest.raises(DataError, match=r"a\.dcm: its modality is MR; valid is CT"):
        DicomFolder(tmp_path)
    (tmp_path / "a.dcm").write_text("nothing")
    with pytest.raises(DataError, match=r"a\.dcm: cannot be read as DICOM"):
        DicomFolder(tmp_path)


# --- real data -------------------------------------------------------------------------------------------------------


def test_real_chest(shared_data: Path) -> None:
    folder = DicomFolder(shared_data / "ct_chest_dicom", unit="stored")
    assert len(folder) == len(set(folder.patients)) == 41
    pictures = torch.stack(list(folder))
    assert pictures.shape == (41, 1, 512, 512)
    assert pictures.min() == -1024
    assert pictures.max() <= 3071
    # most of a chest is soft tissue, and all of them hold some lung
    for picture in pictures:
        tissue = picture[(picture > -200) & (picture < 200)]
        assert tissue.numel() > 20000
        assert -130 < tissue.median() < 100
        assert ((picture > -950) & (picture < -700)).sum() > 5000
    turned = [index for index in range(41) if folder.slice_of(index).display.transposed]
    assert len(turned) == 2  # patients who lay on their side
    parts = split_by_patient(folder.patients, (0.7, 0.15, 0.15), seed=0)
    assert [len(part) for part in parts] == [29, 6, 6]


def test_real_brain(shared_data: Path) -> None:
    folder = DicomFolder(shared_data / "mri_t1w_dicom", "MR")
    assert len(folder) == 18
    assert folder.patients == ["02"] * 18
    assert folder[0].shape == (1, 384, 274)
    assert folder[0].max() == 1
    positions = [Path(name).name for name in folder.names]
    assert positions == sorted(positions)  # numbered along the axis
    assert folder.slice_of(0).pixel_size == pytest.approx((0.6667, 0.7), abs=1e-3)


def test_real_slice_there_and_back(shared_data: Path, tmp_path: Path) -> None:
    folder = DicomFolder(shared_data / "ct_chest_dicom", unit="stored")
    name = next(name for index, name in enumerate(folder.names) if folder.slice_of(index).display.transposed)
    image = read_dicom(name).image
    write_dicom(tmp_path / "a.dcm", image, name)
    torch.testing.assert_close(read_dicom(tmp_path / "a.dcm").image, image, rtol=0, atol=0.5)
