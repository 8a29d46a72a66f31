from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from recon.operators.tomography import fbp
from recon.operators.tomography.beams import ConeBeam, FanBeam, Geometry, ParallelBeam
from recon.operators.tomography.fbp import FILTERS, FilteredBackProjection, back_project
from recon.operators.tomography.redundancy import redundancy_weights
from tests.operators.tomography.scans import chords, disc, relative

SIZE, VALUE = (96, 96), 0.02  # 1/mm: water at 70 keV
CENTRE, RADIUS = (15.0, -22.0), 18.0
FAN = {"source_distance": 200.0, "detector_distance": 120.0}

SCANS: dict[str, Geometry] = {
    "parallel": ParallelBeam.equispaced(SIZE, 1.0, 200),
    "parallel, small pixels": ParallelBeam.equispaced((150, 150), 0.64, 300),
    "parallel, offset": ParallelBeam.equispaced(SIZE, 1.0, 200, start=0.3, detector_offset=7.3),
    "parallel, oblong": ParallelBeam.equispaced((96, 74), (1.0, 1.3), 200, detector_offset=-3.1),
    "parallel, coarse detector": ParallelBeam.equispaced(SIZE, 1.0, 200, detector_spacing=1.6),
    "parallel, full turn": ParallelBeam.equispaced(SIZE, 1.0, 400, arc=2 * math.pi),
    "parallel, 1.4 half turns": ParallelBeam.equispaced(SIZE, 1.0, 280, arc=1.4 * math.pi),
    "fan": FanBeam.equispaced(SIZE, 1.0, 360, **FAN),
    "fan, virtual detector": FanBeam.equispaced(SIZE, 1.0, 360, source_distance=200.0, detector_distance=0.0),
    "fan, wide": FanBeam.equispaced(SIZE, 1.0, 360, source_distance=90.0, detector_distance=50.0),
    "fan, offset": FanBeam.equispaced(SIZE, 1.0, 360, start=-0.2, detector_offset=11.3, **FAN),
    "fan, short scan": FanBeam.equispaced(SIZE, 1.0, 300, arc=1.5 * math.pi, **FAN),
    "fan, short scan, offset": FanBeam.equispaced(
        SIZE, 1.0, 300, start=2.0, arc=1.6 * math.pi, detector_offset=-9, **FAN
    ),
}


def inside(geometry: Geometry, margin: float = 3.0) -> torch.Tensor:
    """The pixels well within the disc: the edge rings."""
    return disc(geometry, CENTRE, RADIUS - margin, 1.0, fine=3) > 0.99


@pytest.mark.parametrize("name", SCANS)
def test_attenuation_of_a_disc_in_physical_units(name: str) -> None:
    geometry = SCANS[name]
    found = FilteredBackProjection(geometry)(chords(geometry, CENTRE, RADIUS, VALUE))
    true = disc(geometry, CENTRE, RADIUS, VALUE, fine=5)
    values = found[inside(geometry)]
    assert float(values.mean()) == pytest.approx(VALUE, rel=0.01)
    assert float(values.std()) <= 0.01 * VALUE
    outside = found[disc(geometry, CENTRE, RADIUS + 3.0, 1.0, fine=3) < 0.01]
    assert abs(float(outside.mean())) <= 0.01 * VALUE
    assert float(outside.std()) <= 0.03 * VALUE
    assert relative(found, true) <= 0.12


@pytest.mark.parametrize("filter_", FILTERS)
@pytest.mark.parametrize("scaling", [0.6, 1.0])
def test_every_filter_keeps_the_value(filter_: str, scaling: float) -> None:
    geometry = SCANS["parallel"]
    found = FilteredBackProjection(geometry, filter_, scaling)(chords(geometry, CENTRE, RADIUS, VALUE))
    assert float(found[inside(geometry, 5.0)].mean()) == pytest.approx(VALUE, rel=0.015)


def test_filters_from_sharp_to_smooth() -> None:
    """The gain for white noise falls along the list, and with the cut-off."""
    geometry = SCANS["parallel"]
    noise = torch.randn(1, *geometry.range_shape, dtype=torch.float64)
    gains = [float(FilteredBackProjection(geometry, name)(noise).norm()) for name in FILTERS]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] > 1.5 * gains[-1]
    assert float(FilteredBackProjection(geometry, frequency_scaling=0.5)(noise).norm()) < 0.6 * gains[0]


def test_agrees_with_odl_where_that_holds() -> None:
    """Centred parallel beam: ODL's fbp_op differs by its back-projector, and a constant of its sampled |f|."""
    pytest.importorskip("astra", reason="needs the extra ct")
    from odl.applications.tomo.analytic.filtered_back_projection import fbp_op
    from odl.applications.tomo.operators.ray_trafo import RayTransform as ODLRayTransform

    geometry = SCANS["parallel, small pixels"]
    data = chords(geometry, CENTRE, RADIUS, VALUE)
    theirs = fbp_op(ODLRayTransform(*geometry.to_odl(), impl="astra_cpu"), filter_type="Hann")(data[0, 0].numpy())
    ours = FilteredBackProjection(geometry, "hann")(data)
    reference = torch.from_numpy(np.array(theirs.data))[None, None].double()
    assert relative(ours, reference) <= 0.02
    pixels = inside(geometry)
    shift = float((ours - reference).mean())
    assert float(ours[pixels].mean()) == pytest.approx(float(reference[pixels].mean()) + shift, rel=1e-3)


