"""Images beside the rotation axis, and scikit-image's, whose axis is in pixel n // 2."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from recon.operators import FanBeam, FilteredBackProjection, ParallelBeam, RayTransform, geometry_from_dict
from recon.operators.tomography.beams import Geometry, geometry_to_dict
from recon.operators.tomography.matrix.build import astra_vectors
from recon.operators.tomography.matrix.memory import estimate_entries
from tests.operators.tomography.scans import ALL, chords, disc, relative

OFFSET = (2.4, -1.7)  # mm
BASES: dict[str, Geometry] = {
    "parallel": ParallelBeam.equispaced((40, 32), (0.5, 0.6), 60, detector_offset=0.3),
    "fan": FanBeam.equispaced((40, 32), 0.5, 90, source_distance=60.0, detector_distance=30.0),
}


@pytest.mark.parametrize("name", BASES)
def test_projection_and_reconstruction_of_a_disc(name: str) -> None:
    """A disc at (4, 2) mm is at (4, 2) - OFFSET from the centre of the image; the sinogram knows the axis only."""
    pytest.importorskip("astra", reason="needs the extra ct")
    geometry = replace(BASES[name], image_offset=OFFSET, detector_pixels=90)
    data = chords(geometry, (4.0, 2.0), 4.0, 0.02)
    image = disc(geometry, (4.0 - OFFSET[0], 2.0 - OFFSET[1]), 4.0, 0.02)
    operator = RayTransform(geometry, cache=False)
    assert relative(operator(image), data) <= 0.05
    assert operator.mismatch() <= 1e-12
    matrix = operator.projector_matrix.matrix
    assert len(matrix.stored.values) <= 1.02 * estimate_entries(geometry)[matrix.folding.rows].sum() + 1
    found = FilteredBackProjection(geometry)(data)
    inside = disc(geometry, (4.0 - OFFSET[0], 2.0 - OFFSET[1]), 3.0, 1.0) > 0.99
    assert float(found[inside].mean()) == pytest.approx(0.02, rel=0.01)
    with pytest.raises(ValueError, match="image_offset"):
        RayTransform(replace(geometry, detector_offset=0.0, pixel_size=0.5), "odl")


@pytest.mark.parametrize("name", ALL)
def test_zero_changes_nothing(name: str) -> None:
    """Files, keys of caches and vectors of centred images are what they were."""
    geometry = ALL[name]
    assert "image_offset" not in geometry.to_dict()
    assert "image_offset" not in geometry_to_dict(geometry)
    zero = replace(geometry, image_offset=0.0)
    assert zero == geometry
    assert zero.radius == pytest.approx(0.5 * math.hypot(*np.multiply(geometry.image_shape, geometry.pixel_size)))
    np.testing.assert_array_equal(astra_vectors(zero), astra_vectors(geometry))


def test_survives_a_file() -> None:
    geometry = replace(BASES["fan"], image_offset=OFFSET)
    for values in (geometry.to_dict(), geometry_to_dict(geometry)):
        assert geometry_from_dict(values) == geometry
    assert geometry.select([0, 3]).image_offset == OFFSET
    with pytest.raises(ValueError, match="image_offset must be 2 finite numbers"):
        replace(geometry, image_offset=(math.nan, 1.0))


def test_the_source_stays_outside_an_image_beside_the_axis() -> None:
    with pytest.raises(ValueError, match="the source must stay outside"):
        replace(BASES["fan"], image_offset=(55.0, 0.0))


def phantom(size: int) -> NDArray[np.float64]:
    data, transform = pytest.importorskip("skimage.data"), pytest.importorskip("skimage.transform")
    resized: NDArray[np.float64] = transform.resize(data.shepp_logan_phantom(), (size, size), anti_aliasing=True)
    return resized


@pytest.mark.parametrize("size", [64, 65])
@pytest.mark.parametrize("circle", [True, False])
def test_sinograms_of_skimage(size: int, circle: bool) -> None:
    """A x is radon's sinogram, and FBP is as good as its iradon."""
    pytest.importorskip("astra", reason="needs the extra ct")
    image, transform = phantom(size), pytest.importorskip("skimage.transform")
    theta = np.linspace(0, 180, 90, endpoint=False)
    sinogram = transform.radon(image, theta, circle=circle)
    theirs = transform.iradon(sinogram, theta, circle=circle, output_size=size)
    pixel = 0.7
    geometry = ParallelBeam.skimage((size, size), theta, len(sinogram), pixel)
    values = {
        "type": "parallel",
        "convention": "skimage",
        "image_shape": [size, size],
        "pixel_size": pixel,
        "angles_degrees": {"start": 0, "arc": 180, "views": 90},
        "detector_pixels": len(sinogram),
        "detector_spacing": pixel,
    }
    described = geometry_from_dict(values)
    assert replace(described, angles=geometry.angles) == geometry
    np.testing.assert_allclose(described.angles, geometry.angles, atol=1e-12)
    y = torch.from_numpy(sinogram.T.copy())[None, None] * pixel
    x = torch.from_numpy(image)[None, None]
    assert relative(RayTransform(geometry, cache=False)(x), y) <= 0.01
    found = FilteredBackProjection(described)(y)[0, 0].numpy()
    # both are linear interpolation of data filtered with the ramp in space
    assert psnr(found, image) == pytest.approx(psnr(theirs, image), abs=0.2)


def psnr(found: NDArray[np.float64], image: NDArray[np.float64]) -> float:
    return float(-10 * np.log10(np.mean((found - image) ** 2)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"convention": "matlab"}, "convention must be skimage, or left out, got 'matlab'"),
        ({"type": "fan", "source_distance": 90, "detector_distance": 9}, "is for parallel beams, got fan"),
        ({"rotation_centre": 4}, "leave out detector_offset"),
        ({"image_offset": [0.5, 0]}, "leave out image_offset"),
    ],
)
def test_conventions_that_make_no_sense(change: dict[str, object], message: str) -> None:
    values = {"type": "parallel", "convention": "skimage", "image_shape": [8, 8], "pixel_size": 1.0}
    values |= {"angles": [0.0, 1.0], "detector_pixels": 8, "detector_spacing": 1.0}
    with pytest.raises(ValueError, match=message):
        geometry_from_dict(values | change)
