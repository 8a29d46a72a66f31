from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from recon.operators.tomography.ramp import FILTERS, RampFilter, ramp_kernel


def band_limited(lag: int, spacing: float, shape: object = None, cutoff: float = 1.0) -> float:
    """The integral of |f| W(f) cos(2 pi f lag d) over |f| <= cutoff / (2 d), by the midpoint rule."""
    count = 200_000
    ratio = (np.arange(count) + 0.5) / count
    highest = cutoff / (2 * spacing)
    weights = np.ones(count) if shape is None else shape(ratio)  # type: ignore[operator]
    return float(
        2 * highest * np.mean(highest * ratio * weights * np.cos(2 * math.pi * highest * ratio * lag * spacing))
    )


@pytest.mark.parametrize("spacing", [1.0, 0.35])
def test_kernel_is_the_band_limited_ramp(spacing: float) -> None:
    kernel = ramp_kernel(12, spacing)
    assert kernel[0] == pytest.approx(1 / (4 * spacing**2))
    assert (kernel[2::2] == 0).all()
    np.testing.assert_allclose(kernel, [band_limited(k, spacing) for k in range(12)], atol=1e-9)


WINDOWS = {
    "ram-lak": np.ones_like,
    "shepp-logan": lambda r: np.sinc(r / 2),
    "cosine": lambda r: np.cos(math.pi * r / 2),
    "hamming": lambda r: 0.54 + 0.46 * np.cos(math.pi * r),
    "hann": lambda r: 0.5 + 0.5 * np.cos(math.pi * r),
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("cutoff", [1.0, 0.7])
@pytest.mark.parametrize("pixels", [20, 33])
def test_filters_are_the_linear_convolution_with_their_kernels(name: str, cutoff: float, pixels: int) -> None:
    """The response to an impulse is the kernel at all lags of a row, without any of its repetitions."""
    spacing = 0.8
    impulses = torch.eye(pixels, dtype=torch.float64)
    found = RampFilter(pixels, spacing, name, cutoff, padding=True)(impulses)
    taps = np.array([band_limited(k, spacing, WINDOWS[name], cutoff) for k in range(pixels)])
    expected = spacing * taps[np.abs(np.subtract.outer(np.arange(pixels), np.arange(pixels)))]
    # the window is sampled at 8 times as many frequencies as the rows have
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4 / spacing)


def test_hann_averages_neighbouring_taps() -> None:
    pixels = 64
    impulse = torch.zeros(pixels, dtype=torch.float64)
    impulse[pixels // 2] = 1.0
    sharp = RampFilter(pixels, 1.0, "ram-lak", 1.0, padding=True)(impulse)
    smooth = RampFilter(pixels, 1.0, "hann", 1.0, padding=True)(impulse)
    expected = 0.25 * sharp[:-2] + 0.5 * sharp[1:-1] + 0.25 * sharp[2:]
    torch.testing.assert_close(smooth[1:-1], expected, atol=1e-12, rtol=0)


def test_rows_of_any_length_and_precision() -> None:
    rows = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    for padding in (True, False):
        sharp = RampFilter(7, 1.0, "ram-lak", 1.0, padding)
        assert sharp(rows).shape == rows.shape
        torch.testing.assert_close(sharp(rows), sharp(rows.double()).float(), atol=1e-6, rtol=1e-5)
    assert float(RampFilter(1, 2.0, "hann", 1.0, True)(torch.ones(1, 1)).item()) > 0


@pytest.mark.parametrize(("name", "cutoff"), [("ram-lak", 1.0), ("hann", 1.0), ("hamming", 0.8)])
@pytest.mark.parametrize("pixels", [20, 33])
def test_the_ramp_in_frequency_is_that_of_odl(name: str, cutoff: float, pixels: int) -> None:
    """What older networks were trained on. The arc is half a turn, by which ODL scales."""
    from odl.applications.tomo.analytic.filtered_back_projection import fbp_filter_op
    from odl.applications.tomo.geometry.parallel import Parallel2dGeometry
    from odl.applications.tomo.operators.ray_trafo import RayTransform as ODLRayTransform
    from odl.core.discr import uniform_discr, uniform_partition

    class NoProjector:
        def call_forward(self, *_: object, **__: object) -> None: ...

        call_backward = call_forward

    spacing = 1.3
    detector = uniform_partition(-0.5 * pixels * spacing, 0.5 * pixels * spacing, pixels)
    geometry = Parallel2dGeometry(uniform_partition(0, math.pi, 5), detector)
    space = uniform_discr([-1, -1], [1, 1], (3, 3), dtype="float64")
    operator = fbp_filter_op(ODLRayTransform(space, geometry, impl=NoProjector), True, name.title(), cutoff)
    rows = np.random.default_rng(0).normal(size=(5, pixels))
    expected = np.array(operator(rows).data)
    found = RampFilter(pixels, spacing, name, cutoff, padding=True, ramp="frequency")(torch.from_numpy(rows))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)
