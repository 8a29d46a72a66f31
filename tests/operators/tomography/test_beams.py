from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from recon.operators.tomography.beams import (
    ConeBeam,
    FanBeam,
    Geometry,
    ParallelBeam,
    geometry_from_dict,
    offset_from_rotation_centre,
)
from tests.operators.tomography.scans import ALL, FAN, SQUARE

CONE = ConeBeam.equispaced((4, 6, 8), (2.0, 1.0, 0.5), 5, **FAN, detector_pixels=(7, 9), detector_spacing=(2.0, 1.5))
PARALLEL = {"image_shape": [8, 9], "pixel_size": 0.5, "detector_pixels": 12, "detector_spacing": 0.5}


@pytest.mark.parametrize("geometry", [*ALL.values(), CONE])
def test_survives_json_and_yaml(geometry: Geometry) -> None:
    assert geometry_from_dict(json.loads(json.dumps(geometry.to_dict()))) == geometry
    assert geometry_from_dict(yaml.safe_load(yaml.safe_dump(geometry.to_dict()))) == geometry
    assert hash(geometry_from_dict(geometry.to_dict())) == hash(geometry)


def test_is_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SQUARE["fan"].angles = ()  # type: ignore[misc]


def test_shapes_and_canonical_types() -> None:
    geometry = ParallelBeam(np.array([8, 9]), 0.5, np.linspace(0, 1, 5), np.int64(12), 0.5)  # type: ignore[arg-type]
    assert geometry.pixel_size == (0.5, 0.5)
    assert geometry.domain_shape == (1, 8, 9)
    assert geometry.range_shape == (1, 5, 12)
    assert type(geometry.detector_pixels) is int
    assert CONE.domain_shape == (4, 6, 8)
    assert CONE.range_shape == (7, 5, 9)
    assert CONE.detector_offset == (0.0, 0.0)


@pytest.mark.parametrize("name", ALL)
def test_the_detector_covers_the_image_unless_given(name: str) -> None:
    kind = type(ALL[name])
    more = FAN if kind is FanBeam else {}
    geometry = kind.equispaced((7, 12), (0.8, 0.5), 40, detector_offset=0.7, **more)  # type: ignore[attr-defined]
    e_s, e_t = geometry.frames()
    corners = np.array([[a * 2.8, b * 3.0] for a in (-1, 1) for b in (-1, 1)])
    s, t = corners @ e_s.T, corners @ e_t.T
    if kind is FanBeam:
        s = 50.0 * s / (30.0 + t)
    positions = geometry.detector_positions()
    assert positions[0] - geometry.detector_spacing / 2 <= s.min()
    assert positions[-1] + geometry.detector_spacing / 2 >= s.max()


def test_rotation_centre_in_pixels() -> None:
    """The axis projects to s = 0; that must be the detector pixel that was named."""
    values = PARALLEL | {"type": "parallel", "angles": [0.0, 1.0], "rotation_centre": 4.25}
    geometry = geometry_from_dict(values)
    assert np.interp(0.0, geometry.detector_positions(), np.arange(12)) == pytest.approx(4.25)
    assert offset_from_rotation_centre(5.5, 12, 0.5) == 0.0


def test_rays_pass_source_and_detector() -> None:
    geometry = SQUARE["fan, odd, offset, limited"]
    points, directions = geometry.rays()
    assert np.linalg.norm(directions, axis=-1) == pytest.approx(1.0)
    e_s, e_t = geometry.frames()
    for view in (0, 7):
        np.testing.assert_allclose(points[view], np.broadcast_to(-30.0 * e_t[view], (25, 2)))
        pixel = 20.0 * e_t[view] + geometry.detector_positions()[:, None] * e_s[view]
        way = pixel - points[view]
        np.testing.assert_allclose(way / np.linalg.norm(way, axis=1, keepdims=True), directions[view], atol=1e-14)


