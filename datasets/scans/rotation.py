"""The rotation centre of a measured scan, found in its data: half turns, opposite rays, centres of mass."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy  # its parts are loaded where they are used
from numpy.typing import NDArray

from datasets.errors import DataError
from datasets.scans.scan import Scan

Array = NDArray[np.float64]

#: estimates that are farther apart than this, in pixels, beyond what their uncertainties explain, contradict each other
_CONTRADICTION = 0.3
#: an uncertainty above this, in pixels, is doubtful
_DOUBTFUL = 0.25
#: fewer views are doubtful
_FEW_VIEWS = 8
#: fewer views do not contradict the middle of the detector
_FEWEST_VIEWS = 16
#: largest energy outside of the double wedge at the centre, relative to that without a common centre
_LARGEST_LEAK = 0.5
#: smallest correlation of opposite rays
_LEAST_CORRELATION = 0.5


@dataclass(frozen=True)
class CentreEstimate:
    """A rotation centre in detector pixels, the method that found it, its uncertainty, and why it is doubtful if so."""

    centre: float
    method: str
    uncertainty: float
    doubt: str | None = None


def estimate_rotation_centre(scan: Scan) -> float:
    """The centre of :func:`rotation_centre` alone."""
    return rotation_centre(scan).centre


def rotation_centre(scan: Scan) -> CentreEstimate:
    """The detector pixel onto which the rotation axis projects, from the data.

    * Parallel scans of about half a turn: the double wedge of :func:`from_half_turn`, or :func:`from_ends` where the
      object reaches beyond the detector.
    * Parallel scans of 3/4 turn and more, fan beams of a full turn: the opposite rays of :func:`from_opposite_rays`.
    * Parallel scans beside air on both sides: the centres of mass of :func:`from_mass`, which have less noise, but say
      nothing where part of the object is outside, or the intensity of the beam changes.

    Of two the one with the smaller uncertainty is returned. It is doubtful where they contradict each other, where the
    uncertainty exceeds a quarter of a pixel, with fewer than 8 views, and over less than half a turn.

    Raises
    ------
    DataError
        fewer than 3 views, a fan beam of less than a full turn, or data that determine no centre.
    """
    y, angles = scan.sinogram.double().numpy(), scan.angles.double().numpy()
    if len(angles) < 3 or y.shape[1] < 8:
        raise DataError(
            f"{scan.path}: {len(angles)} views do not determine a rotation centre with {y.shape[1]} pixels; valid "
            "are 3 or more of 8 pixels or more"
        )
    background = air(y)
    if background is not None:
        y = y - background[0]
    step = float(np.median(np.diff(angles)))
    arc = float(angles[-1] - angles[0]) + step
    if scan.distances is not None:
        if arc < 2 * math.pi - 0.5 * step:
            raise DataError(
                f"{scan.path}: the rotation centre of a fan beam is estimated from a full turn only; "
                "give rotation_centre"
            )
        length = scan.distances.whole / scan.detector_spacing
        found = [from_opposite_rays(y, angles, length)]
    else:
        found = [from_mass(y, angles)]
        if arc >= 1.5 * math.pi:
            found.append(from_opposite_rays(y, angles))
        elif arc >= math.pi - 0.5 * step:
            found.append(from_ends(y, angles) if background is None else from_half_turn(y, angles))
    known = sorted((e for e in found if e is not None), key=lambda e: e.uncertainty)
    if not known:
        raise DataError(
            f"{scan.path}: the rotation centre cannot be estimated: part of the object leaves the field of view, or "
            "views half a turn apart do not agree; give rotation_centre"
        )
    best = known[0]
    doubts = []
    if best.uncertainty > _DOUBTFUL:
        doubts.append(f"its uncertainty is {best.uncertainty:.1f} pixels")
    for other in known[1:]:
        if abs(other.centre - best.centre) > _CONTRADICTION + 4 * math.hypot(best.uncertainty, other.uncertainty):
            doubts.append(f"{other.method} give {other.centre:.2f}")
    if len(angles) < _FEW_VIEWS:
        doubts.append(f"there are {len(angles)} views only")
    if arc < math.pi - 0.5 * step:
        doubts.append(f"the scan spans {math.degrees(arc):.0f} degrees only, so nothing else confirms it")
    return CentreEstimate(best.centre, best.method, best.uncertainty, "; ".join(doubts) or None)


def assumed_centre(scan: Scan) -> tuple[str, ...]:
    """What to say about a parallel scan whose rotation centre is taken as the middle although its data show another."""
    if scan.distances is not None or len(scan.angles) < _FEWEST_VIEWS:
        return ()
    try:
        found = rotation_centre(scan)
    except DataError:
        return ()
    if found.doubt is not None or abs(found.centre - scan.centre) <= 1 + 4 * found.uncertainty:
        return ()
    return (
        f"{scan.path}: its rotation centre is taken as the middle of the detector, pixel {scan.centre:g}, but its data "
        f"show pixel {found.centre:.2f} ({found.method}); give --rotation-centre, a pixel or `estimate`",
    )


def air(sinogram: Array) -> tuple[Array, float] | None:
    """Line integrals of air for each pixel, and their standard error; None if the object reaches the detector's ends.

    A straight line between the medians of the outermost pixels on both sides: 0, unless flat fields do not fit.
    """
    margin = max(2, sinogram.shape[1] // 50)
    height = float(np.quantile(sinogram, 0.998) - np.quantile(sinogram, 0.002))
    sides = sinogram[:, :margin], sinogram[:, -margin:]
    levels, errors = [], []
    for side in sides:
        level = float(np.median(side))
        noise = 1.4826 * float(np.median(np.abs(side - level)))
        if float(np.ptp(np.median(side, 0))) > 0.01 * height + 4 * noise / math.sqrt(len(side)):
            return None  # an object whose edge stays there
        off = float(np.quantile(np.abs(side.mean(1) - level), 0.9))
        if off > 0.03 * height + 3 * noise / math.sqrt(margin):
            return None
        levels.append(level)
        errors.append(1.25 * noise / math.sqrt(side.size))  # 1.25: a median, not a mean
    if abs(levels[1] - levels[0]) > 0.05 * height:
        return None
    ends = 0.5 * (margin - 1), sinogram.shape[1] - 1 - 0.5 * (margin - 1)
    line = levels[0] + (levels[1] - levels[0]) * (np.arange(sinogram.shape[1]) - ends[0]) / (ends[1] - ends[0])
    return line, 0.5 * math.hypot(*errors)


def from_mass(sinogram: Array, angles: Array) -> CentreEstimate | None:
    """From the centres of mass of parallel views: c(φ) = c_0 + a cos φ + b sin φ, and c_0 is the rotation centre.

    Azevedo et al., IEEE Trans. Nucl. Sci. 37, 1990. A background, such as of flat fields that are too high, would pull
    c_0 to the middle of the detector; it is measured beside the object and subtracted. The uncertainty is the standard
    error of the least-squares fit together with that of the background. None where there is no air on both sides of all
    views, or sums of views differ by more than 10 %.
    """
    background = air(sinogram)
    if background is None:
        return None
    values = sinogram - background[0]
    mass = values.sum(1)
    if not (mass.min() > 0 and mass.max() / mass.min() < 1.1):
        return None
    pixels = sinogram.shape[1]
    centres = values @ np.arange(pixels) / mass
    model = np.stack([np.ones_like(angles), np.cos(angles), np.sin(angles)], 1)
    solution = np.linalg.lstsq(model, centres, rcond=None)[0]
    variance = float(np.square(centres - model @ solution).sum()) / max(1, len(angles) - 3)
    error = math.sqrt(variance * float(np.linalg.pinv(model.T @ model)[0, 0]))
    # an error e of the background shifts the centre by e sum_k (k - c_0) / mass, one of its slope by e n^2 / 6 / mass
    shift = pixels * abs((pixels - 1) / 2 - float(solution[0])) + pixels**2 / 6
    return CentreEstimate(
        float(solution[0]), "centres of mass", math.hypot(error, background[1] * shift / float(mass.mean()))
    )


def from_half_turn(sinogram: Array, angles: Array) -> CentreEstimate | None:
    """From half a turn of parallel views, which goes on as its mirror image about the centre.

    With y(φ + π, s) = y(φ, 2c - s), the Fourier transform over a full turn, Y(n, ω), is small outside of the double
    wedge |n| <= R |ω|, where R is the radius of the object (Edholm, Lewitt and Lindholm, Proc. SPIE 671, 1986), and
    only there for the true centre: Vo et al., Opt. Express 22, 19078, 2014. Here the squares are added up, not the
    absolute values:

        E(c) = sum_{|n| > R|ω| + 2} |A_n(ω) + (-1)^n exp(-2iωc) conj(A_{-n}(ω))|^2,
        A_n(ω) = sum_k Δ_k F_k(ω) exp(-inφ_k)

    with the Fourier transforms F_k of the views. It is a trigonometric polynomial in c, so one inverse transform gives
    all centres at distances of 1/8 pixel, and a parabola the rest. A constant background goes on as itself. The
    uncertainty is that of least squares; None where the energy hardly falls at the best centre, or the best is no
    pixel of the detector.
    """
    kept = angles < angles[0] + math.pi - 1e-6
    y, phi = sinogram[kept], angles[kept] - angles[0]
    views, pixels = y.shape
    y = y - np.quantile(y, 0.02)
    ends = np.concatenate([[phi[-1] - math.pi], phi, [math.pi]])
    widths = 0.5 * (ends[2:] - ends[:-2])
    length = 4 * pixels
    n = np.arange(-views, views + 1)
    spectra = np.fft.rfft(widths[:, None] * y, length)
    omega = 2 * math.pi * np.arange(spectra.shape[1]) / length
    a = np.exp(-1j * np.outer(n, phi)) @ spectra
    outside = np.abs(n)[:, None] > 0.5 * pixels * omega + 2
    product = (a * a[::-1] * ((-1.0) ** n)[:, None] * outside).sum(0)
    both = np.where(omega > 0, 2.0, 1.0)  # rfft has the positive frequencies only
    total = 2.0 * float((both * np.square(np.abs(a)) * outside).sum())
    fine = 4 * length
    # position p / 4 is 2c; Re(exp(2iωc) product) over all frequencies
    energy = total + 2.0 * fine * np.fft.irfft(product, fine)[: 8 * (pixels - 1) + 1]
    best = int(energy.argmin())
    if best in (0, len(energy) - 1) or energy[best] > _LARGEST_LEAK * float(np.median(energy)):
        return None
    before, here, after = energy[best - 1 : best + 2]
    bend = before - 2 * here + after
    shift = 0.5 * (before - after) / bend
    count = float((both * outside).sum())
    # 4: padding makes neighbouring frequencies depend on each other, and what is left is no white noise
    error = 4.0 * math.sqrt(max(float(here), 0.0) / count * 2 / (64 * bend))
    return CentreEstimate((best + float(shift)) / 8, "views half a turn apart", error)


def from_ends(sinogram: Array, angles: Array) -> CentreEstimate | None:
    """From the first and the last of parallel views over half a turn: one is the mirror image of the other.

    Where the angle between them is no half turn, one is extrapolated to it, linearly in the angle. It needs the object
    on both sides of the axis only. The uncertainty is the largest difference between extrapolating the first and the
    last, linearly and, with equal steps, quadratically.
    """
    kept = angles < angles[0] + math.pi + 1e-6
    y, phi = sinogram[kept], angles[kept]
    missing = math.pi - (phi[-1] - phi[0])
    after, before = missing / (phi[-1] - phi[-2]), missing / (phi[1] - phi[0])
    last, first = y[-1] + after * (y[-1] - y[-2]), y[0] + before * (y[0] - y[1])
    bend = 0.5 * after * (1 + after) * (y[-1] - 2 * y[-2] + y[-3])
    pairs = ((y[0], last), (first, y[-1]), (y[0], last + bend))
    found = [from_opposite_rays(np.stack(pair), np.array([0.0, math.pi])) for pair in pairs]
    centres = [e.centre for e in found if e is not None]
    if len(centres) < len(pairs):
        return None
    # a tenth of a pixel in any case: two views show no more, sharp edges between pixels
    return CentreEstimate(
        0.5 * (centres[0] + centres[1]), "the first and the last view", max(0.1, float(np.ptp(centres)))
    )


def from_opposite_rays(sinogram: Array, angles: Array, length: float = math.inf) -> CentreEstimate | None:
    """From the rays that were measured twice, in opposite directions: the centre at which they correlate best.

    With γ = atan((k - c) / ``length``), the ray (φ, k) is (φ + π - 2γ, 2c - k) again; ``length`` is the distance from
    source to detector in detector pixels, infinite for parallel beams. The correlation (the partial
    one, so that constant and sloping backgrounds do not matter) is over all rays whose opposite lies on the detector.
    The uncertainty is that of the mean of four, from every fourth view. None without a correlation of 0.5.
    """
    smooth = np.asarray(scipy.ndimage.convolve1d(sinogram, np.array([0.25, 0.5, 0.25]), axis=1, mode="nearest"))
    rays = _Rays(smooth, angles, length)
    pixels = sinogram.shape[1]
    least = max(4.0, 0.03 * pixels)
    grid = np.linspace(least, pixels - 1 - least, max(2, pixels if pixels <= 300 else pixels // 2))
    views = np.arange(0, len(angles), max(1, len(angles) // 24))
    coarse = np.array([rays.correlation(c, views) for c in grid])
    peaks = [k for k in range(len(grid)) if coarse[k] >= max(coarse[max(0, k - 1)], coarse[min(len(grid) - 1, k + 1)])]
    peaks = sorted(peaks, key=lambda k: -coarse[k])[:4]
    spacing = float(grid[1] - grid[0])
    every = max(1, len(angles) // 180)
    found = [(rays.best(grid[k], spacing, np.arange(0, len(angles), every))) for k in peaks]
    if not found or max(r for _, r in found) < _LEAST_CORRELATION:
        return None
    centre = max(found, key=lambda pair: pair[1])[0]
    if not grid[0] - 0.9 * spacing < centre < grid[-1] + 0.9 * spacing:
        return None  # better ones are outside, where hardly any ray has an opposite
    parts = [rays.best(centre, 1.0, np.arange(k * every, len(angles), 4 * every))[0] for k in range(4)]
    return CentreEstimate(centre, "opposite rays", 0.5 * float(np.std(parts, ddof=1)))


def _without(values: Array, direction: Array) -> Array:
    """The part of ``values`` that is orthogonal to ``direction``."""
    square = float(direction @ direction)
    return values - (float(values @ direction) / square if square > 0 else 0.0) * direction


@dataclass(frozen=True)
class _Rays:
    """Interpolates a sinogram at the opposites of its rays."""

    sinogram: Array
    angles: Array
    length: float

    def correlation(self, centre: float, views: NDArray[np.int64]) -> float:
        """Correlation of the rays of ``views`` with their opposites about ``centre``; -1 where nothing can be said.

        It is the partial one, without what is 1 or k - c: a background that slopes is in opposite rays with opposite
        signs, and would move the centre.
        """
        pixels = self.sinogram.shape[1]
        k = np.arange(1, pixels - 1)  # smoothing spoils the outermost
        across = 2 * centre - k
        k, across = (v[(across >= 1) & (across <= pixels - 2)] for v in (k, across))
        turned = self.angles[views, None] + math.pi - 2 * np.arctan((k - centre) / self.length)
        turned = self.angles[0] + np.mod(turned - self.angles[0], 2 * math.pi)
        first = np.concatenate([self.angles, [self.angles[0] + 2 * math.pi]])
        upper = np.clip(np.searchsorted(first, turned, side="right"), 1, len(self.angles))
        gap = first[upper] - first[upper - 1]
        seen = (gap < 3 * np.median(np.diff(self.angles))).ravel()
        share = np.clip((turned - first[upper - 1]) / np.maximum(gap, 1e-12), 0, 1)
        column = np.minimum(across.astype(int), pixels - 2)
        part = across - column
        opposite = (1 - share) * self._row(upper - 1, column, part) + share * self._row(
            upper % len(self.angles), column, part
        )
        a, b = self.sinogram[np.ix_(views, k)].ravel()[seen], opposite.ravel()[seen]
        if len(a) < 16:
            return -1.0
        slope = np.broadcast_to(k - centre, gap.shape).ravel()[seen]
        a, b = (_without(_without(v, np.ones_like(v)), slope - slope.mean()) for v in (a, b))
        norms = math.sqrt(float(a @ a) * float(b @ b))
        return float(a @ b) / norms if norms > 1e-4 * len(a) * self.sinogram.var() else -1.0

    def _row(self, rows: NDArray[np.int64], column: NDArray[np.int64], part: Array) -> Array:
        return (1 - part) * self.sinogram[rows, column] + part * self.sinogram[rows, column + 1]

    def best(self, near: float, reach: float, views: NDArray[np.int64]) -> tuple[float, float]:
        found = scipy.optimize.minimize_scalar(
            lambda c: -self.correlation(c, views),
            bounds=(near - reach, near + reach),
            method="bounded",
            options={"xatol": 0.005},
        )
        return float(found.x), -float(found.fun)
