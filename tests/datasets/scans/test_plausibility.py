"""Counts, transmissions and wrong units that were taken for line integrals are named; line integrals never are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datasets import SheppLogan
from datasets.readers.pictures import DataError
from datasets.scans.reading import read_sinogram
from recon.operators import ParallelBeam, RayTransform
from tests.datasets.scans.discs import integrals

DEGREES = np.arange(30) * 6.0
HALF, FULL = np.arange(60) * 6.0, np.arange(60) * 3.0
RING = ((0.0, 0.0, 20.0, 0.02), (0.0, 0.0, 15.0, -0.02))


def warned(folder: Path, sinogram: np.ndarray, degrees: np.ndarray = DEGREES, pitch: float = 0.5) -> str:
    np.savez(folder / "a.npz", sinogram=sinogram, angles_degrees=degrees, detector_spacing=pitch)
    return " ".join(read_sinogram(folder / "a.npz").warnings)


def noise(size: float, z: np.ndarray) -> np.ndarray:
    return size * np.random.default_rng(0).standard_normal(z.shape)


@pytest.mark.parametrize("strength", [0.5, 1.0, 6.0])
def test_counts_are_refused(tmp_path: Path, strength: float) -> None:
    rng = np.random.default_rng(0)
    z = strength * integrals(DEGREES)
    half = strength * integrals(HALF, 64, 0.5, 4.0)
    for counts, degrees in (
        (np.rint(60000 * np.exp(-z)).astype(np.uint16), DEGREES),
        (100 + 900 * np.exp(-z), DEGREES),
        (rng.poisson(100 * np.exp(-z)), DEGREES),
        (100 * np.exp(-z), DEGREES),
        (100 + 900 * np.exp(-half), HALF),
    ):
        with pytest.raises(DataError, match=r"a\.npz: its values.*as counts are.*--flat .* --counts --photons"):
            warned(tmp_path, counts, degrees)


def test_transmissions_and_the_wrong_sign_are_refused(tmp_path: Path) -> None:
    z = integrals(DEGREES)
    for values in (np.exp(-z), np.exp(-6 * z), np.exp(-z) + noise(0.03, z)):
        with pytest.raises(DataError, match=r"as transmissions are and line integrals are not\. Give --flat"):
            warned(tmp_path, values)
    with pytest.raises(DataError, match="change the sign"):
        warned(tmp_path, -z)
    assert "as transmissions or counts are" in warned(tmp_path, np.log(60000) - z)
    assert "as transmissions or counts are" in warned(tmp_path, np.exp(-integrals(HALF, 64, 0.5, 4.0)), HALF)


@pytest.mark.parametrize(
    ("sinogram", "degrees"),
    [
        (integrals(DEGREES), DEGREES),
        (integrals(DEGREES) + noise(0.3, integrals(DEGREES)), DEGREES),
        (integrals(DEGREES) + 0.01, DEGREES),
        (integrals(DEGREES) - 0.01, DEGREES),
        (integrals(DEGREES, 40), DEGREES),  # the object leaves the field of view
        (integrals(HALF, 64, 0.5, 4.0), HALF),  # half acquisition
        (integrals(DEGREES, discs=RING), DEGREES),
        (np.ones((30, 96)), DEGREES),
        (np.zeros((30, 96)), DEGREES),
    ],
)
def test_line_integrals_are_not_refused(tmp_path: Path, sinogram: np.ndarray, degrees: np.ndarray) -> None:
    assert warned(tmp_path, sinogram, degrees) == ""


def test_the_inside_of_a_tube_is_not_refused(tmp_path: Path) -> None:
    """Its walls at the edges of the detector are like air of transmissions, which is said."""
    assert "if they are no line integrals" in warned(tmp_path, integrals(DEGREES, 60, discs=RING))


def test_phantoms_in_units_of_their_own_are_read(tmp_path: Path) -> None:
    """Values 0 to 1 on pixels of size 1: no light would pass, which is said, but they are what they are."""
    pytest.importorskip("astra", reason="needs the extra ct")
    geometry = ParallelBeam.equispaced((64, 64), 1.0, 30)
    z = RayTransform(geometry)(SheppLogan(64)[0][None].double())[0, 0].numpy()
    np.savez(tmp_path / "a.npz", sinogram=z, angles=np.asarray(geometry.angles), detector_spacing=1.0)
    scan = read_sinogram(tmp_path / "a.npz")
    np.testing.assert_array_equal(scan.sinogram.numpy(), z)
    assert all("those of a phantom in units of its own" in text for text in scan.warnings)


def test_pitches_in_other_units(tmp_path: Path) -> None:
    z = integrals(DEGREES)
    assert "If lengths are in metres, give them in mm, e.g. a pitch of 0.5" in warned(tmp_path, z, pitch=0.0005)
    assert "in metres" in warned(tmp_path, z, pitch=0.00005)
    assert "If lengths are in micrometres, give them in mm" in warned(tmp_path, z, pitch=500.0)
    for pitch in (0.01, 0.05, 0.5, 1.2):
        assert warned(tmp_path, z, pitch=pitch) == ""
    # a synchrotron's pixels of 0.65 micrometres
    assert warned(tmp_path, 0.05 * z, pitch=0.00065) == ""


def test_scaled_line_integrals_are_said(tmp_path: Path) -> None:
    assert "has line integrals up to 959.4" in warned(tmp_path, 1000 * integrals(FULL), FULL)


def test_real_scans_are_plausible(shared_data: Path) -> None:
    files = [*(shared_data / "htc2022").glob("*_full.mat"), shared_data / "tomopy_tooth" / "tooth.h5"]
    assert len(files) > 1
    for path in files:
        assert read_sinogram(path).warnings == ()
