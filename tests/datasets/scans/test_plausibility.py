"""Counts, transmissions and wrong units that were taken for line integrals are named; line integrals never are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets import SheppLogan
from datasets.readers.pictures import DataError
from datasets.scans.reading import read_sinogram
from recon.operators import ParallelBeam, RayTransform
from tests.datasets.scans.discs import PHANTOM, integrals, write_dxchange

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
        (integrals(DEGREES) + 0.004, DEGREES),
        (integrals(DEGREES) - 0.004, DEGREES),
        (integrals(DEGREES, 40), DEGREES),  # the object leaves the field of view
        (integrals(HALF, 64, 0.5, 4.0), HALF),  # half acquisition
        (integrals(DEGREES, discs=RING), DEGREES),
        (np.ones((30, 96)), DEGREES),
        (np.zeros((30, 96)), DEGREES),
    ],
)
def test_line_integrals_are_not_refused(tmp_path: Path, sinogram: np.ndarray, degrees: np.ndarray) -> None:
    assert warned(tmp_path, sinogram, degrees) == ""


@pytest.mark.parametrize("centre", [47.5, 41.5, 30.0])
@pytest.mark.parametrize(
    ("photons", "level"),
    [(photons, level) for photons in (None, 3e3, 1e5) for level in (-0.1, -0.02, 0.02, 0.2)]
    + [(photons, level) for photons in (None, 1e5) for level in (-0.01, 0.01)],
)
def test_a_background_in_air_is_said(tmp_path: Path, photons: float | None, level: float, centre: float) -> None:
    """Flat fields that do not fit, on the side of the object where air is; 30: only on the right."""
    z = _counted(integrals(DEGREES, centre=centre), photons) + level
    text = warned(tmp_path, z, DEGREES)
    assert "air is not 0" in text
    assert "Subtract it" in text
    assert ("at the left" in text) == (centre == 47.5)
    assert "at the right" in text


def test_the_flat_field_that_fits_is_named(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    flat = np.full((2, 1, 96), 100 + 900 * 1.02)
    path = write_dxchange(tmp_path / "a.h5", integrals(DEGREES), DEGREES, data_white=flat)
    (text,) = read_sinogram(path).warnings
    assert "about 1.02 times the light of the scan: give --flat" in text
    assert "or 1000 where all pixels are alike" in text
    scan = read_sinogram(path, flat=1000.0)
    assert scan.warnings == ()
    assert float(scan.sinogram[:, -4:].abs().max()) < 1e-12


@pytest.mark.parametrize(
    "discs",
    [
        [(0.0, 0.0, 60.0, 0.02), *PHANTOM[1:]],
        [(0.0, 0.0, 37.0, 0.02), (0.0, 0.0, 6.0, 0.3)],  # dense and in the middle: constant in all views
        [(0.0, 0.0, 26.0, 0.02)],
        [(0.0, 0.0, 24.2, 0.02), *PHANTOM[1:]],
        [(0.0, 0.0, 2000.0, 0.0002), *PHANTOM[1:]],
    ],
)
@pytest.mark.parametrize("photons", [None, 30.0, 300.0, 1e4])
def test_objects_beyond_the_detector_are_no_background(tmp_path: Path, discs: Any, photons: float | None) -> None:
    """Regions of interest, among them round ones whose values at the edges never change; and counts that are few."""
    for degrees in (DEGREES, FULL):
        for some in (discs, PHANTOM):
            z = _counted(integrals(degrees, discs=some), photons)
            assert "air is not 0" not in warned(tmp_path, z, degrees)


def _counted(z: np.ndarray, photons: float | None) -> np.ndarray:
    """Line integrals of photons that were drawn."""
    if photons is None:
        return z
    counts = np.random.default_rng(0).poisson(photons * np.exp(-z)).clip(0.5)
    return np.asarray(-np.log(counts / photons))


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
