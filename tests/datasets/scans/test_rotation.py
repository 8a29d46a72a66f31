"""The rotation centre of exact scans: backgrounds, noise, dead pixels, axes off centre, objects beyond the detector."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.readers.pictures import DataError
from datasets.scans.detector import without_bad_pixels
from datasets.scans.reading import read_sinogram
from datasets.scans.rotation import (
    CentreEstimate,
    assumed_centre,
    estimate_rotation_centre,
    from_half_turn,
    from_opposite_rays,
    rotation_centre,
)
from datasets.scans.scan import Scan
from recon.commands.reconstruct.tasks.ct_data import CTOptions, read
from recon.operators import FanBeam, RayTransform
from tests.datasets.scans.disc_scans import BODY, HOLE, INSERT, Disc, dxchange, half_turn, sinogram

PHANTOM = (BODY, INSERT, HOLE)
LARGE = [Disc(1.6 * d.down, 1.6 * d.right, 1.6 * d.radius, d.value) for d in PHANTOM]


def _scan(values: np.ndarray, angles: np.ndarray) -> Scan:
    return Scan(torch.from_numpy(values), torch.from_numpy(angles), 0.5)


def _found(values: np.ndarray, angles: np.ndarray) -> CentreEstimate:
    return rotation_centre(_scan(values, angles))


@pytest.mark.parametrize("centre", [47.5, 41.5, 44.1, 51.25])
@pytest.mark.parametrize("background", ["none", "constant", "slope"])
@pytest.mark.parametrize("arc", [math.pi, 1.4 * math.pi, 2 * math.pi])
def test_backgrounds(centre: float, background: str, arc: float) -> None:
    """Flat fields that are too high add a background, which pulls the centre of mass to the middle."""
    added = {"none": 0.0, "constant": 0.03, "slope": 0.02 * np.arange(96) / 96}[background]
    angles = np.arange(60) * arc / 60
    found = _found(sinogram(angles, PHANTOM, centre=centre) + added, angles)
    assert found.centre == pytest.approx(centre, abs=0.05)
    assert found.doubt is None


@pytest.mark.parametrize("slope", [-0.1, -0.05, -0.03, 0.03, 0.05, 0.1])
@pytest.mark.parametrize("centre", [47.5, 42.5, 40.5, 39.0, 36.0])
@pytest.mark.parametrize("turns", [0.5, 1.0])
def test_backgrounds_that_slope_with_the_object_at_the_end(slope: float, centre: float, turns: float) -> None:
    """No air is left on one side, nor known on the other, to measure the background: it must not matter."""
    angles = np.arange(90) * 2 * math.pi * turns / 90
    for line in (np.linspace(0, slope, 96), np.linspace(-slope / 2, slope / 2, 96)):
        found = _found(sinogram(angles, PHANTOM, centre=centre) + line, angles)
        assert found.centre == pytest.approx(centre, abs=0.1)


@pytest.mark.parametrize("photons", [1e3, 1e4, 1e5])
def test_noise(photons: float) -> None:
    rng = np.random.default_rng(0)
    z = sinogram(half_turn(90), PHANTOM, centre=43.3)
    found = _found(-np.log(rng.poisson(photons * np.exp(-z)) / photons), half_turn(90))
    assert abs(found.centre - 43.3) < max(0.1, 4 * found.uncertainty)
    assert found.uncertainty < 0.25


@pytest.mark.parametrize("columns", [(40,), (20, 21), (70,), (12, 47)])
def test_dead_pixels(columns: tuple[int, ...]) -> None:
    z = sinogram(half_turn(60), PHANTOM, centre=44.1)
    z[:, columns] = 11.8
    weights = torch.ones(z.shape, dtype=torch.float64)
    weights[:, list(columns)] = 0
    scan = without_bad_pixels(replace(_scan(z, half_turn(60)), weights=weights))
    assert rotation_centre(scan).centre == pytest.approx(44.1, abs=0.1)


@pytest.mark.parametrize("centre", [4.0, 12.0, 30.0, 91.0])
def test_half_acquisition(centre: float) -> None:
    angles = np.arange(180) * math.pi / 90
    assert _found(sinogram(angles, PHANTOM, centre=centre), angles).centre == pytest.approx(centre, abs=0.1)


@pytest.mark.parametrize("turns", [0.5, 1.0])
def test_objects_beyond_the_detector(turns: float) -> None:
    angles = np.arange(180) * 2 * math.pi * turns / 180
    for discs in (LARGE, [*PHANTOM, Disc(2, -24, 4, 0.03)]):
        assert _found(sinogram(angles, discs, centre=45.2), angles).centre == pytest.approx(45.2, abs=0.1)


def test_methods_agree() -> None:
    """Half turns and opposite rays each find the centre alone."""
    z = sinogram(half_turn(90), PHANTOM, centre=44.1)
    half = from_half_turn(z, half_turn(90))
    angles = np.arange(90) * math.pi / 45
    full = from_opposite_rays(sinogram(angles, PHANTOM, centre=44.1), angles)
    assert half is not None
    assert half.centre == pytest.approx(44.1, abs=0.1)
    assert full is not None
    assert full.centre == pytest.approx(44.1, abs=0.1)


def test_fan_beam() -> None:
    """Opposite rays of a full turn, projected by the operator."""
    angles = tuple(np.arange(180) * math.pi / 90)
    beam = FanBeam((64, 64), 0.5, angles, 96, 0.75, detector_offset=2.1, source_distance=80.0, detector_distance=50.0)
    x = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    x[..., 12:40, 20:52], x[..., 20:30, 25:34] = 0.02, 0.05
    y = RayTransform(beam, cache=False)(x)[0, 0]
    scan = Scan(y, torch.tensor(angles), 0.75, source_distance=80.0, detector_distance=50.0)
    assert rotation_centre(scan).centre == pytest.approx(47.5 - 2.1 / 0.75, abs=0.1)
    with pytest.raises(DataError, match="full turn only; give rotation_centre"):
        rotation_centre(scan.select(slice(0, 120)))


def test_doubts_and_refusals() -> None:
    """What does not determine a centre is refused, and what does poorly is said."""
    z = sinogram(half_turn(90), PHANTOM, centre=44.1)
    assert "degrees only" in str(_found(z[:60], half_turn(90)[:60]).doubt)
    assert _found(z[::30], half_turn(90)[::30]).doubt is not None
    with pytest.raises(DataError, match="2 views do not determine"):
        _found(z[:2], half_turn(90)[:2])
    half = sinogram(half_turn(90), LARGE, centre=-0.0)
    with pytest.raises(DataError, match=r"leaves the field of view.*give rotation_centre"):
        _found(half[:45], half_turn(90)[:45])
    with pytest.raises(DataError, match="give rotation_centre"):
        _found(np.random.default_rng(0).random((60, 96)), half_turn(60))


def test_assumed_centres() -> None:
    """Files that do not tell have the axis in the middle; where data show another, that is said."""
    z = sinogram(half_turn(60), PHANTOM, centre=41.5)
    (text,) = assumed_centre(_scan(z, half_turn(60)))
    assert "41.5" in text
    assert "--rotation-centre" in text
    assert assumed_centre(_scan(sinogram(half_turn(60), PHANTOM), half_turn(60))) == ()
    assert assumed_centre(_scan(z[:20], half_turn(60)[:20])) == ()


def test_commands_report_centre_and_doubt(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    z = sinogram(half_turn(60), PHANTOM, centre=41.5)
    dxchange(tmp_path / "a.h5", z, flat=60600.0)
    made = read(tmp_path / "a.h5", CTOptions())
    entry = made.origin.details["rotation_centre"]
    assert isinstance(entry, dict)
    assert entry["estimated"]
    assert entry["method"]
    assert entry["detector_pixel"] == pytest.approx(41.5, abs=0.05)
    dxchange(tmp_path / "b.h5", z[::20])
    said = read(tmp_path / "b.h5", CTOptions()).origin.warnings
    assert any("doubtful" in text and "--rotation-centre" in text for text in said)
    np.savez(tmp_path / "c.npz", sinogram=z, angles=half_turn(60), detector_spacing=0.5)
    assert any("pixel 41.5" in text for text in read(tmp_path / "c.npz", CTOptions()).origin.warnings)


def test_tooth(shared_data: Path) -> None:
    """tomopy's documentation has the centre of this scan at 296."""
    centre = estimate_rotation_centre(read_sinogram(shared_data / "tomopy_tooth" / "tooth.h5"))
    assert centre == pytest.approx(296, abs=0.5)
