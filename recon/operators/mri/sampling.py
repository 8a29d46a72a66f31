"""Sampling masks for Cartesian MRI: which points of the k-space grid are measured.

A mask is a boolean tensor ``(height, width)`` with the zero frequency at ``(height // 2, width // 2)``. The
acceleration is the number of grid points for each sampled one. Masks of lines sample whole columns: the phase encoding
runs along the last axis, the readout along the first. Masks are functions of their arguments alone, seed included.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from recon.errors import at_least

Pattern = Literal["random_lines", "equispaced", "radial", "poisson_disc"]

# Increment of the angle between spokes, pi / golden ratio: any number of them covers the circle evenly (Winkelmann,
# Schaeffter, Koehler, Eggers, Doessel 2007, An optimal radial profile order, IEEE Trans. Med. Imaging 26).
_GOLDEN_ANGLE = math.pi * (math.sqrt(5) - 1) / 2

# Radii grow in proportion to the distance from the centre plus this: in the centre they must not vanish.
_RADIUS_OFFSET = 0.15


def random_lines(shape: tuple[int, int], acceleration: float, calibration: int | None = None, seed: int = 0) -> Tensor:
    """The ``calibration`` columns in the centre, and others drawn without replacement with equal probability.

    Exactly ``round(width / acceleration)`` columns are sampled. (Cartesian masks as in fastMRI: Zbontar et al. 2018,
    arXiv:1811.08839, section 4.3, there with a random number of columns.)

    Parameters
    ----------
    shape
        ``(height, width)`` of k-space.
    acceleration
        at least 1.
    calibration
        fully sampled central columns; None is ``0.32 width / acceleration``, rounded: fastMRI's 8 % for fourfold and 4
        % for eightfold acceleration.
    seed
        at least 0.

    Raises
    ------
    ValueError
        an argument is out of its range, or the centre alone is more than may be sampled.
    """
    lines, centre = _count_lines(shape, acceleration, calibration)
    outer = np.flatnonzero(~centre)
    centre[_generator(seed).choice(outer, lines - int(centre.sum()), replace=False)] = True
    return _columns(centre, shape)


def equispaced(shape: tuple[int, int], acceleration: float, calibration: int | None = None, seed: int = 0) -> Tensor:
    """The ``calibration`` columns in the centre, and others at equal distances up to rounding, from a random offset.

    Exactly ``round(width / acceleration)`` columns are sampled: those outside of the centre are further apart than
    ``acceleration``, as the centre has more than its share. Arguments and errors as :func:`random_lines`.
    """
    lines, columns = _count_lines(shape, acceleration, calibration)
    outer = np.flatnonzero(~columns)
    count = lines - int(columns.sum())
    if count:
        # distances are in columns outside of the centre, so that both sides get their share
        chosen = np.floor((np.arange(count) + _generator(seed).random()) * (len(outer) / count)).astype(int)
        columns[outer[np.minimum(chosen, len(outer) - 1)]] = True
    return _columns(columns, shape)


def radial(shape: tuple[int, int], acceleration: float, calibration: int | None = None, seed: int = 0) -> Tensor:
    """Spokes through the centre at multiples of the golden angle, rounded to the grid, from a random first angle.

    There are as many spokes as bring the number of samples closest to ``height * width / acceleration``: it differs by
    less than ``max(height, width)`` samples, the longest spoke.

    Parameters
    ----------
    shape
        ``(height, width)`` of k-space.
    acceleration
        at least 1, at most what a single spoke (with the central square) gives.
    calibration
        side of a fully sampled central square; None is 1, the zero frequency that all spokes share.
    seed
        at least 0.

    Raises
    ------
    ValueError
        an argument is out of its range, or one spoke and the centre are more than may be sampled.
    """
    target = _count_points(shape, acceleration)
    mask = _square(shape, 1 if calibration is None else calibration)
    _check_centre(int(mask.sum()), "samples", target, acceleration, shape)
    angle = math.pi * _generator(seed).random()
    for spokes in range(64 * max(shape)):
        before, count = mask.copy(), int(mask.sum())
        mask[_spoke(shape, angle + spokes * _GOLDEN_ANGLE)] = True
        new = int(mask.sum())
        if spokes == 0 and new > target:
            raise ValueError(
                f"one spoke and the centre have {new} samples, but acceleration {acceleration:g} of "
                f"{shape[0]}x{shape[1]} leaves {target}; lower calibration or acceleration"
            )
        if new >= target:
            return torch.from_numpy(before if target - count < new - target else mask)
    # so close to acceleration 1 the spokes repeat themselves before all corners are filled
    missing = np.flatnonzero(~mask)
    mask.flat[_generator(seed).choice(missing, target - int(mask.sum()), replace=False)] = True
    return torch.from_numpy(mask)


def poisson_disc(shape: tuple[int, int], acceleration: float, calibration: int | None = None, seed: int = 0) -> Tensor:
    """Points with no other within a radius that grows from the centre outwards, besides a full central square.

    Every grid point k has a random position p(k) in its cell; rho is its distance from the centre relative to the half
    sides (1 in the middle of an edge). Outside of the square, any two samples j, k satisfy
    ``|p(j) - p(k)| >= min(r(j), r(k))``, ``r = slope (rho + 0.15)``, hence ``|j - k| > min(r(j), r(k)) - sqrt(2)``:
    positions on the grid itself would make rings, where r passes one of its few distances. The slope is found by
    bisection, points come in random order, and surplus ones are removed: exactly ``round(height * width /
    acceleration)`` points are sampled. (Vasanawala, Murphy, Alley, Lai, Keutzer, Pauly, Lustig 2011, Practical parallel
    imaging compressed sensing MRI: summary of two years of experience in accelerating body MRI of pediatric patients.)

    Parameters
    ----------
    shape
        ``(height, width)`` of k-space.
    acceleration
        at least 1.
    calibration
        side of the fully sampled central square; None is 16, or less where this would be more than a quarter of the
        samples.
    seed
        at least 0.

    Raises
    ------
    ValueError
        an argument is out of its range, or the centre alone is more than may be sampled.
    """
    target = _count_points(shape, acceleration)
    if calibration is None:
        calibration = max(1, min(16, *shape, math.isqrt(target // 4)))
    centre = _square(shape, calibration)
    _check_centre(int(centre.sum()), "samples", target, acceleration, shape)
    generator = _generator(seed)
    order = generator.permutation(shape[0] * shape[1])
    jitter = generator.random((2, *shape)) - 0.5
    low, high = 0.0, float(10 * max(shape))
    best = np.ones(shape, dtype=bool)
    for _ in range(16):
        slope = (low + high) / 2
        mask = _throw_darts(slope, order, jitter, centre)
        if int(mask.sum()) >= target:
            low, best = slope, mask
        else:
            high = slope
    surplus = generator.choice(np.flatnonzero(best & ~centre), int(best.sum()) - target, replace=False)
    best.flat[surplus] = False
    return torch.from_numpy(best)


#: The masks by name, all with the arguments (shape, acceleration, calibration, seed).
PATTERNS: dict[Pattern, Callable[[tuple[int, int], float, int | None, int], Tensor]] = {
    "random_lines": random_lines,
    "equispaced": equispaced,
    "radial": radial,
    "poisson_disc": poisson_disc,
}


def _generator(seed: int) -> np.random.Generator:
    at_least(0, seed=seed)
    return np.random.default_rng(seed)


def _check(shape: tuple[int, int], acceleration: float) -> None:
    if len(shape) != 2 or any(n < 1 for n in shape):
        raise ValueError(f"shape is {tuple(shape)}; expected (height, width), both at least 1")
    if not (math.isfinite(acceleration) and acceleration >= 1):
        raise ValueError(f"acceleration is {acceleration}; it must be finite and at least 1")


def _count_points(shape: tuple[int, int], acceleration: float) -> int:
    _check(shape, acceleration)
    points = round(shape[0] * shape[1] / acceleration)
    if points < 1:
        raise ValueError(
            f"acceleration is {acceleration}, but k-space has {shape[0]}x{shape[1]} points: none would be sampled"
        )
    return points


def _count_lines(shape: tuple[int, int], acceleration: float, calibration: int | None) -> tuple[int, np.ndarray]:
    """Return the number of columns to sample and a boolean vector with those of the centre."""
    _check(shape, acceleration)
    width = shape[1]
    lines = round(width / acceleration)
    if lines < 1:
        raise ValueError(f"acceleration is {acceleration}, but there are {width} columns: none would be sampled")
    if calibration is None:
        calibration = max(1, round(0.32 * width / acceleration))
    if not 1 <= calibration <= width:
        raise ValueError(f"calibration is {calibration}; it must be from 1 to the number of columns, {width}")
    _check_centre(calibration, "columns", lines, acceleration, shape)
    centre = np.zeros(width, dtype=bool)
    centre[central(width, calibration)] = True
    return lines, centre


def _check_centre(centre: int, unit: str, allowed: int, acceleration: float, shape: tuple[int, int]) -> None:
    if centre > allowed:
        raise ValueError(
            f"the fully sampled centre has {centre} {unit}, but acceleration {acceleration:g} of {shape[0]}x{shape[1]} "
            f"leaves {allowed}; lower calibration or acceleration"
        )


def central(n: int, size: int) -> slice:
    """The ``size`` indices around ``n // 2``, which is at ``size // 2`` among them, as in all centred grids here."""
    start = n // 2 - size // 2
    return slice(start, start + size)