def test_a_pixel_of_one_square_millimetre_is_nothing_special() -> None:
    """ODL takes a space whose cells have volume 1 for unweighted, and rescales its filter."""
    for size in (1.0, 1.0 + 1e-6):
        geometry = ParallelBeam.equispaced(SIZE, size, 100)
        found = FilteredBackProjection(geometry)(chords(geometry, CENTRE, RADIUS, VALUE))
        assert float(found[inside(geometry)].mean()) == pytest.approx(VALUE, rel=0.01)


def test_views_need_not_be_equally_spaced() -> None:
    base = SCANS["parallel"]
    angles = np.sort(np.random.default_rng(0).uniform(0, math.pi, 300))
    geometry = replace(base, angles=tuple(angles))
    found = FilteredBackProjection(geometry)(chords(geometry, CENTRE, RADIUS, VALUE))
    assert float(found[inside(geometry)].mean()) == pytest.approx(VALUE, rel=0.02)


def test_a_quarter_turn_adds_up_what_is_there() -> None:
    """The two halves of a scan add up to the whole: nothing is scaled up for what was not measured."""
    geometry = SCANS["parallel"]
    data = chords(geometry, CENTRE, RADIUS, VALUE)
    parts = [list(range(100)), list(range(100, 200))]
    halves = [FilteredBackProjection(geometry.select(views))(data[:, :, views]) for views in parts]
    assert relative(halves[0] + halves[1], FilteredBackProjection(geometry)(data)) <= 1e-9


@pytest.mark.parametrize("name", ["fan, short scan", "fan, short scan, offset", "parallel, 1.4 half turns"])
def test_weights_of_a_line_add_up_to_one(name: str) -> None:
    """Every line is seen again from the other side: (beta, gamma) is the line (beta + pi - 2 gamma, -gamma)."""
    geometry = replace(SCANS[name], detector_offset=0.0)
    weights = redundancy_weights(geometry)
    gamma = np.zeros(geometry.detector_pixels)
    if isinstance(geometry, FanBeam):
        gamma = np.arctan2(geometry.detector_positions(), 320.0)
    beta = np.asarray(geometry.angles)
    total = np.zeros_like(weights)
    for k, fan_angle in enumerate(gamma):
        opposite = len(gamma) - 1 - k
        for turn in (-2, -1, 0, 1):
            seen = beta + math.pi - 2 * fan_angle + 2 * math.pi * turn
            total[:, k] += np.interp(seen, beta, weights[:, opposite], left=0.0, right=0.0)
    np.testing.assert_allclose((weights + total)[5:-5], 1.0, atol=0.01)


def test_batch_dtype_and_padding() -> None:
    geometry = SCANS["fan"]
    data = chords(geometry, CENTRE, RADIUS, VALUE)
    fbp = FilteredBackProjection(geometry)
    both = fbp(torch.cat([data, 2 * data]).float())
    assert both.dtype == torch.float32
    assert relative(both[1:], 2 * fbp(data)) <= 1e-5
    assert fbp(data[:0]).shape == (0, 1, *SIZE)
    unpadded = FilteredBackProjection(geometry, padding=False)(data)
    assert relative(unpadded, fbp(data)) > 1e-3


def test_bad_arguments() -> None:
    geometry = SCANS["parallel"]
    with pytest.raises(ValueError, match="filter is 'ramp', but must be one of ram-lak"):
        FilteredBackProjection(geometry, "ramp")
    for scaling in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="frequency_scaling"):
            FilteredBackProjection(geometry, frequency_scaling=scaling)
    with pytest.raises(ValueError, match=r"expected real data of shape \(batch, 1, 200, 136\), got \(1, 1, 199, 136\)"):
        FilteredBackProjection(geometry)(torch.zeros(1, 1, 199, 136))
    cone = ConeBeam.equispaced((4, 6, 8), 1.0, 5, **FAN, detector_pixels=(7, 9), detector_spacing=2.0)
    with pytest.raises(ValueError, match="serves parallel and fan beams, got cone"):
        FilteredBackProjection(cone)


def test_a_direction_measured_twice_counts_once() -> None:
    """Both ends of a turn are given: the weights of all views are those of the turn without the last one."""
    geometry = SCANS["fan"]
    twice = replace(geometry, angles=(*geometry.angles, geometry.angles[0] + 2 * math.pi))
    assert twice.arc == pytest.approx(2 * math.pi)
    data = torch.randn(1, *geometry.range_shape, dtype=torch.float64)
    found = FilteredBackProjection(twice)(torch.cat([data, data[:, :, :1]], 2))
    assert relative(found, FilteredBackProjection(geometry)(data)) <= 1e-9


