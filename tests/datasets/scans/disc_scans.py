"""Exact parallel scans of discs, and DXchange files of their counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Disc:
    """Centre in mm, down and to the right of the rotation axis; radius in mm, attenuation in 1/mm."""

    down: float
    right: float
    radius: float
    value: float


BODY, INSERT, HOLE = Disc(0, 0, 20, 0.020), Disc(-8, 10, 4, 0.020), Disc(9, -6, 3, -0.015)


def half_turn(views: int) -> np.ndarray:
    """Angles of equispaced views."""
    return np.arange(views) * np.pi / views


def sinogram(
    angles: np.ndarray, discs: Sequence[Disc], pixels: int = 96, pitch: float = 0.5, centre: float | None = None
) -> np.ndarray:
    """Line integrals 2 v sqrt(r^2 - (s - down cos φ - right sin φ)^2), summed over the discs."""
    s = (np.arange(pixels) - ((pixels - 1) / 2 if centre is None else centre)) * pitch
    values = np.zeros((len(angles), pixels))
    for d in discs:
        middle = d.down * np.cos(angles) + d.right * np.sin(angles)
        values += 2 * d.value * np.sqrt(np.maximum(d.radius**2 - (s - middle[:, None]) ** 2, 0))
    return values


def dxchange(path: Path, z: np.ndarray, bad: Mapping[int, float] | None = None, flat: float = 60000.0) -> None:
    """Counts of line integrals over half a turn, with the count ``bad[column]`` in all views of a column."""
    import h5py

    data = 100 + 60000 * np.exp(-z)
    for column, count in (bad or {}).items():
        data[:, column] = count
    with h5py.File(path, "w") as out:
        out["exchange/data"] = data[:, None]
        out["exchange/data_white"] = np.full((2, 1, z.shape[1]), 100.0 + flat)
        out["exchange/data_dark"] = np.full((2, 1, z.shape[1]), 100.0)
        out["exchange/theta"] = np.arange(len(z)) * 180.0 / len(z)


def means(image: np.ndarray, pixel_size: float = 0.5) -> tuple[float, float, float, float]:
    """Means in the body, the insert, the hole and in air, of a square image around the axis."""
    k = (np.arange(len(image)) - (len(image) - 1) / 2) * pixel_size
    regions = ((-2, -8, 3), (-8, 10, 2), (9, -6, 1.5), (-15, -17, 1))
    made = [image[np.hypot(k[:, None] - down, k - right) <= radius].mean() for down, right, radius in regions]
    return made[0], made[1], made[2], made[3]
