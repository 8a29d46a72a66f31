"""Filtered back-projection: seconds and Hounsfield units against ASTRA's FBP on the CPU, in one run.

A water disc with exact line integrals; 96, 256 and 512 pixels, twice as many views, one image, float32. HU are the
means within the disc (0) and around it (-1000). ASTRA has an FBP on the CPU for parallel beams only, with
the projectors `linear` (Joseph) and `line`; fan beams are compared with the parallel one of the same size. ASTRA takes
one core: run this with `--threads 1`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import arguments, interleaved, print_table, start, write_csv
from recon.operators import FanBeam, FilteredBackProjection, Geometry, ParallelBeam
from recon.operators.tomography.matrix.build import import_astra

WATER = 0.02  # 1/mm
FIELD, RADIUS = 256.0, 80.0  # mm


def main() -> None:
    parser = arguments(__doc__)
    args = parser.parse_args()
    start(args)
    rows = [row for size in ((48,) if args.quick else (96, 256, 512)) for row in size_rows(size, args.quick)]
    print_table("filtered back-projection of a water disc", rows)
    write_csv(args.output / "fbp.csv", rows)


def size_rows(size: int, quick: bool) -> list[dict[str, Any]]:
    pixel, shape = FIELD / size, (size, size)
    scans: dict[str, Geometry] = {
        "parallel": ParallelBeam.equispaced(shape, pixel, 2 * size),
        "fan": FanBeam.equispaced(shape, pixel, 2 * size, source_distance=500.0, detector_distance=300.0),
    }
    data = {kind: torch.from_numpy(disc(geometry))[None, None].float() for kind, geometry in scans.items()}
    ours = {kind: FilteredBackProjection(geometry) for kind, geometry in scans.items()}
    calls: dict[str, Callable[[], Any]] = {
        f"ASTRA, parallel, {projector}": astra_fbp(scans["parallel"], data["parallel"], projector)
        for projector in ("linear", "line")
    }
    calls |= {f"this, {kind}": lambda kind=kind: ours[kind](data[kind])[0, 0].numpy() for kind in scans}  # type: ignore[misc]
    timings = interleaved(calls, repeats=3 if quick else 7)
    base = timings["ASTRA, parallel, linear"].minimum
    rows = []
    for name, timing in timings.items():
        water, air = hounsfield(calls[name](), pixel)
        rows.append(
            {
                "size": size,
                "views": 2 * size,
                "method": name,
                "ms": 1e3 * timing.minimum,
                "median": 1e3 * timing.median,
                "this / ASTRA, linear": timing.minimum / base,
                "water [HU]": water,
                "air + 1000 [HU]": air,
            }
        )
    return rows


def disc(geometry: Geometry) -> NDArray[np.float64]:
    """Exact line integrals of the disc, which lies on the axis: all views are equal."""
    s = geometry.detector_positions()
    distance = s
    if isinstance(geometry, FanBeam):
        length = geometry.source_distance + geometry.detector_distance
        distance = s * geometry.source_distance / np.hypot(s, length)
    chord = 2 * WATER * np.sqrt(np.maximum(RADIUS**2 - distance**2, 0.0))
    return np.broadcast_to(chord, geometry.range_shape[1:]).copy()


def hounsfield(image: NDArray[np.float32], pixel: float) -> tuple[float, float]:
    """Mean HU well within the disc, and (plus 1000) in the ring around it."""
    axis = (np.arange(len(image)) - (len(image) - 1) / 2) * pixel
    r = np.hypot(axis[:, None], axis[None])
    inside, outside = image[r < 0.875 * RADIUS].mean(), image[(r > 1.125 * RADIUS) & (r < 1.5 * RADIUS)].mean()
    return 1000 * (float(inside) / WATER - 1), 1000 * float(outside) / WATER


def astra_fbp(geometry: Geometry, data: torch.Tensor, projector: str) -> Callable[[], NDArray[np.float32]]:
    """ASTRA's FBP, which counts lengths in pixels: its values are divided by the pixel's size."""
    astra = import_astra()
    _, spacing, _ = geometry.across()
    pixel = geometry.pixel_size[0]
    beams = astra.create_proj_geom("parallel", spacing / pixel, geometry.detector_pixels, np.asarray(geometry.angles))
    box = astra.create_vol_geom(*geometry.image_shape)
    image = astra.data2d.create("-vol", box)
    config = astra.astra_dict("FBP")
    config["ProjectorId"] = astra.create_projector(projector, beams, box)
    config["ProjectionDataId"] = astra.data2d.create("-sino", beams, data[0, 0].numpy())
    config["ReconstructionDataId"] = image
    algorithm = astra.algorithm.create(config)

    def call() -> NDArray[np.float32]:
        astra.algorithm.run(algorithm)
        found: NDArray[np.float32] = astra.data2d.get(image) / pixel
        return found

    return call


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