def _square(shape: tuple[int, int], side: int) -> np.ndarray:
    if not 1 <= side <= min(shape):
        raise ValueError(f"calibration is {side}; it must be from 1 to the shorter side of k-space, {min(shape)}")
    mask = np.zeros(shape, dtype=bool)
    mask[central(shape[0], side), central(shape[1], side)] = True
    return mask


def _columns(columns: np.ndarray, shape: tuple[int, int]) -> Tensor:
    return torch.from_numpy(np.repeat(columns[None], shape[0], axis=0))


def _spoke(shape: tuple[int, int], angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the grid points on a line through the centre, one for each step along its steeper axis."""
    direction = np.array([math.sin(angle) * shape[0], math.cos(angle) * shape[1]])
    direction /= np.abs(direction).max()
    reach = max(shape)
    points = np.rint(np.arange(-reach, reach + 1)[:, None] * direction).astype(int) + np.array(shape) // 2
    points = points[((points >= 0) & (points < np.array(shape))).all(1)]
    return points[:, 0], points[:, 1]


def _throw_darts(slope: float, order: np.ndarray, jitter: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Take the points in this order, but none whose position is within the radius of one taken before."""
    height, width = centre.shape
    rows = np.arange(height)[:, None] - height // 2 + jitter[0]
    columns = np.arange(width) - width // 2 + jitter[1]
    radius = slope * (np.hypot(rows / max(height / 2, 1), columns / max(width / 2, 1)) + _RADIUS_OFFSET)
    mask, blocked = centre.copy(), centre.copy()
    for i, j in zip(*np.divmod(order, width), strict=True):
        if blocked[i, j]:
            continue
        mask[i, j] = True
        r = radius[i, j]
        reach = math.ceil(r) + 1
        window = np.s_[max(i - reach, 0) : i + reach + 1, max(j - reach, 0) : j + reach + 1]
        down, right = rows[window] - rows[i, j], columns[window] - columns[i, j]
        blocked[window] |= down * down + right * right < r * r
    return mask
