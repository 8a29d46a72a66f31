"""How many defects of detector pixels are found, and how many pixels without one are taken for bad ones.

On scans that no threshold of ``datasets.scans.detector`` was chosen on: thoraces of random ellipses (lungs, heart,
spine, ribs, vessels), parallel and fan, and, where ``RECON_DATA`` or ../shared/data has it, rows of a real synchrotron
scan of a tooth. One pixel of each scan gets one defect; amplitudes are relative to the largest line integral.

    python -m benchmarks.bad_pixels --scans 40 --seed 1
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from datasets.scans.detector import without_bad_pixels
from datasets.scans.reading import read_sinogram
from datasets.scans.scan import Distances, Scan

Array = NDArray[np.float64]
Defect = Callable[[Array, float, np.random.Generator], Array]

PIXELS, PITCH, SOURCE, DISTANCE = 256, 2.0, 570.0, 470.0
PHOTONS = (2e3, 2e4, 2e5)


def offset(amplitude: float) -> Defect:
    """A constant is added: a flat field that changed."""
    return lambda z, height, rng: z + rng.choice([-1, 1]) * amplitude * height


def drift(amplitude: float) -> Defect:
    """What is added grows from 0 in proportion to the view."""
    return lambda z, height, rng: z + rng.choice([-1, 1]) * amplitude * height * np.linspace(0, 1, len(z))


def wander(amplitude: float) -> Defect:
    """What is added is a random walk that ends at about the amplitude."""
    return lambda z, height, rng: z + amplitude * height * np.cumsum(rng.standard_normal(len(z))) / math.sqrt(len(z))


DEFECTS: dict[str, Defect] = {
    "dead": lambda z, height, rng: np.full_like(z, 11.8),
    "stuck": lambda z, height, rng: np.full_like(z, rng.uniform(0, height)),
    "noisy 0.3": lambda z, height, rng: z + 0.3 * height * rng.standard_normal(len(z)),
    "dying at half": lambda z, height, rng: np.where(np.arange(len(z)) < len(z) // 2, z, 11.8),
    **{f"drift to {a:g}": drift(a) for a in (0.05, 0.1, 0.2, 0.5)},
    **{f"random walk to {a:g}": wander(a) for a in (0.1, 0.5)},
    **{f"offset {a:g}": offset(a) for a in (0.02, 0.05, 0.1, 0.2)},
}


def thorax(rng: np.random.Generator) -> list[tuple[float, float, float, float, float, float]]:
    """Ellipses: centre down and right, half axes (mm), angle, attenuation that is added (1/mm)."""

    def about(value: float) -> float:
        return float(value * rng.uniform(0.85, 1.15))

    parts = [(0.0, 0.0, about(105), about(150), 0.0, 0.020)]
    parts += [
        (about(-10), side * about(70), about(75), about(48), side * rng.uniform(0, 0.3), -0.015) for side in (-1, 1)
    ]
    parts += [
        (about(10), about(25), about(45), about(38), rng.uniform(0, 1), 0.006),
        (about(70), 0, 22, 18, 0.0, 0.018),
    ]
    for k in range(16):  # ribs
        phi = 2 * math.pi * (k + rng.uniform(-0.3, 0.3)) / 16
        parts.append((92 * math.cos(phi), 135 * math.sin(phi), rng.uniform(3, 6), rng.uniform(8, 14), -phi, 0.02))
    for _ in range(30):  # vessels
        parts.append((*rng.uniform(-60, 60, 1), *rng.uniform(-100, 100, 1), *rng.uniform(1, 5, 2), 0.0, 0.012))
    return [tuple(float(v) for v in p) for p in parts]  # type: ignore[misc]


def line_integrals(parts: list[tuple[float, float, float, float, float, float]], normals: Array, s: Array) -> Array:
    """Of the rays {x: x · (cos n, sin n) = s}: 2 v a b sqrt(w^2 - t^2) / w^2.

    Here w^2 = a^2 cos^2 + b^2 sin^2 of n - angle, and t is the distance of the ray to the centre.
    """
    values = np.zeros(np.broadcast(normals, s).shape)
    for down, right, a, b, angle, value in parts:
        t = s - down * np.cos(normals) - right * np.sin(normals)
        square = (a * np.cos(normals - angle)) ** 2 + (b * np.sin(normals - angle)) ** 2
        values += 2 * value * a * b * np.sqrt(np.maximum(square - t**2, 0)) / square
    return values


def simulated(kind: str, rng: np.random.Generator) -> Scan:
    """A noisy scan: "parallel" over half a turn, "fan" over a full one; centre and number of views are random."""
    views = int(rng.choice([90, 180, 360]))
    centre = (PIXELS - 1) / 2 + rng.uniform(-6, 6)
    k = np.arange(PIXELS) - centre
    if kind == "parallel":
        angles, distances = np.arange(views) * math.pi / views, None
        normals, s = angles[:, None], (1.4 * k)[None]
        spacing = 1.4
    else:
        angles, distances = np.arange(views) * 2 * math.pi / views, Distances(SOURCE, DISTANCE)
        spacing = PITCH * 1.4
        gamma = np.arctan(k * spacing / (SOURCE + DISTANCE))
        normals, s = angles[:, None] + gamma[None], SOURCE * np.sin(gamma)[None]
    z = line_integrals(thorax(rng), normals, s)
    n0 = float(rng.choice(PHOTONS))
    z = -np.log(rng.poisson(n0 * np.exp(-z)).clip(0.5) / n0)
    return Scan(torch.from_numpy(z), torch.from_numpy(angles), spacing, distances)


def measured() -> Iterator[Scan]:
    """The rows of the tooth, every second view of half a turn."""
    folder = Path(os.environ.get("RECON_DATA", Path(__file__).parents[2] / "shared" / "data"))
    file = folder / "tomopy_tooth" / "tooth.h5"
    for row in (0, 1) if file.is_file() else ():
        scan = read_sinogram(file, row=row)
        yield replace(scan.select(slice(None, None, 2)), weights=None, warnings=())


def bad_pixels(scan: Scan) -> list[int]:
    """The columns that are taken for bad."""
    return list(without_bad_pixels(scan).metadata.get("bad_pixels", ()))


def rates(scans: list[Scan], rng: np.random.Generator) -> dict[str, tuple[int, int, int]]:
    """By defect: scans in which it was found, all of them, and other pixels than it that were taken for bad."""
    alarms = [len(bad_pixels(scan)) for scan in scans]
    found = {"none": (0, len(scans), sum(alarms))}
    for name, defect in DEFECTS.items():
        hits = others = 0
        for scan in scans:
            z = scan.sinogram.numpy().copy()
            seen = np.flatnonzero(z.mean(0) > 0.2 * z.mean(0).max())
            column = int(rng.choice(seen))
            z[:, column] = defect(z[:, column], float(np.quantile(z, 0.998)), rng)
            bad = bad_pixels(replace(scan, sinogram=torch.from_numpy(z)))
            hits += column in bad
            others += len([k for k in bad if k != column])
        found[name] = (hits, len(scans), others)
    return found


def main() -> None:
    """Print a table for each kind of scan."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, default=40, help="of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    kinds = {kind: [simulated(kind, rng) for _ in range(args.scans)] for kind in ("parallel", "fan")}
    tooth = list(measured())
    kinds["tooth"] = tooth * (max(1, args.scans // len(tooth)) if tooth else 0)
    for kind, scans in kinds.items():
        if not scans:
            continue
        pixels = sum(scan.sinogram.shape[1] for scan in scans)
        print(f"\n{kind}: {len(scans)} scans, {pixels} pixels\n{'defect':20} found          other pixels taken for bad")
        for name, (hits, total, others) in rates(scans, rng).items():
            print(f"{name:20} {'' if name == 'none' else f'{hits:4} of {total:4}':15} {others:5}")


if __name__ == "__main__":
    main()