@pytest.mark.parametrize("name", ALL)
def test_odl_has_the_same_rays(name: str) -> None:
    """Also offsets of parallel detectors: ODL's geometry knows them, only its CPU projector does not."""
    geometry = ALL[name]
    space, odl_geometry = geometry.to_odl()
    assert space.shape == geometry.image_shape
    np.testing.assert_allclose(space.cell_sides, geometry.pixel_size)
    np.testing.assert_allclose(odl_geometry.angles, geometry.angles)
    points, directions = geometry.rays()
    positions = geometry.detector_positions()
    np.testing.assert_allclose(odl_geometry.det_partition.coord_vectors[0], positions, atol=1e-12)
    for view in (0, len(geometry.angles) - 1):
        for pixel in (0, len(positions) - 1):
            angle, s = geometry.angles[view], positions[pixel]
            on_detector = odl_geometry.det_point_position(angle, s)
            to_source = odl_geometry.det_to_src(angle, s)
            np.testing.assert_allclose(-to_source, directions[view, pixel], atol=1e-12)
            offset = on_detector - points[view, pixel]
            assert abs(offset[0] * to_source[1] - offset[1] * to_source[0]) < 1e-10


def test_odl_knows_the_cone_beam() -> None:
    space, odl_geometry = CONE.to_odl()
    assert space.shape == (6, 8, 4)
    assert odl_geometry.det_partition.shape == (9, 7)
    np.testing.assert_allclose(odl_geometry.src_position(0.0), [0, -30, 0], atol=1e-12)
    np.testing.assert_allclose(odl_geometry.det_refpoint(0.0), [0, 20, 0], atol=1e-12)
    np.testing.assert_allclose(odl_geometry.det_axes(0.0), [[1, 0, 0], [0, 0, 1]], atol=1e-12)


def test_parts_of_a_scan() -> None:
    geometry = ParallelBeam.equispaced((8, 8), 1.0, 12)
    assert geometry.sparse_view(5).angles == tuple(geometry.angles[::5])
    limited = geometry.limited_angle(0.5, 1.5)
    assert all(0.5 <= angle < 1.5 for angle in limited.angles)
    assert limited.angles == geometry.select(geometry.views_between(0.5, 1.5)).angles
    assert len(limited.angles) == 4
    assert geometry.arc == pytest.approx(math.pi)
    with pytest.raises(ValueError, match="non-empty"):
        geometry.limited_angle(4.0, 5.0)
    with pytest.raises(ValueError, match="out of range: there are 12"):
        geometry.select([3, 12])
    with pytest.raises(ValueError, match="step is 0, but must be at least 1"):
        geometry.sparse_view(0)


@given(st.lists(st.floats(0, 6.28), min_size=2, max_size=20, unique=True))
def test_view_widths_fill_the_arc(angles: list[float]) -> None:
    geometry = ParallelBeam((4, 4), 1.0, tuple(sorted(angles)), 5, 1.0)
    widths = geometry.view_widths
    assert (widths > 0).all()
    start, stop = geometry.ends
    assert start <= geometry.angles[0] < geometry.angles[-1] <= stop
    assert stop - start == pytest.approx(geometry.arc)
    assert widths.sum() == pytest.approx(geometry.arc)


