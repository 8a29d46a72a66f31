"""Small scans of every kind, and exact projections of discs, for the tests of computed tomography."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.operators.tomography.beams import FanBeam, Geometry, ParallelBeam

FAN = {"source_distance": 30.0, "detector_distance": 20.0}

# Odd and even sizes, offsets that are no multiples of the spacing, pixels that are not square, part of a turn.
SQUARE: dict[str, Geometry] = {
    "parallel": ParallelBeam.equispaced((12, 12), 1.0, 10),
    "parallel, odd, limited": ParallelBeam.equispaced(
        (13, 17), 0.7, 11, start=0.1, arc=1.3, detector_pixels=25, detector_spacing=0.8
    ),
    "fan": FanBeam.equispaced((12, 12), 1.0, 10, **FAN),
    "fan, odd, offset, limited": FanBeam.equispaced(
        (13, 17), 0.7, 11, start=-0.3, arc=2.0, detector_pixels=25, detector_spacing=1.3, detector_offset=1.37, **FAN
    ),
}
OBLONG: dict[str, Geometry] = {
    "parallel, offset": ParallelBeam.equispaced((13, 12), 0.7, 10, start=0.05, detector_offset=0.61),
    "parallel, oblong": ParallelBeam.equispaced((13, 8), (0.7, 1.3), 9, start=0.05, detector_offset=-0.4),
    "fan, oblong": FanBeam.equispaced((8, 15), (1.1, 0.6), 9, start=0.2, detector_offset=0.9, **FAN),
}
ALL = SQUARE | OBLONG


def disc(geometry: Geometry, centre: tuple[float, float], radius: float, value: float, fine: int = 15) -> Tensor:
    """Return the image ``(1, 1, H, W)`` of a disc (mm), each pixel the mean over ``fine**2`` points; float64."""
    axes = []
    for count, size in zip(geometry.image_shape, geometry.pixel_size, strict=True):
        axes.append((np.arange(count * fine) - (count * fine - 1) / 2) * size / fine)
    inside = (axes[0][:, None] - centre[0]) ** 2 + (axes[1][None] - centre[1]) ** 2 <= radius**2
    height, width = geometry.image_shape
    means = inside.reshape(height, fine, width, fine).mean((1, 3))
    return torch.from_numpy(value * means)[None, None]


def chords(geometry: Geometry, centre: tuple[float, float], radius: float, value: float) -> Tensor:
    """Return the exact line integrals ``2 value sqrt(radius^2 - distance^2)``, ``(1, 1, angles, detectors)``.

    The distance of the ray to the centre comes from the coordinates in the documentation, written out here once more
    and not taken from ``Geometry.rays``.
    """
    phi = np.asarray(geometry.angles)[:, None]
    x, y = centre
    across, along = x * np.cos(phi) + y * np.sin(phi), -x * np.sin(phi) + y * np.cos(phi)
    n = geometry.detector_pixels
    s = (np.arange(n) - (n - 1) / 2) * geometry.detector_spacing + geometry.detector_offset
    distance: NDArray[np.float64] = s - across
    if isinstance(geometry, FanBeam):
        length = geometry.source_distance + geometry.detector_distance
        # from the source, the ray runs (s, length) and the centre lies at (across, source_distance + along)
        distance = (s * (geometry.source_distance + along) - length * across) / np.hypot(s, length)
    chord = 2 * value * np.sqrt(np.maximum(radius**2 - distance**2, 0.0))
    return torch.from_numpy(chord)[None, None]


def relative(found: Tensor, expected: Tensor) -> float:
    """Return ``||found - expected|| / ||expected||``."""
    difference = float((found.double() - expected.double()).norm())
    return difference / float(expected.double().norm()) if math.isfinite(difference) else math.inf
