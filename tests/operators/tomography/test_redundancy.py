"""Lines measured twice: a disc with two holes in short scans, on detectors beside the axis, and in irregular views."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from recon.operators.tomography.beams import FanBeam, Geometry, ParallelBeam
from recon.operators.tomography.fbp import FilteredBackProjection
from recon.operators.tomography.redundancy import redundancy_weights
from tests.operators.tomography.scans import chords

SIZE = (96, 96)
DISCS = [((0.0, 0.0), 20.0, 0.020), ((-8.0, 10.0), 4.0, 0.020), ((9.0, -6.0), 3.0, -0.015)]  # mm, mm, 1/mm
REGIONS = [((-2.0, -8.0), 3.0, 0.020), ((-8.0, 10.0), 2.0, 0.040), ((9.0, -6.0), 1.5, 0.005), ((-15.0, -17.0), 1.0, 0)]


def parallel(degrees: float, offset: float = 0.0, views: int = 240) -> Geometry:
    """The detector has 48 mm: the disc needs 40."""
    arc = math.radians(degrees)
    return ParallelBeam.equispaced(
        SIZE, 0.5, views, arc=arc, detector_pixels=96, detector_spacing=0.5, detector_offset=offset
    )


def fan(degrees: float, offset: float = 0.0, views: int = 240, start: float = 0.4) -> Geometry:
    """Fan angles up to 16 degrees, where the disc needs 11.6."""
    detector = {"detector_pixels": 110, "detector_spacing": 0.8, "detector_offset": offset}
    distances = {"source_distance": 100.0, "detector_distance": 50.0}
    return FanBeam.equispaced(SIZE, 0.5, views, start=start, arc=math.radians(degrees), **detector, **distances)


def irregular(geometry: Geometry, seed: int, jitter: float = 0.9) -> Geometry:
    """The same arc in steps of 0.1 to 1.9 times the mean one."""
    rng = np.random.default_rng(seed)
    angles = np.asarray(geometry.angles)
    return replace(geometry, angles=tuple(angles + rng.uniform(0, jitter, len(angles)) * (angles[1] - angles[0])))


def golden(geometry: Geometry, turns: float) -> Geometry:
    """Views in golden-angle order over several turns, sorted."""
    angles = np.arange(len(geometry.angles)) * math.pi * (3 - math.sqrt(5))
    return replace(geometry, angles=tuple(np.sort(angles % (turns * 2 * math.pi))))


def opposite(geometry: Geometry) -> Geometry:
    """The scan turning the other way, as docs/geometry.md has it: angles negated and reversed."""
    return replace(geometry, angles=tuple(-a for a in reversed(geometry.angles)))


def reconstruction(geometry: Geometry) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    data = sum(chords(geometry, *disc) for disc in DISCS)
    assert isinstance(data, torch.Tensor)
    x, y = np.meshgrid(*geometry.pixel_positions(), indexing="ij")
    return FilteredBackProjection(geometry)(data)[0, 0].numpy(), x, y


SCANS: dict[str, Geometry] = {
    "parallel, 200 degrees": parallel(200),
    "parallel, 300 degrees": parallel(300),
    "parallel, 358 degrees": parallel(358),
    "parallel, turn": parallel(360),
    "parallel, turn, quarter offset": parallel(360, 0.125),
    **{f"parallel, turn, {o:+g} mm": parallel(360, o) for o in (4.0, -11.3, 20.0, -21.75)},
    "parallel, turn, +21.75 mm, opposite": opposite(parallel(360, 21.75)),
    "parallel, turn, +15 mm, irregular": irregular(parallel(360, 15.0, 360), 1),
    "parallel, turn, -20 mm, golden": golden(parallel(360, -20.0), 1),
    "parallel, half turn, golden": golden(parallel(180), 0.5),
    "fan, 200 degrees": fan(200),  # less than pi plus the whole fan, more than pi plus the disc's
    "fan, 212 degrees": fan(212.5),
    "fan, 240 degrees": fan(240),
    "fan, 300 degrees": fan(300),
    "fan, 240 degrees, irregular": irregular(fan(240, views=360), 2),
    "fan, 230 degrees, opposite": opposite(fan(230)),
    "fan, turn": fan(360),
    **{f"fan, turn, {o:+g} mm": fan(360, o) for o in (5.0, -14.0, 30.0, -40.0)},
    "fan, turn, +25 mm, opposite": opposite(fan(360, 25.0)),
    "fan, turn, -30 mm, irregular": irregular(fan(360, -30.0, 360), 3),
    "fan, 300 degrees, +10 mm": fan(300, 10.0),
}


@pytest.mark.parametrize("name", SCANS)
def test_everything_counts_once(name: str) -> None:
    found, x, y = reconstruction(SCANS[name])
    for (row, column), radius, value in REGIONS:
        mean = float(found[(x - row) ** 2 + (y - column) ** 2 <= radius**2].mean())
        assert mean == pytest.approx(value, abs=0.02 * 0.02), (row, column)
    distance = np.hypot(x, y)
    body = (distance < 18) & (np.hypot(x + 8, y - 10) > 6) & (np.hypot(x - 9, y + 6) > 5)
    assert float(found[body].std()) <= 0.025 * 0.02
    assert abs(float(found[distance > 22].mean())) <= 0.005 * 0.02


@pytest.mark.parametrize("offset", [0.0, 0.25, 4.0, -11.25, 20.0, -23.5])
def test_weights_of_each_line_add_up_to_one(offset: float) -> None:
    """Opposite views of a parallel turn see the same lines in pixels that mirror each other about the axis."""
    geometry = parallel(360, offset)
    weights, positions = redundancy_weights(geometry), geometry.detector_positions()
    half = len(weights) // 2
    for k, s in enumerate(positions):
        mirrored = np.flatnonzero(np.abs(positions + s) < 1e-9)
        others = weights[:, mirrored].sum(1)  # none, or one
        np.testing.assert_allclose(weights[:, k] + np.roll(others, half), 1.0, atol=1e-12)


def test_weights_of_each_line_add_up_to_one_in_short_scans() -> None:
    geometry = parallel(270, 0.0)
    weights = redundancy_weights(geometry)
    half = round(180 / 270 * len(weights))
    np.testing.assert_allclose(weights[:-half] + weights[half:, ::-1], 1.0, atol=1e-9)
    np.testing.assert_allclose(weights[len(weights) - half : half], 1.0, atol=1e-12)


def test_limited_angles_keep_what_they_measured() -> None:
    for geometry in (parallel(180), parallel(120), parallel(180, 9.0), fan(120), fan(90, 20.0)):
        np.testing.assert_array_equal(redundancy_weights(geometry), 1.0)


def test_a_centred_turn_has_one_half() -> None:
    for geometry in (parallel(360), fan(360), irregular(fan(360, views=100), 4)):
        np.testing.assert_allclose(redundancy_weights(geometry), 0.5, atol=1e-12)


def test_an_axis_beside_the_detector_leaves_nothing_twice() -> None:
    np.testing.assert_array_equal(redundancy_weights(parallel(360, 30.0)), 1.0)


def test_both_sides_and_both_directions_are_mirror_images() -> None:
    """Turning the picture upside down (x to -x) exchanges s with -s and phi with -phi."""
    for geometry in (parallel(360, 17.0), fan(360, 21.0), fan(240, 0.0), fan(300, -9.0)):
        mirrored = replace(opposite(geometry), detector_offset=-geometry.detector_offset)
        expected = redundancy_weights(geometry)[::-1, ::-1]
        np.testing.assert_allclose(redundancy_weights(mirrored), expected, atol=1e-12)


def test_noise_of_a_slightly_displaced_detector_hardly_grows() -> None:
    noise = torch.randn(1, 1, 240, 110, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    centred, beside = (float(FilteredBackProjection(fan(360, o))(noise).std()) for o in (0.0, 4.0))
    assert beside <= 1.15 * centred
