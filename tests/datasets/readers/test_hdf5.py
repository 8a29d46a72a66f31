"""HDF5 files of LoDoPaB-CT and fastMRI, made here in the layout of the public ones, whole and damaged."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.readers.hdf5 import LODOPAB_MU_MAX, LoDoPaB, fastmri_slices, read_fastmri
from datasets.readers.pictures import DataError

h5py = pytest.importorskip("h5py")

HEADER = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>
<encodedSpace><matrixSize><x>64</x><y>37</y><z>1</z></matrixSize></encodedSpace>
<reconSpace><matrixSize><x>32</x><y>16</y><z>1</z></matrixSize>
<fieldOfView_mm><x>160</x><y>40</y><z>4.5</z></fieldOfView_mm></reconSpace>
</encoding></ismrmrdHeader>"""


def _lodopab(folder: Path, count: int = 5, file: int = 0, part: str = "train") -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(file)
    pictures, sinograms = rng.random((count, 8, 8), dtype=np.float32), rng.random((count, 6, 9), dtype=np.float32)
    for kind, values in (("ground_truth", pictures), ("observation", sinograms)):
        with h5py.File(folder / f"{kind}_{part}_{file:03d}.hdf5", "w") as out:
            out["data"] = values
    return pictures, sinograms


def _fastmri(path: Path, coils: int | None = 3, **extra: Any) -> np.ndarray:
    rng = np.random.default_rng(0)
    shape = (2, 10, 12) if coils is None else (2, coils, 10, 12)
    kspace = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
    with h5py.File(path, "w") as out:
        out["kspace"] = kspace
        out["reconstruction_rss"] = rng.random((2, 6, 6), dtype=np.float32)
        out["ismrmrd_header"] = HEADER
        out.attrs["patient_id"], out.attrs["acquisition"] = "p7", "AXT2"
        for key, value in extra.items():
            if key in out:
                del out[key]
            out[key] = value
    return kspace


def test_lodopab_pictures_and_observations(tmp_path: Path) -> None:
    first, sinograms = _lodopab(tmp_path)
    second, _ = _lodopab(tmp_path, count=2, file=1)
    source = LoDoPaB(tmp_path)
    assert len(source) == 7
    np.testing.assert_array_equal(source[3][0].numpy(), first[3])
    np.testing.assert_array_equal(source[6][0].numpy(), second[1])
    np.testing.assert_allclose(source.observation(3)[0].numpy(), 1000 * sinograms[3].astype(np.float64))
    np.testing.assert_array_equal(source.subset(3, 4)[0][0].numpy(), first[3])
    assert pytest.approx(0.08135858) == LODOPAB_MU_MAX


