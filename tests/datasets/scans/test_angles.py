"""Order and units of angles: golden-angle scans, scans over several turns, radians in place of degrees."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from datasets.readers.pictures import DataError
from datasets.scans.angles import degrees_to_radians, ordered_views, view_angles
from datasets.scans.reading import read_sinogram
from tests.datasets.scans.discs import integrals, write_dxchange

pytest.importorskip("h5py")

PATH = Path("scan.h5")
GOLDEN = 111.246117975


@pytest.mark.parametrize("arc", [10.0, 30.0, 90.0, 117.0, 120.0, 180.0, 200.0, 270.0, 360.0, 720.0])
@pytest.mark.parametrize("views", [12, 60])
def test_radians_are_no_degrees_whatever_their_arc(arc: float, views: int) -> None:
    degrees = np.arange(views) * arc / views
    np.testing.assert_allclose(degrees_to_radians(degrees, PATH), np.deg2rad(degrees))
    with pytest.raises(DataError, match=r"scan\.h5: the .* angles span .* should be degrees, but look like radians"):
        degrees_to_radians(np.deg2rad(degrees), PATH)
    with pytest.raises(DataError, match="which looks like radians"):
        view_angles(None, math.radians(180), views, PATH)
    if arc > 6.3:
        with pytest.raises(DataError, match="If these are degrees, give them as degrees"):
            view_angles(degrees, None, views, PATH)


def test_golden_angle_order_is_sorted(tmp_path: Path) -> None:
    for theta in (np.arange(60) * GOLDEN % 180, np.arange(60) * GOLDEN, -30 - np.arange(60) * GOLDEN % 180):
        scan = read_sinogram(write_dxchange(tmp_path / "a.h5", integrals(theta), theta))
        assert (scan.angles.diff() > 0).all()
        assert scan.repeats is None
        np.testing.assert_allclose(scan.sinogram.numpy(), integrals(np.rad2deg(scan.angles.numpy())), atol=1e-9)


@pytest.mark.parametrize("ends", [False, True])
def test_two_turns_are_averaged_as_counts(tmp_path: Path, ends: bool) -> None:
    """The logarithm of the mean count, twice the weight, and photons that count both turns."""
    theta = np.arange(121 if ends else 120) * 6.0
    rng = np.random.default_rng(0)
    counts = rng.poisson(900 * np.exp(-integrals(theta)))[:, None] + 100.0
    scan = read_sinogram(write_dxchange(tmp_path / "a.h5", integrals(theta), theta, data=counts))
    np.testing.assert_allclose(np.rad2deg(scan.angles.numpy()), np.arange(60) * 6.0, atol=1e-9)
    mean = np.stack([counts[k::60, 0].mean(0) for k in range(60)]) - 100
    np.testing.assert_allclose(scan.sinogram.numpy(), np.log(900 / mean))
    repeats = [3.0 if ends else 2.0] + 59 * [2.0]
    assert scan.repeats is not None
    assert scan.weights is not None
    assert scan.repeats.tolist() == repeats
    np.testing.assert_allclose(scan.weights.numpy(), mean * np.array(repeats)[:, None])
    assert scan.select([1, 2]).repeats is not None
    assert scan.warnings == ()


def test_views_at_the_same_angle_that_do_not_agree() -> None:
    theta = np.arange(120) * 6.0
    z = integrals(theta) * np.repeat([1.0, 0.5], 60)[:, None]
    views = ordered_views(z, np.deg2rad(theta), PATH)
    assert "views at the same angle, a turn apart, differ by" in views.warnings[0]


def test_increasing_angles_and_repeats_within_a_turn_stay() -> None:
    """A full turn with both ends is no scan over two turns; a stuck encoder is left to the checks of the scan."""
    angles = np.deg2rad(np.arange(121) * 3.0)
    values = np.arange(121.0)[:, None]
    assert ordered_views(values, angles, PATH).angles is angles
    stuck = np.deg2rad([0.0, 10.0, 10.0, 20.0])
    assert ordered_views(values[:4], stuck, PATH).repeats is None


def test_an_arc_in_place_of_angles() -> None:
    radians, said = view_angles(None, -360.0, 4, PATH)
    np.testing.assert_allclose(radians, np.deg2rad([0, -90, -180, -270]))
    assert "an arc of -360 degrees without its end" in said[0]
    for angles, degrees, message in (
        (None, 0.0, "the arc is 0 degrees"),
        (None, math.nan, "the arc is nan degrees"),
        (None, None, "give one of angles"),
        (np.zeros(4), 180.0, "give one of angles"),
    ):
        with pytest.raises(DataError, match=message):
            view_angles(angles, degrees, 4, PATH)


def test_units_of_angles(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    theta = np.arange(12) * 15.0
    path = write_dxchange(tmp_path / "a.h5", integrals(theta), theta)
    for unit in ("deg", "Degrees", np.array([b"degree"])):
        with h5py.File(path, "a") as file:
            file["exchange/theta"].attrs["units"] = unit
        np.testing.assert_allclose(read_sinogram(path).angles.numpy(), np.deg2rad(theta))
    with h5py.File(path, "a") as file:
        file["exchange/theta"].attrs["units"] = "mrad"
    with pytest.raises(DataError, match=r"a\.h5: its angles have the unit 'mrad'; valid are degrees and radians"):
        read_sinogram(path)
