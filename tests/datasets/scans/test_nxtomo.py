"""NXtomo: frames told apart by their key, wherever the format allows angles and data to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datasets.readers.pictures import DataError
from datasets.scans.reading import read_sinogram
from tests.datasets.scans.discs import integrals

h5py = pytest.importorskip("h5py")

DEGREES = np.arange(20) * 9.0
Z = integrals(DEGREES, 40, 1.2)
KEY = np.array([2, 2, 1, 1, *20 * [0]])


def frames(rows: int = 1) -> np.ndarray:
    data = np.concatenate([np.full((2, 40), 100.0), np.full((2, 40), 1000.0), 100 + 900 * np.exp(-Z)])
    return np.repeat(data[:, None], rows, 1)


def test_flat_layout(tmp_path: Path) -> None:
    angles = np.concatenate([np.zeros(4), DEGREES])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("entry/tomo_entry/data")
        group["data"], group["image_key"], group["rotation_angle"] = frames(), KEY, angles
    scan = read_sinogram(tmp_path / "a.h5")
    np.testing.assert_allclose(scan.sinogram.numpy(), Z, atol=1e-12)
    np.testing.assert_allclose(scan.angles.numpy(), np.deg2rad(DEGREES))
    assert scan.metadata["length_unit"] == "detector pixel"
    assert scan.weights is not None
    np.testing.assert_allclose(scan.weights.numpy(), 900 * np.exp(-Z))


def test_layout_of_the_definition(tmp_path: Path) -> None:
    """Detector and sample in groups of their own, links to them, frames for alignment, angles in radians, a pitch."""
    key, control = np.append(KEY, [0, 3]), np.append(KEY, [-1, 3])
    with h5py.File(tmp_path / "a.nxs", "w") as file:
        detector = file.create_group("entry/instrument/detector")
        detector["data"] = np.concatenate([frames(2), np.full((2, 2, 40), 1e9)])
        detector["image_key"], detector["image_key_control"] = key, control
        detector["x_pixel_size"] = 0.0012
        detector["x_pixel_size"].attrs["units"] = "m"
        file["entry/sample/rotation_angle"] = np.deg2rad(np.concatenate([np.zeros(4), DEGREES, [0, 0]]))
        file["entry/sample/rotation_angle"].attrs["units"] = "rad"
        file["entry/data/data"] = detector["data"]
        file["entry/data/rotation_angle"] = file["entry/sample/rotation_angle"]
        file["entry/data/image_key"] = detector["image_key"]
    scan = read_sinogram(tmp_path / "a.nxs", row=1)
    np.testing.assert_allclose(scan.sinogram.numpy(), Z, atol=1e-12)
    np.testing.assert_allclose(scan.angles.numpy(), np.deg2rad(DEGREES))
    assert scan.detector_spacing == pytest.approx(1.2)
    assert scan.metadata["length_unit"] == "mm"


def test_what_is_missing_is_given(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["e/data"], file["e/image_key"] = frames()[4:], KEY[4:]
    with pytest.raises(DataError, match=r"a\.h5: has no flat fields \(image_key\)"):
        read_sinogram(path)
    with pytest.raises(DataError, match=r"has no rotation_angle; give the angles \(--angles"):
        read_sinogram(path, flat=1000.0, dark=100.0)
    scan = read_sinogram(path, flat=1000.0, dark=100.0, angles_degrees=180.0)
    np.testing.assert_allclose(scan.sinogram.numpy(), Z, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": np.ones((24, 40))}, "has 24 entries, but /e data of shape"),
        ({"data": None}, "has 24 entries, but /e no data"),
        ({"image_key": KEY[1:]}, "has 23 entries"),
        ({"image_key": np.ones(24, int)}, "no frame has the image key 0"),
        ({"rotation_angle": DEGREES[1:]}, "has 19 angles for 24 frames"),
        ({"other/image_key": KEY}, "has 2 datasets image_key"),
        ({"data": np.full((24, 1, 40), np.nan)}, "values that are NaN"),
    ],
)
def test_nxtomo_that_is_no_good(tmp_path: Path, changes: dict[str, np.ndarray | None], message: str) -> None:
    made = {"data": frames(), "image_key": KEY, "rotation_angle": DEGREES}
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        for name, value in (made | changes).items():
            if value is not None:
                file[f"e/{name}"] = value
    with pytest.raises(DataError, match=rf"bad\.h5: .*{message}"):
        read_sinogram(tmp_path / "bad.h5")
    with pytest.raises(DataError, match=r"bad\.h5"):
        read_sinogram(tmp_path / "bad.h5", row=3)
