"""MATLAB files of Helsinki besides those of the challenge: CtData, and plain arrays with the geometry beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from datasets.readers.pictures import DataError
from datasets.scans.reading import read_sinogram
from datasets.scans.scan import Distances
from tests.datasets.scans.discs import integrals

DEGREES = np.arange(20) * 9.0
Z = integrals(DEGREES, 40, 1.2)
KNOWN: dict[str, Any] = {"angles": np.deg2rad(DEGREES), "detector_spacing": 1.2, "shape": (20, 40)}


@pytest.mark.parametrize("name", ["CtData", "ctData2D"])
def test_structures(tmp_path: Path, name: str) -> None:
    parameters = {"angles": DEGREES, "distanceSourceOrigin": 400.0, "distanceSourceDetector": 550.0}
    full = {**parameters, "pixelSizePost": 0.2}
    scipy.io.savemat(tmp_path / "a.mat", {name: {"type": "2D", "sinogram": Z, "parameters": full}})
    scan = read_sinogram(tmp_path / "a.mat")
    np.testing.assert_array_equal(scan.sinogram.numpy(), Z)
    assert (scan.distances, scan.detector_spacing) == (Distances(400.0, 150.0), 0.2)
    scipy.io.savemat(tmp_path / "a.mat", {name: {"type": "2D", "sinogram": Z, "parameters": parameters}})
    with pytest.raises(DataError, match=r"a\.mat: has no field 'pixelSizePost'.*--geometry can describe"):
        read_sinogram(tmp_path / "a.mat")
    np.testing.assert_array_equal(read_sinogram(tmp_path / "a.mat", **KNOWN).sinogram.numpy(), Z)
    scipy.io.savemat(tmp_path / "a.mat", {name: {"type": "3D", "sinogram": np.ones((2, 3, 4)), "parameters": full}})
    with pytest.raises(DataError, match=r"shape \(2, 3, 4\), that of a scan in 3D"):
        read_sinogram(tmp_path / "a.mat")


@pytest.mark.parametrize("name", ["sinogram", "m"])
def test_arrays_in_either_orientation(tmp_path: Path, name: str) -> None:
    for values in (Z, Z.T):
        scipy.io.savemat(tmp_path / "a.mat", {name: values, "A": scipy.sparse.eye(40, format="csc")})
        np.testing.assert_array_equal(read_sinogram(tmp_path / "a.mat", **KNOWN).sinogram.numpy(), Z)
    with pytest.raises(DataError, match=rf"it has A, {name}.* an array is read with the geometry of its scan"):
        read_sinogram(tmp_path / "a.mat")


def test_arrays_that_are_not_understood(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"first": Z, "second": Z.T})
    with pytest.raises(DataError, match="has 2 arrays of 20 angles and 40 detector pixels"):
        read_sinogram(path, **KNOWN)
    scipy.io.savemat(path, {"m": Z[:, 1:]})
    with pytest.raises(DataError, match=r"has 0 arrays of .* it has m \(20, 39\)"):
        read_sinogram(path, **KNOWN)
    scipy.io.savemat(path, {"m": Z[:, :20]})
    with pytest.raises(DataError, match="which of them are the angles is not known"):
        read_sinogram(path, **{**KNOWN, "shape": (20, 20)})
    scan = {"sinogram": Z, "parameters": {"angles": DEGREES}}
    scipy.io.savemat(path, {"one": scan, "two": scan})
    with pytest.raises(DataError, match="has several scans, one, two"):
        read_sinogram(path)
