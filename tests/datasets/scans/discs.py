"""Scans of discs whose line integrals are known in closed form, and the files that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

#: discs (x down, y to the right, radius in mm, attenuation added in 1/mm): body 0.020, insert 0.040, hole 0.005
PHANTOM = ((0.0, 0.0, 20.0, 0.020), (-8.0, 10.0, 4.0, 0.020), (9.0, -6.0, 3.0, -0.015))
#: regions (x, y, radius) of body, insert, hole and air, and their attenuation
REGIONS = ((-2.0, -8.0, 3.0), (-8.0, 10.0, 2.0), (9.0, -6.0, 1.5), (-15.0, -17.0, 1.0))
VALUES = (0.020, 0.040, 0.005, 0.0)


def integrals(
    degrees: np.ndarray, pixels: int = 96, pitch: float = 0.5, centre: float | None = None, discs: Any = PHANTOM
) -> np.ndarray:
    """Chords of discs, 2 µ sqrt(r^2 - t^2), of parallel rays, (angles, pixels); the axis is at pixel ``centre``."""
    angles = np.deg2rad(degrees)[:, None]
    s = (np.arange(pixels) - ((pixels - 1) / 2 if centre is None else centre)) * pitch
    z = np.zeros((len(degrees), pixels))
    for x, y, radius, value in discs:
        t = s - (x * np.cos(angles) + y * np.sin(angles))
        z += 2 * value * np.sqrt(np.clip(radius**2 - t**2, 0, None))
    return z


def in_regions(image: np.ndarray, pixel_size: float) -> np.ndarray:
    """Means over ``REGIONS`` of a picture centred at the axis."""
    x, y = ((np.arange(n) - (n - 1) / 2) * pixel_size for n in image.shape)
    inside = [(x[:, None] - a) ** 2 + (y[None] - b) ** 2 <= r**2 for a, b, r in REGIONS]
    return np.array([image[part].mean() for part in inside])


def write_exchange(path: Path, frames: Mapping[str, Any]) -> Path:
    """The datasets of a DXchange file; None leaves out."""
    import h5py

    with h5py.File(path, "w") as file:
        for key, value in frames.items():
            if value is not None:
                file[f"exchange/{key}"] = value
    return path


def write_dxchange(path: Path, z: np.ndarray, theta: np.ndarray | None, **changes: Any) -> Path:
    """Counts 100 + 900 exp(-z) in DXchange with their flat (1000) and dark (100) frames; None leaves out."""
    frame = np.ones((2, 1, z.shape[1]))
    made = {
        "data": (100 + 900 * np.exp(-z))[:, None],
        "data_white": 1000 * frame,
        "data_dark": 100 * frame,
        "theta": theta,
    }
    return write_exchange(path, made | changes)
