"""Slices that come inside packages, and folders of patients in the data modules of CT and MRI."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from datasets import BrainSlice, BuiltinImages, BuiltinSlices, DataError, MRIDataModule, TomographyDataModule
from recon.operators import magnitude

pytest.importorskip("pydicom")

from tests.datasets.readers.test_dicom import _write


def _mri(**changes: Any) -> MRIDataModule:
    return MRIDataModule(**({"size": 32, "limit": 2} | changes))


def test_slices_of_ct() -> None:
    source = BuiltinSlices("CT")
    assert source.names == ["head", "abdomen", "skull_base"]
    for picture in source:
        assert picture.shape == (1, 512, 512)
        assert picture.min() == 0
        assert 0.3 < picture.max() < 1
        # soft tissue, -100 to 150 HU, and something denser than 300 HU
        assert ((picture > 0.22) & (picture < 0.283)).double().mean() > 0.05
        assert (picture > 0.32).double().mean() > 0.005
    # the abdomen is stored upside down: in the usual view the spine is below and the air of the room above
    bone = torch.nonzero(source[1][0] > 0.34)[:, 0].double().mean()
    assert bone > 280
    assert BuiltinSlices("CT", size=64)[2].shape == (1, 64, 64)


def test_slices_of_mr() -> None:
    source = BuiltinSlices("MR")
    assert [tuple(picture.shape) for picture in source] == [(1, 484, 484), (1, 1024, 1024)]
    assert all(picture.min() >= 0 and picture.max() == 1 and picture.std() > 0.05 for picture in source)
    with pytest.raises(DataError, match="modality is 'PET'; valid are CT, MR"):
        BuiltinSlices("PET")  # type: ignore[arg-type]


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pydicom.data.get_testdata_file", lambda name, download: None if not download else 1 / 0)
    with pytest.raises(ImportError, match=r"needs the package pydicom-data.*recon-bilevel\[data\]"):
        BuiltinSlices("CT")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs the package dipy.*recon-bilevel\[brain\]"):
        BrainSlice()


def test_brain_is_read_from_where_dipy_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    )
    with pytest.raises(DataError, match=r"t1_coronal_slice\.npy: no such file"):
        BrainSlice()
    picture = np.random.default_rng(0).random((40, 40))
    (tmp_path / "data" / "files").mkdir(parents=True)
    np.save(tmp_path / "data" / "files" / "t1_coronal_slice.npy", picture)
    np.testing.assert_array_equal(BrainSlice()[0][0].numpy(), picture)
    data = _mri(test="brain", size=None, crop_size=40)
    (batch,) = data.test_dataloader()
    np.testing.assert_allclose(magnitude(batch.x)[0, 0].numpy(), picture, atol=1e-15)
    assert data.names("test") == ["brain"]
    with pytest.raises(DataError, match="train is 'brain'"):
        _mri(train="brain").train_tensors()


@pytest.mark.skipif(importlib.util.find_spec("dipy") is None, reason="dipy is not installed")
def test_brain_of_dipy() -> None:
    picture = BrainSlice()[0]
    assert picture.shape == (1, 256, 256)
    assert picture.min() == 0
    assert picture.max() == 1


def test_builtin_slices_are_the_test_data_and_photographs_the_rest() -> None:
    mri = _mri()
    assert mri.names("test") == ["abdomen", "shoulder"]
    assert mri.names("val") == BuiltinImages("val").names
    (first, _) = mri.test_dataloader()
    torch.testing.assert_close(first.x[0, :1], BuiltinSlices("MR", size=32)[0])
    torch.testing.assert_close(mri.train_tensors()[0][0, :1], BuiltinImages("train", size=32)[0])


# --- folders of patients ---


def _patients(folder: Path, names: str, modality: str = "MR") -> str:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for patient in names:
        for number in range(2):
            pixels = rng.integers(1, 1500, (30, 30)).astype(np.uint16)
            changes = {"PatientID": patient, "InstanceNumber": number, "Modality": modality}
            _write(folder / f"{patient}_{number}.dcm", pixels, **changes)
    return str(folder)


def _ids(names: list[str]) -> set[str]:
    return {Path(name).name[0] for name in names}


def test_mr_slices_are_split_by_patient(tmp_path: Path) -> None:
    folder = _patients(tmp_path / "a", "abcdef")
    data = _mri(train=folder, size=24, limit=None, fractions=(0.5, 0.25, 0.25))
    assert not _ids(data.names("val")) & _ids(data.names("test"))
    x, y = data.train_tensors()
    assert len(x) == 12 - len(data.names("val")) - len(data.names("test"))
    assert y.shape[1:] == (1, 2, 24, 24)
    assert float(x.max()) <= 1


def test_the_training_folder_under_another_name_is_split_too(tmp_path: Path) -> None:
    folder = _patients(tmp_path / "a", "abcdef", "CT")
    data = TomographyDataModule(train=folder, val=folder + "/", test=f"{tmp_path}/./a", size=24, views=4, cache=False)
    parts = [_ids(data.names("val")), _ids(data.names("test"))]
    assert sum(len(part) for part in parts) + len(data.train_tensors()[0]) / 2 == 6
    assert not parts[0] & parts[1]


def test_other_folders_with_the_same_patients_give_a_warning(tmp_path: Path) -> None:
    first, second = _patients(tmp_path / "a", "abc"), _patients(tmp_path / "b", "cde")
    data = _mri(train=first, val=second, test="builtin", limit=None)
    with pytest.raises(DataError, match="30x30 pixels"):
        data.train_tensors()
    data = _mri(train=first, val=second, test="builtin", limit=None, size=24)
    assert len(data.train_tensors()[0]) == 6
    with pytest.warns(UserWarning, match=r"b: 1 of its patients are in the training data too, e\.g\. c"):
        assert len(data.names("val")) == 6


def test_too_few_patients_to_split(tmp_path: Path) -> None:
    folder = _patients(tmp_path / "a", "ab")
    with pytest.raises(DataError, match=r"/a: 2 patients cannot be split into 3 parts.*name other data"):
        _mri(train=folder, size=24).train_tensors()
    assert len(_mri(train=folder, size=24, val="builtin", test="builtin", limit=None).train_tensors()[0]) == 4
