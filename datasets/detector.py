"""Detector pixels and views that did not measure, found in line integrals, and what stands in for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: Largest number of neighbouring bad pixels that are found, for large detectors and small ones (a share of pixels).
_LARGEST_RUN = 10
_RUN_SHARE = 16
#: A ray is off where it leaves the median of its neighbours by this share of the range of the data, ...
_SHARE = 0.05
#: ... and by this many standard deviations of the noise around there.
_DEVIATIONS = 4.0
#: A pixel is suspicious where at least this share of its rays is off, and 5 times as many as of its neighbours.
_OFF = 0.2
_TIMES = 5.0
#: Changes from view to view relative to those of the neighbours, below which a pixel does not follow the object.
_STUCK = 0.1
_MIN_VIEWS, _MIN_PIXELS = 8, 24
#: A view whose sum leaves those of its neighbours by this share of the mean sum, and by so many standard deviations.
_VIEW_SHARE, _VIEW_DEVIATIONS = 0.05, 8.0


@dataclass(frozen=True)
class Suspects:
    """Detector pixels that leave their neighbours, with what tells defects from objects on the axis."""

    off: Mask
    """(detectors,): too many of their rays leave the neighbours, either way."""
    stuck: Mask
    """(detectors,): constant while the neighbours change, so that no object explains them."""
    offset: Array
    """(detectors,): median over the views of the difference to the neighbours."""
    height: float
    """Range of the data."""

    @property
    def any(self) -> Mask:
        """All of them."""
        return np.asarray(self.off | self.stuck)


def largest_run(pixels: int) -> int:
    """The largest number of neighbouring bad pixels that ``suspicious_pixels`` finds on a detector."""
    return max(3, min(_LARGEST_RUN, pixels // _RUN_SHARE))


def suspicious_pixels(sinogram: Array, ignore: Mask | None = None) -> Suspects:
    """Detector pixels that leave their neighbours in line integrals (angles, detectors).
    """
    views, pixels = sinogram.shape
    none = np.zeros(pixels, bool)
    if views < _MIN_VIEWS or pixels < _MIN_PIXELS:
        return Suspects(none, none, np.zeros(pixels), 0.0)
    off, stuck, offset, height = none, none, np.zeros(pixels), 0.0
    for run in sorted({1, 3, largest_run(pixels)}):
        found = _suspicious(sinogram, run)
        new = found.any & ~(off | stuck)
        offset = np.where(new, found.offset, offset)
        off, stuck, height = off | found.off, stuck | found.stuck, found.height
    return Suspects(off, stuck, offset, height)


def _suspicious(sinogram: Array, run: int) -> Suspects:
    """Groups of up to ``run`` pixels that leave the median of 2 run + 1 pixels around them."""
    smooth = _median(sinogram, run)
    rest = sinogram - smooth
    height = float(np.quantile(smooth, 0.998) - np.quantile(smooth, 0.002))
    noise = median_filter(np.quantile(np.abs(rest), 0.9, axis=0), 6 * run + 1, mode="mirror")
    share = (np.abs(rest) > np.maximum(_SHARE * height, _DEVIATIONS * noise)).mean(0)
    beside = np.maximum(*_beside(share, 2 * run))
    off = _sharp((share >= _OFF) & (share > _TIMES * (beside + 1 / len(sinogram))), share)
    change = np.abs(np.diff(sinogram, axis=0)).mean(0)
    beside = np.minimum(*_beside(change, 2 * run))
    stuck = (change < _STUCK * beside) & (np.abs(rest).mean(0) > 0.02 * height)
    return Suspects(off, stuck, np.median(rest, 0), height)


def _median(sinogram: Array, run: int) -> Array:
    """Median of 2 run + 1 pixels; beyond the ends, data go on as their point reflection, so that slopes stay slopes."""
    ends = sinogram[:, : 3 * run + 1], sinogram[:, : -3 * run - 2 : -1]
    left, right = (2 * np.median(e[:, : 2 * run + 1], 1, keepdims=True) - e[:, : 2 * run : -1] for e in ends)
    padded = np.concatenate([left, sinogram, right[:, ::-1]], 1)
    return np.asarray(median_filter(padded, (1, 2 * run + 1))[:, run:-run])


def _sharp(chosen: Mask, share: Array) -> Mask:
    """Groups of neighbours beside which ``share`` falls off at once, on both sides."""
    left = chosen.copy()
    ends = np.flatnonzero(np.diff(np.pad(chosen, 1).astype(int)))
    for first, last in zip(ends[::2], ends[1::2], strict=True):
        beside = np.concatenate([share[max(0, first - 2) : first], share[last : last + 2]])
        left[first:last] = beside.max() < 0.25 * share[first:last].min()
    return left


def _beside(values: Array, reach: int) -> tuple[Array, Array]:
    """Medians of the ``reach`` values on the left and on the right; where these are missing, of the other side."""
    windows = np.median(np.lib.stride_tricks.sliding_window_view(values, reach), 1)
    left = np.concatenate([np.full(reach, np.nan), windows[:-1]])
    right = np.concatenate([windows[1:], np.full(reach, np.nan)])
    return np.where(np.isnan(left), right, left), np.where(np.isnan(right), left, right)
