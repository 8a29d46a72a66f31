"""Readers of measured sinograms: files made here, damaged ones, and the real ones where they are at hand."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch

from datasets.physics import MIN_TRANSMISSION
from datasets.readers.pictures import DataError
from datasets.scans.reading import read_sinogram
from datasets.scans.rotation import estimate_rotation_centre
from datasets.scans.scan import Distances, Scan, lodopab_geometry
from recon.operators.tomography.beams import FanBeam, ParallelBeam
from tests.datasets.scans.discs import write_exchange

h5py = pytest.importorskip("h5py")

VIEWS, COLUMNS = 12, 9
DEGREES = np.arange(VIEWS) * 15.0


def _sinogram() -> np.ndarray:
    return np.random.default_rng(0).random((VIEWS, COLUMNS))


def _htc(path: Path, **changes: Any) -> np.ndarray:
    parameters = {
        "angles": 2 * DEGREES,
        "distanceSourceOrigin": 410.66,
        "distanceSourceDetector": 553.74,
        "pixelSizePost": 0.2,
        "scanner": "none",
    }
    structure: dict[str, Any] = {"sinogram": _sinogram(), "parameters": parameters | changes}
    structure["parameters"] = {k: v for k, v in structure["parameters"].items() if v is not None}
    scipy.io.savemat(path, {"CtDataFull": structure})
    return np.asarray(structure["sinogram"])


def _dxchange(path: Path, **changes: Any) -> np.ndarray:
    """Two detector rows; the flat field differs between columns, so that its absence shows."""
    z = np.stack([_sinogram(), 2 * _sinogram()], 1)
    gain = 1000.0 + 100 * np.arange(COLUMNS)
    frames: dict[str, Any] = {
        "data": 50 + gain * np.exp(-z),
        "data_white": np.stack([np.broadcast_to(50 + gain + shift, (2, COLUMNS)) for shift in (-5, 5)]),
        "data_dark": np.full((3, 2, COLUMNS), 50.0),
        "theta": DEGREES,
    }
    write_exchange(path, frames | changes)
    return z


# --- HTC2022 ---------------------------------------------------------------------------------------------------------


def test_htc(tmp_path: Path) -> None:
    sinogram = _htc(tmp_path / "a.mat")
    scan = read_sinogram(tmp_path / "a.mat")
    np.testing.assert_array_equal(scan.sinogram.numpy(), sinogram)
    np.testing.assert_allclose(scan.angles.numpy(), np.deg2rad(2 * DEGREES) + math.pi / 2)
    assert scan.metadata["scanner"] == "none"
    geometry = scan.geometry((16, 16))
    assert isinstance(geometry, FanBeam)
    assert geometry.source_distance == 410.66
    assert geometry.detector_distance == pytest.approx(143.08)
    assert geometry.pixel_size == pytest.approx((0.2 / scan.magnification,) * 2)
    assert geometry.detector_offset == 0
    assert geometry.range_shape == (1, VIEWS, COLUMNS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"angles": DEGREES[:-1]}, r"11 angles for a sinogram of shape \(12, 9\)"),
        ({"angles": np.deg2rad(2 * DEGREES)}, ".* should be degrees, but look like radians"),
        ({"distanceSourceOrigin": None}, "has no field 'distanceSourceOrigin'; it has angles, distanceSourceDetector"),
        ({"pixelSizePost": np.ones(2)}, r"pixelSizePost is \[1.0, 1.0\]; it must be one length"),
        ({"pixelSizePost": 0.0}, "detector_spacing is 0.0 mm; it must be positive"),
        ({"distanceSourceDetector": 100.0}, "detector_distance is -310"),
    ],
)
def test_htc_that_is_no_good(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    _htc(tmp_path / "bad.mat", **changes)
    with pytest.raises(DataError, match=rf"bad\.mat: {message}"):
        read_sinogram(tmp_path / "bad.mat")


def test_mat_files_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "bad.mat"
    scipy.io.savemat(path, {"x": np.ones(3), "y": np.ones(2)})
    with pytest.raises(DataError, match="has no structure CtDataFull or CtDataLimited; it has x, y"):
        read_sinogram(path)
    _htc(path)
    content = path.read_bytes()
    for kept in (len(content) // 2, 200, 10, 0):
        path.write_bytes(content[:kept])
        with pytest.raises(DataError, match=r"cannot be read as a MATLAB file|has no structure"):
            read_sinogram(path)
    with pytest.raises(DataError, match=r"nowhere\.mat: no such file"):
        read_sinogram(tmp_path / "nowhere.mat")


# --- DXchange --------------------------------------------------------------------------------------------------------


def test_dxchange(tmp_path: Path) -> None:
    z = _dxchange(tmp_path / "a.h5")
    for row in (0, 1):
        scan = read_sinogram(tmp_path / "a.h5", row=row, rotation_centre=3.0)
        np.testing.assert_allclose(scan.sinogram.numpy(), z[:, row], atol=1e-12)
        np.testing.assert_allclose(scan.angles.numpy(), np.deg2rad(DEGREES))
        assert scan.weights is not None
        np.testing.assert_allclose(scan.weights.numpy(), (1000 + 100 * np.arange(COLUMNS)) * np.exp(-z[:, row]))
    geometry = scan.geometry((8, 8))
    assert isinstance(geometry, ParallelBeam)
    assert geometry.detector_positions()[3] == pytest.approx(0)  # the axis projects onto column 3
    assert scan.metadata["length_unit"] == "detector pixel"


def test_dxchange_in_radians_or_backwards(tmp_path: Path) -> None:
    z = _dxchange(tmp_path / "a.h5", theta=np.deg2rad(DEGREES))
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["exchange/theta"].attrs["units"] = "radians"
    np.testing.assert_allclose(read_sinogram(tmp_path / "a.h5").angles.numpy(), np.deg2rad(DEGREES))
    z = _dxchange(tmp_path / "b.h5", theta=-DEGREES)
    scan = read_sinogram(tmp_path / "b.h5")
    np.testing.assert_allclose(scan.angles.numpy(), np.deg2rad(-DEGREES[::-1]))
    np.testing.assert_allclose(scan.sinogram.numpy(), z[::-1, 0], atol=1e-12)


def test_pixels_without_light_are_filled_in_and_have_no_weight(tmp_path: Path) -> None:
    columns = 40
    position = np.arange(columns)
    z = np.broadcast_to(0.01 * position, (VIEWS, 1, columns))
    white = np.full((1, 1, columns), 1050.0)
    white[..., 7] = 50.0
    data = 50 + 1000 * np.exp(-z)
    data[..., 7] = 50.0
    _dxchange(tmp_path / "a.h5", data=data, data_white=white, data_dark=np.full((1, 1, columns), 50.0))
    scan = read_sinogram(tmp_path / "a.h5")
    np.testing.assert_allclose(scan.sinogram.numpy(), z[:, 0], atol=1e-12)
    assert scan.metadata["dead_pixels"] == [7]
    assert scan.weights is not None
    assert torch.nonzero((scan.weights == 0).all(0)).ravel().tolist() == [7]


def test_rays_without_photons_are_finite(tmp_path: Path) -> None:
    data = np.full((VIEWS, 2, COLUMNS), 1050.0)
    data[3, 0, 4] = 40.0  # below the dark field
    white = np.full((1, 2, COLUMNS), 1050.0)
    _dxchange(tmp_path / "a.h5", data=data, data_white=white)
    scan = read_sinogram(tmp_path / "a.h5")
    assert scan.sinogram[3, 4].item() == pytest.approx(-math.log(MIN_TRANSMISSION))  # whatever the unit of the file
    assert "1 of 108 rays" in scan.warnings[0]
    assert scan.weights is not None
    assert scan.weights[3, 4] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_white": None}, r"has no flat fields \(exchange/data_white\)"),
        ({"data_dark": None}, r"has no dark fields \(exchange/data_dark\)"),
        ({"theta": None}, "has no dataset 'exchange/theta'; it has exchange/data, exchange/data_dark"),
        ({"data": None}, "has no dataset 'exchange/data'"),
        ({"theta": np.deg2rad(DEGREES)}, ".* should be degrees, but look like radians"),
        ({"theta": DEGREES[1:]}, r"11 angles for a sinogram of shape \(12, 9\)"),
        ({"theta": DEGREES[[0, 1, 1, *range(3, VIEWS)]]}, r"angle 2 \(.* does not exceed the one before"),
        ({"theta": np.full(VIEWS, np.nan)}, "angles are NaN"),
        (
            {"data_white": np.ones((2, 2, 5))},
            r"exchange/data_white has the shape \(2, 2, 5\); valid is \(frames, 2, 9\)",
        ),
        (
            {"data_white": np.full((1, 2, COLUMNS), 20.0)},
            "9 of 9 detector pixels of row 0 have flat fields that do not",
        ),
        ({"data": np.full((VIEWS, 2, COLUMNS), np.nan)}, "exchange/data has 108 of 108 values that are NaN"),
        ({"data": np.ones((VIEWS, COLUMNS))}, r"exchange/data has the shape \(12, 9\)"),
    ],
)
def test_dxchange_that_is_no_good(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    _dxchange(tmp_path / "bad.h5", **changes)
    with pytest.raises(DataError, match=rf"bad\.h5: {message}"):
        read_sinogram(tmp_path / "bad.h5")


def test_constants_in_place_of_missing_frames(tmp_path: Path) -> None:
    _dxchange(tmp_path / "a.h5", data=np.full((VIEWS, 1, COLUMNS), 150.0), data_white=None, data_dark=None)
    scan = read_sinogram(tmp_path / "a.h5", flat=1050.0, dark=50.0)
    np.testing.assert_allclose(scan.sinogram.numpy(), math.log(10))
    with pytest.raises(DataError, match="there is no detector row 1; valid are 0 to 0"):
        read_sinogram(tmp_path / "a.h5", row=1, flat=1050.0, dark=50.0)


# --- NumPy -----------------------------------------------------------------------------------------------------------


def test_numpy_with_its_geometry(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(
        path,
        sinogram=_sinogram().astype(np.float32),
        angles_degrees=DEGREES,
        detector_spacing=0.5,
        source_distance=100.0,
        detector_distance=50.0,
        rotation_centre=3.5,
    )
    scan = read_sinogram(path)
    np.testing.assert_array_equal(scan.sinogram.numpy(), _sinogram().astype(np.float32))
    geometry = scan.geometry((8, 6), (0.2, 0.3))
    assert isinstance(geometry, FanBeam)
    assert geometry.detector_positions()[[3, 4]] == pytest.approx([-0.25, 0.25])
    assert geometry.pixel_size == (0.2, 0.3)
    radians = read_sinogram(path, angles=np.deg2rad(DEGREES), detector_spacing=1.0)
    torch.testing.assert_close(radians.angles, scan.angles)
    assert radians.detector_spacing == 1.0


def test_plain_numpy(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, _sinogram())
    scan = read_sinogram(path, angles_degrees=DEGREES, detector_spacing=1.0)
    assert isinstance(scan.geometry((4, 4)), ParallelBeam)
    with pytest.raises(DataError, match=r"a\.npy: the angles span 165 radians; .* If these are degrees"):
        read_sinogram(path, angles=DEGREES, detector_spacing=1.0)
    with pytest.raises(DataError, match="give one of angles"):
        read_sinogram(path, detector_spacing=1.0)
    with pytest.raises(DataError, match="give one of angles"):
        read_sinogram(path, angles=DEGREES, angles_degrees=DEGREES, detector_spacing=1.0)
    with pytest.raises(DataError, match="detector_spacing is not known"):
        read_sinogram(path, angles_degrees=DEGREES)
    with pytest.raises(DataError, match="belong together"):
        read_sinogram(path, angles_degrees=DEGREES, detector_spacing=1.0, source_distance=3.0)
    with pytest.raises(DataError, match="rotation_centre is 9; valid are detector pixels 0 to 8"):
        read_sinogram(path, angles_degrees=DEGREES, detector_spacing=1.0, rotation_centre=9)


def test_numpy_that_is_no_good(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, sino=_sinogram())
    with pytest.raises(DataError, match="has no array 'sinogram'; it has sino"):
        read_sinogram(path, angles=DEGREES)
    np.savez(path, sinogram=_sinogram(), angles_degrees=DEGREES, detector_spacing=np.ones(2))
    with pytest.raises(DataError, match=r"detector_spacing has the shape \(2,\)"):
        read_sinogram(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match="cannot be read as NumPy data"):
        read_sinogram(path)
    np.save(tmp_path / "c.npy", _sinogram().astype(complex))
    with pytest.raises(DataError, match="values of type complex128; valid are real numbers"):
        read_sinogram(tmp_path / "c.npy", angles_degrees=DEGREES, detector_spacing=1.0)
    np.save(tmp_path / "n.npy", np.where(_sinogram() > 0.9, np.nan, 1))
    with pytest.raises(DataError, match="values of the sinogram are NaN"):
        read_sinogram(tmp_path / "n.npy", angles_degrees=DEGREES, detector_spacing=1.0)
    with pytest.raises(DataError, match=r"unknown kind of sinogram file; valid suffixes are \.mat"):
        read_sinogram(tmp_path / "a.dcm")


# --- scans -----------------------------------------------------------------------------------------------------------


def _discs(centre: float, columns: int = 101) -> Scan:
    """Analytic parallel scan of two discs: chords of length 2 sqrt(r^2 - t^2)."""
    angles = torch.arange(40, dtype=torch.float64) * math.pi / 40
    s = torch.arange(columns, dtype=torch.float64) - centre
    sinogram = torch.zeros(40, columns, dtype=torch.float64)
    for x, y, radius in ((10.0, -6.0, 12.0), (-14.0, 9.0, 5.0)):
        t = s - (x * angles.cos() + y * angles.sin())[:, None]
        sinogram += 2 * (radius**2 - t.square()).clamp_min(0).sqrt()
    return Scan(sinogram, angles, 1.0)


@pytest.mark.parametrize("centre", [50.0, 46.3, 58.75])
def test_rotation_centre_from_the_data(centre: float) -> None:
    assert estimate_rotation_centre(_discs(centre)) == pytest.approx(centre, abs=0.02)


def test_rotation_centre_that_cannot_be_estimated() -> None:
    cut = _discs(50.0)
    with pytest.raises(DataError, match="leaves the field of view"):
        estimate_rotation_centre(dataclasses.replace(cut, sinogram=cut.sinogram[:, 55:]))
    with pytest.raises(DataError, match="2 views do not determine"):
        estimate_rotation_centre(cut.select([0, 7]))
    with pytest.raises(DataError, match="full turn only"):
        estimate_rotation_centre(dataclasses.replace(cut, distances=Distances(500.0, 0.0)))


def test_geometry_of_lodopab_is_that_of_odl() -> None:
    import odl
    from odl.applications import tomo

    space = odl.uniform_discr([-0.13, -0.13], [0.13, 0.13], (362, 362))
    expected = tomo.parallel_beam_geometry(space, num_angles=1000)
    geometry = lodopab_geometry()
    np.testing.assert_allclose(geometry.angles, np.asarray(expected.angles).ravel())
    detector = np.asarray(expected.det_partition.grid.coord_vectors[0])
    np.testing.assert_allclose(geometry.detector_positions(), 1000 * detector, atol=1e-9)


def test_parts_of_a_scan() -> None:
    scan = dataclasses.replace(_discs(50.0), weights=_discs(50.0).sinogram + 1, rotation_centre=40.0)
    part = scan.select(slice(None, None, 8))
    assert part.sinogram.shape == (5, 101)
    torch.testing.assert_close(part.angles, scan.angles[::8])
    assert part.weights is not None
    torch.testing.assert_close(part.weights, part.sinogram + 1)
    assert part.rotation_centre == 40.0
    with pytest.raises(DataError, match="does not exceed the one before"):
        scan.select([3, 1])
    with pytest.raises(DataError, match=r"a sinogram of shape \(0, 101\)"):
        scan.select(slice(0, 0))


# --- real data -------------------------------------------------------------------------------------------------------


def test_real_htc(shared_data: Path) -> None:
    scan = read_sinogram(shared_data / "htc2022" / "htc2022_ta_full.mat")
    assert scan.sinogram.shape == (721, 560)
    assert scan.angles[1] - scan.angles[0] == pytest.approx(math.radians(0.5))
    assert scan.magnification == pytest.approx(scan.metadata["geometricMagnification"])
    # pixels of the organisers' picture
    assert scan.geometry((512, 512)).pixel_size[0] == pytest.approx(scan.metadata["effectivePixelSizePost"])
    # first and last view are the same, a full turn apart
    assert (scan.sinogram[0] - scan.sinogram[-1]).abs().mean() < 0.01 * scan.sinogram.mean()


def test_real_tooth(shared_data: Path) -> None:
    path = shared_data / "tomopy_tooth" / "tooth.h5"
    for row in (0, 1):
        scan = read_sinogram(path, row=row)
        assert scan.sinogram.shape == (181, 640)
        assert scan.metadata["dead_pixels"] == []
        assert scan.sinogram[:, :5].abs().mean() < 0.01  # air beside the tooth
        assert estimate_rotation_centre(scan) == pytest.approx(296, abs=0.5)  # tomopy's documentation: 296
    # views half a turn apart are mirror images about the rotation centre
    scan = read_sinogram(path, rotation_centre=296.0)
    columns = np.arange(640)
    mirrored = np.interp(2 * scan.centre - columns, columns, scan.sinogram[0].numpy())
    assert np.abs(mirrored - scan.sinogram[-1].numpy())[50:550].mean() < 0.02