@pytest.mark.parametrize(
    ("angles", "message"),
    [
        ([0, 30, 60], "radians.*degrees.*numpy.deg2rad"),
        ([100.0], "radians"),
        ([-20.0, -19.0], "radians"),
        ([0.0, 1.0, 1.0], "angle 1 is 1 and angle 2 is 1"),
        ([0.0, 2.0, 1.0], "increase strictly, but angle 1 is 2 and angle 2 is 1"),
        ([2.0, 1.0, 0.0], r"decrease: turn them round.*sinogram.flip\(-2\)"),
        ([], "non-empty"),
        ([0.0, math.nan], "finite"),
        ([[0.0, 1.0]], "non-empty list"),
        ("north", "must be numbers in radians"),
    ],
)
def test_angles_that_make_no_sense(angles: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParallelBeam((8, 8), 1.0, angles, 12, 1.0)  # type: ignore[arg-type]


def test_a_full_turn_with_both_ends_is_fine() -> None:
    angles = np.deg2rad(np.arange(0, 360.5, 0.5))
    assert len(FanBeam((8, 8), 1.0, tuple(angles), 12, 1.0, 0.0, 30.0, 20.0).angles) == 721


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_shape": (8,)}, "image_shape must be 2 positive whole numbers"),
        ({"image_shape": (8, 0)}, "image_shape"),
        ({"image_shape": 8}, "image_shape"),
        ({"image_shape": (8, 8.5)}, "image_shape"),
        ({"pixel_size": (1.0, -1.0)}, "pixel_size must be 2 positive numbers"),
        ({"pixel_size": "1 mm"}, "pixel_size"),
        ({"detector_pixels": 0}, "detector_pixels"),
        ({"detector_pixels": (3, 4)}, "detector_pixels"),
        ({"detector_spacing": math.inf}, "detector_spacing"),
        ({"detector_offset": math.nan}, "detector_offset must be 1 finite number"),
        ({"source_distance": 5.0}, "must stay outside the image"),
        ({"source_distance": math.inf}, "source_distance"),
        ({"detector_distance": -1.0}, "detector_distance"),
    ],
)
def test_sizes_that_make_no_sense(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SQUARE["fan"], **change)  # type: ignore[arg-type]


def test_from_a_file() -> None:
    text = """
    type: fan
    image_shape: [8, 9]
    pixel_size: 0.5
    angles_degrees: {arc: 360, views: 4}
    detector_pixels: 12
    detector_spacing: 1.0
    source_distance: 30
    detector_distance: 20
    """
    geometry = geometry_from_dict(yaml.safe_load(text))
    assert isinstance(geometry, FanBeam)
    assert geometry.angles == pytest.approx((0, math.pi / 2, math.pi, 3 * math.pi / 2))
    listed = geometry_from_dict({**yaml.safe_load(text), "angles_degrees": [0, 90, 180, 270]})
    assert listed.angles == pytest.approx(geometry.angles)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "helix"}, "type must be one of parallel, fan, cone, got 'helix'"),
        ({"angel": 1}, "parallel geometry has no angel; valid are image_shape, pixel_size"),
        ({"pixel_size": None}, "pixel_size must be"),
        ({"angles_degrees": [0]}, "either angles or angles_degrees"),
        ({"angles": {"arc": 3.0}}, "angles must be a list or have the keys start, arc, views"),
        ({"angles": {"arc": 3.0, "views": 1.5}}, r"angles.views must be 1 positive whole number"),
        ({"angles": "all"}, "angles must be a list of numbers"),
        ({"rotation_centre": 3, "detector_offset": 1.0}, "give one of them"),
        ({"rotation_centre": "left"}, "rotation_centre must be"),
    ],
)
def test_files_that_make_no_sense(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        geometry_from_dict({"type": "parallel", "angles": [0.0, 1.0]} | PARALLEL | change)


def test_missing_keys_are_named() -> None:
    with pytest.raises(ValueError, match="fan geometry lacks angles, source_distance, detector_distance"):
        geometry_from_dict({"type": "fan"} | PARALLEL)
    with pytest.raises(ValueError, match="a geometry is a mapping"):
        geometry_from_dict([1, 2])  # type: ignore[arg-type]


@pytest.mark.parametrize("beam", ["parallel", "fan"])
def test_detectors_that_are_none_are_refused(beam: str) -> None:
    """And not taken for `not given`."""

    def make(**options: float) -> Geometry:
        if beam == "fan":
            return FanBeam.equispaced((8, 8), 1.0, 5, source_distance=30, detector_distance=9, **options)
        return ParallelBeam.equispaced((8, 8), 1.0, 5, **options)

    for options in ({"detector_pixels": 0}, {"detector_spacing": 0.0}, {"detector_spacing": math.nan}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be 1 positive"):
            make(**options)


def test_half_a_view_is_refused() -> None:
    for views in (2.5, 0, math.nan):
        with pytest.raises(ValueError, match="views must be 1 positive whole number"):
            ParallelBeam.equispaced((8, 8), 1.0, views)  # type: ignore[arg-type]