def test_lodopab_patients(tmp_path: Path) -> None:
    _lodopab(tmp_path, part="test")
    _lodopab(tmp_path, count=2, file=1, part="test")
    ids = [str(number // 3) for number in range(130)]
    (tmp_path / "patient_ids_rand_test.csv").write_text("\n".join(ids) + "\n")
    source = LoDoPaB(tmp_path, "test")
    assert source.patients == ["0", "0", "0", "1", "1", "42", "43"]
    assert source.subset(2, 4).patients == ["0", "1"]
    (tmp_path / "patient_ids_rand_test.csv").write_text("\n".join(ids[:129]))
    with pytest.raises(DataError, match="has 129 lines, but there is a picture of number 129"):
        _ = LoDoPaB(tmp_path, "test").patients


def test_padding_of_the_last_lodopab_file_is_left_out(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "ground_truth_validation_027.hdf5", "w") as out:
        out["data"] = np.zeros((128, 4, 4), dtype=np.float32)
    assert len(LoDoPaB(tmp_path, "validation")) == 3522 - 27 * 128


def test_lodopab_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        LoDoPaB(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"has no file ground_truth_train_\*\.hdf5"):
        LoDoPaB(tmp_path)
    with pytest.raises(DataError, match="part is 'val'; valid are train, validation, test"):
        LoDoPaB(tmp_path, "val")  # type: ignore[arg-type]
    _lodopab(tmp_path)
    with pytest.raises(DataError, match=r"patient_ids_rand_train\.csv: no such file"):
        _ = LoDoPaB(tmp_path).patients
    (tmp_path / "observation_train_000.hdf5").unlink()
    with pytest.raises(DataError, match=r"observation_train_000\.hdf5: no such file"):
        LoDoPaB(tmp_path).observation(0)


def test_missing_key_lists_those_that_are_there(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "ground_truth_train_000.hdf5", "w") as out:
        out["images/all"], out["ids"] = np.zeros((2, 3)), np.zeros(2)
    with pytest.raises(DataError, match=r"ground_truth_train_000\.hdf5: has no dataset 'data'; it has ids, images/all"):
        LoDoPaB(tmp_path)


def test_damaged_files(tmp_path: Path) -> None:
    _lodopab(tmp_path, count=50)
    path = tmp_path / "ground_truth_train_000.hdf5"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="cannot be read as HDF5, it may be truncated"):
        LoDoPaB(tmp_path)
    path.write_text("not at all")
    with pytest.raises(DataError, match="cannot be read as HDF5"):
        LoDoPaB(tmp_path)
    with h5py.File(path, "w") as out:
        out["data"] = np.full((1, 4, 4), np.nan)
    with pytest.raises(DataError, match=r"data\[0\] has 16 of 16 values that are NaN"):
        LoDoPaB(tmp_path)[0]


def test_fastmri_with_several_coils(tmp_path: Path) -> None:
    kspace = _fastmri(tmp_path / "a.h5")
    assert fastmri_slices(tmp_path / "a.h5") == 2
    scan = read_fastmri(tmp_path / "a.h5", 1)
    np.testing.assert_array_equal(scan.kspace.numpy(), kspace[1])
    assert scan.target is not None
    assert scan.target.shape == (1, 6, 6)
    assert (scan.patient, scan.acquisition, scan.pixel_size) == ("p7", "AXT2", (5.0, 2.5))
    assert scan.mask is None


def test_fastmri_with_a_single_coil_and_a_mask(tmp_path: Path) -> None:
    mask = np.arange(12) % 3 == 0
    kspace = _fastmri(tmp_path / "a.h5", coils=None, mask=mask.astype(np.float32))
    scan = read_fastmri(tmp_path / "a.h5")
    np.testing.assert_array_equal(scan.kspace[0].numpy(), kspace[0])
    assert scan.target is None  # only reconstruction_rss is there, which belongs to several coils
    assert read_fastmri(tmp_path / "a.h5", target="reconstruction_rss").target is not None
    assert scan.mask is not None
    np.testing.assert_array_equal(scan.mask.numpy(), mask)
    with pytest.raises(DataError, match=r"no dataset 'reconstruction_esc'; it has .*kspace, mask, reconstruction_rss"):
        read_fastmri(tmp_path / "a.h5", target="reconstruction_esc")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"kspace": np.zeros((2, 10, 12))}, r"kspace has the shape \(2, 10, 12\) and type float64; valid are complex"),
        ({"kspace": np.zeros((10, 12), dtype=complex)}, r"kspace has the shape \(10, 12\)"),
        ({"kspace": np.full((2, 3, 10, 12), np.nan + 0j)}, "kspace has 360 of 360 values that are NaN"),
        ({"mask": np.ones(7)}, "mask has 7 entries, but kspace has 12 columns"),
        ({"ismrmrd_header": "<broken"}, "ismrmrd_header cannot be understood"),
        ({"ismrmrd_header": HEADER.replace("<x>32", "<x>0")}, "ismrmrd_header cannot be understood"),
    ],
)
def test_fastmri_that_is_no_good(tmp_path: Path, extra: dict[str, Any], message: str) -> None:
    _fastmri(tmp_path / "bad.h5", **extra)
    with pytest.raises(DataError, match=f"bad.h5: {message}"):
        read_fastmri(tmp_path / "bad.h5")


def test_fastmri_slice_out_of_range(tmp_path: Path) -> None:
    _fastmri(tmp_path / "a.h5")
    with pytest.raises(DataError, match="there is no slice 2; valid are 0 to 1"):
        read_fastmri(tmp_path / "a.h5", 2)


def test_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fastmri(tmp_path / "a.h5")
    real = builtins.__import__

    def without_h5py(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "h5py":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr("importlib.import_module", lambda name: without_h5py(name))
    with pytest.raises(ImportError, match=r"needs the package h5py.*recon-bilevel\[data\]"):
        read_fastmri(tmp_path / "a.h5")
