"""What a matrix takes of the memory, before it is built."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recon.operators.tomography.beams import Geometry
from recon.operators.tomography.matrix.folding import Folding, fold

PROJECTORS = {"parallel": ("linear", "line", "strip"), "fan": ("line",)}
# of an entry (float32 value and int32 index, in S and in S^T), of a ray (where it is stored) and of a pixel (where each
# motion of the image moves it, there and back)
_ENTRY_BYTES, _RAY_BYTES, _PIXEL_BYTES = 16, 4, 8


def check_projector(geometry: Geometry, projector: str | None) -> str:
    """Return the name of the projector, the default one for None.

    Raises
    ------
    ValueError
        there is none of that name for the geometry.
    """
    valid = PROJECTORS.get(geometry.kind)
    if valid is None:
        raise ValueError(f'there is no matrix for {geometry.kind} beams: use backend="astra_cuda" (a GPU)')
    if projector is not None and projector not in valid:
        raise ValueError(f"projector for {geometry.kind} beams must be one of {', '.join(valid)}, got {projector!r}")
    return projector or valid[0]


def fold_for(geometry: Geometry, projector: str | None = None) -> Folding:
    """Return the folding of the matrix, see :func:`recon.operators.tomography.matrix.folding.fold`."""
    return fold(geometry, line=check_projector(geometry, projector) == "line")


def estimate_entries(geometry: Geometry, projector: str | None = None) -> NDArray[np.float64]:
    """Return about how many entries the row of each ray has, from its length within the image, ``(rays,)``.

    In pixels, a ray that runs ``(l_x, l_y)`` inside the image meets ``2 max(l_x, l_y)`` pixels in Joseph's method and
    ``l_x + l_y`` lines of the grid in the line kernel; a strip of width w covers about ``w |l|`` more.
    """
    projector = check_projector(geometry, projector)
    points, directions = geometry.rays()
    sizes = np.asarray(geometry.pixel_size)
    points, directions = (points - geometry.image_offset) / sizes, directions / sizes
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        half = 0.5 * np.asarray(geometry.image_shape)
        ends = np.stack([(-half - points) / directions, (half - points) / directions])
    # fmin, fmax ignore the NaN of 0/0: a ray along the very edge
    length = np.fmin.reduce(ends.max(0), axis=-1) - np.fmax.reduce(ends.min(0), axis=-1)
    runs = np.abs(directions) * np.maximum(length, 0.0)[..., None]
    if projector == "linear":
        entries = 2 * runs.max(-1)
    else:
        entries = runs.sum(-1) + (length > 0)
        if projector == "strip":
            _, spacing, _ = geometry.across()
            entries += (1 + spacing / min(geometry.pixel_size)) * np.hypot(runs[..., 0], runs[..., 1])
    return np.asarray(entries.reshape(-1))


def check_memory(
    geometry: Geometry,
    projector: str | None = None,
    memory_limit: float | None = None,
    folding: Folding | None = None,
) -> float:
    """Return how many bytes the matrix and its transpose will take.

    Raises
    ------
    ValueError
        more than ``memory_limit``, or than the machine has left, or more entries than int32 can count.
    """
    folding = fold_for(geometry, projector) if folding is None else folding
    entries = int(estimate_entries(geometry, projector)[folding.rows].sum()) + 1
    rays, pixels = math.prod(geometry.range_shape), math.prod(geometry.domain_shape)
    arrays = 4 * (len(folding.rows) + pixels) + _RAY_BYTES * rays + _PIXEL_BYTES * len(folding.motions) * pixels
    needed = float(_ENTRY_BYTES * entries + arrays)
    limit = available_memory() if memory_limit is None else memory_limit
    allowed = "left on this machine" if memory_limit is None else "allowed (memory_limit)"
    if needed > limit or max(entries, rays, pixels) >= 2**31:
        reason = f"{limit / 1e9:.1f} GB are {allowed}" if needed > limit else "the limit is 2^31 entries"
        raise ValueError(
            f"the projector matrix ({describe(geometry, projector or '')}) has about {entries / 1e6:.0f} million "
            f'entries and takes {needed / 1e9:.1f} GB with its transpose; {reason}. Use backend="astra_cuda" (a GPU) '
            'or "odl", fewer views, fewer detector or image pixels, or raise memory_limit'
        )
    return needed


def available_memory() -> float:
    """Return the bytes that this process may still take; infinite where the system does not tell."""
    left = [math.inf]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        left += [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
        group = Path("/sys/fs/cgroup")  # containers
        most = (group / "memory.max").read_text().strip()
        if most != "max":
            left.append(float(most) - float((group / "memory.current").read_text()))
    except (OSError, ValueError, IndexError):
        pass  # no Linux, or no such control group
    return min(left)


def describe(geometry: Geometry, projector: str) -> str:
    """What it is the matrix of."""
    sizes = "x".join(map(str, geometry.image_shape))
    return f"{geometry.kind} {projector} {sizes}, {len(geometry.angles)} views, {geometry.detector_pixels} detectors"