@pytest.mark.parametrize("size", [96, 256, 512])
@pytest.mark.parametrize("kind", ["parallel", "fan"])
@pytest.mark.parametrize("filter_", ["ram-lak", "hann"])
def test_water_and_air_in_hounsfield_units(size: int, kind: str, filter_: str) -> None:
    """A water disc of 16 cm: no constant is added, whatever the number of pixels. Within 3 HU."""
    pixel, radius = 256.0 / size, 80.0
    geometry: Geometry = ParallelBeam.equispaced((size, size), pixel, 180)
    if kind == "fan":
        geometry = FanBeam.equispaced((size, size), pixel, 360, source_distance=500.0, detector_distance=300.0)
    # all views of a centred disc are equal
    rows = chords(geometry.select([0]), (0.0, 0.0), radius, VALUE).expand(1, *geometry.range_shape)
    found = FilteredBackProjection(geometry, filter_)(rows.float())[0, 0].double()
    x, y = (torch.from_numpy(axis) for axis in geometry.pixel_positions())
    distance = torch.hypot(x[:, None], y[None])
    assert abs(1000 * (float(found[distance < 70].mean()) / VALUE - 1)) <= 3.0
    assert abs(1000 * float(found[(distance > 90) & (distance < 120)].mean()) / VALUE) <= 3.0


def test_corners_beyond_the_detector_are_empty() -> None:
    """A detector as wide as the image sees the disc, and not the corners of the picture."""
    geometry = ParallelBeam.equispaced((96, 96), 1.0, 200, detector_pixels=96)
    found = FilteredBackProjection(geometry)(chords(geometry, (0.0, 0.0), 40.0, VALUE))[0, 0]
    x, y = (torch.from_numpy(axis) for axis in geometry.pixel_positions())
    corners = torch.hypot(x[:, None], y[None]) > 52
    assert float(found[corners].abs().max()) <= 0.03 * VALUE


@pytest.mark.parametrize("name", ["parallel, offset", "fan, short scan, offset"])
def test_back_projection_in_parts_is_that_of_one_pixel_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and views are taken in blocks; numpy's interpolation says what comes out."""
    geometry = SCANS[name].select(slice(0, None, 40))
    rows = torch.randn(2, len(geometry.angles), geometry.detector_pixels, dtype=torch.float64)
    x, y = np.meshgrid(*geometry.pixel_positions(), indexing="ij")
    expected = np.zeros((2, *geometry.image_shape))
    s = geometry.detector_positions()
    spacing = geometry.detector_spacing
    around = np.concatenate([[s[0] - spacing], s, [s[-1] + spacing]])
    for k, angle in enumerate(geometry.angles):
        seen, gain = x * math.cos(angle) + y * math.sin(angle), 1.0
        if isinstance(geometry, FanBeam):
            away = geometry.source_distance - x * math.sin(angle) + y * math.cos(angle)
            seen, gain = seen * 320.0 / away, (geometry.source_distance / away) ** 2
        for image, row in zip(expected, rows[:, k].numpy(), strict=True):
            image += gain * np.interp(seen, around, np.concatenate([[0.0], row, [0.0]]), left=0.0, right=0.0)
    for block in (100, 96 * 96 * 3, 1 << 16):
        monkeypatch.setattr("recon.operators.tomography.fbp._BLOCK", block)
        torch.testing.assert_close(back_project(geometry, rows)[:, 0], torch.from_numpy(expected))


@pytest.mark.parametrize("name", ["parallel", "fan"])
def test_weights_of_interpolation_are_computed_once_for_a_scan(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every precision; and each time where they take more than is kept, with the same result."""
    geometry = SCANS[name]
    calls = count_positions(monkeypatch)
    invert = FilteredBackProjection(geometry)
    y = torch.rand(2, *geometry.range_shape)
    with torch.inference_mode():
        first = invert(y)
    once = len(calls)
    torch.testing.assert_close(invert(y), first, rtol=0, atol=0)
    torch.testing.assert_close(pickle.loads(pickle.dumps(invert))(y), first, rtol=0, atol=0)
    assert len(calls) == 2 * once  # the unpickled one, once more
    monkeypatch.setattr(fbp, "_KEPT_BYTES", 1000)
    torch.testing.assert_close(FilteredBackProjection(geometry)(y), first, rtol=0, atol=0)
    torch.testing.assert_close(invert(y.double()).float(), first, rtol=1e-3, atol=1e-3 * float(first.abs().max()))
    torch.testing.assert_close(invert(y), first, rtol=0, atol=0)
    assert len(calls) == 4 * once


def count_positions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows whenever positions of a block are computed."""
    calls: list[int] = []
    compute = fbp._positions

    def counted(*args: object) -> object:
        calls.append(1)
        return compute(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(fbp, "_positions", counted)
    return calls
