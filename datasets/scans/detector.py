"""Detector pixels that did not measure, found in line integrals, and what stands in for them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy  # its parts are loaded where they are used
import torch
from numpy.typing import NDArray

from datasets.errors import DataError
from datasets.scans.counts import lit
from datasets.scans.rotation import rotation_centre
from datasets.scans.scan import Scan

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
#: neighbouring pixels (first, last + 1)
Group = tuple[int, int]

#: Largest number of neighbouring bad pixels that are found, for large detectors and small ones (a share of pixels).
_LARGEST_RUN = 10
_RUN_SHARE = 16
#: A ray is off where it leaves the median of its neighbours by this share of the range of the data, ...
_SHARE = 0.03
#: ... and by this many standard deviations of the noise around there.
_DEVIATIONS = 4.0
#: A pixel is suspicious where at least this share of its rays is off, and 5 times as many as of its neighbours.
_OFF = 0.4
_TIMES = 5.0
#: Changes from view to view relative to those of the neighbours: below, a pixel does not follow the object; above, its
#: values are noise.
_STUCK, _NOISY = 0.1, 5.0
_MIN_VIEWS, _MIN_PIXELS = 8, 24
#: In fewer views, objects stay on a pixel by chance.
_MANY_VIEWS = 16
#: so many pixels at the ends of the detector
_END = 4
#: A pixel did not measure where at least this share of its rays has weight 0, and at most that one of its neighbours.
_UNMEASURED, _MEASURED = 0.5, 0.2
#: More bad pixels than this share are no defects of a detector.
_MOST = 0.1


@dataclass(frozen=True)
class Suspects:
    """Detector pixels that leave their neighbours."""

    off: Mask
    """(detectors,): many of their rays leave the neighbours."""
    noisy: Mask
    """(detectors,): they change from view to view much more than the neighbours."""
    stuck: Mask
    """(detectors,): constant while the neighbours change."""
    rest: Array
    """(detectors,): median over the views of the difference to the neighbours."""
    share: Array
    """(detectors,): share of the views in which they leave the neighbours; 1 for the noisy ones."""


def without_bad_pixels(scan: Scan) -> Scan:
    """The scan with interpolated values and weight 0 at detector pixels that did not measure, said in a warning.

    Bad are pixels most of whose rays have weight 0 although their neighbours measured, pixels that do not change from
    view to view while their neighbours do (dead or stuck), and groups of a few pixels that leave the median of their
    neighbours in many views, or are much noisier (drifting, hot); see ``suspicious_pixels``. Objects look like the last
    kind where they stay on the same pixels: near the rotation axis, or in circles around it. There, data are left as
    they are, and a warning names the pixels.

    ``metadata["bad_pixels"]`` lists the columns. Weights of scans without any become exp(-z), the light that arrived.
    """
    y = scan.sinogram.double().numpy()
    weights = None if scan.weights is None else scan.weights.numpy()
    unmeasured = np.zeros(y.shape[1], bool) if weights is None else _unmeasured(weights)
    if unmeasured.all():
        return scan
    filled = interpolated(y, unmeasured)
    if weights is not None:
        filled = lit(filled, (weights <= 0) & ~unmeasured)
    bad, doubtful = _judged(scan, filled, suspicious_pixels(filled))
    bad &= ~unmeasured
    if bad.mean() > _MOST:
        bad, doubtful = np.zeros_like(bad), doubtful | bad
    said = []
    wrong = bad | unmeasured
    if wrong.any():
        kinds = [
            f"{what}: {_names(mask)}" for what, mask in (("no light", unmeasured), ("wrong values", bad)) if mask.any()
        ]
        said.append(
            f"{scan.path}: {int(wrong.sum())} of {len(bad)} detector pixels did not measure "
            f"({'; '.join(kinds)}); they weigh 0, and filtered back-projection and networks "
            "see values interpolated from their neighbours"
        )
    if doubtful.any():
        said.append(
            f"{scan.path}: detector pixels {_names(doubtful)} leave their neighbours in most views, as defects do and "
            "small objects on the rotation axis or circles around it; they are used as they are"
        )
    if not wrong.any():
        return scan.warned(*said)
    z = torch.from_numpy(interpolated(y, wrong))
    made = torch.exp(-z).clamp_min(1e-30) if scan.weights is None else scan.weights.clone()
    made[:, torch.from_numpy(wrong)] = 0.0
    metadata = {**scan.metadata, "bad_pixels": np.flatnonzero(wrong).tolist()}
    return replace(scan, sinogram=z, weights=made, metadata=metadata).warned(*said)


def interpolated(sinogram: Array, wrong: Mask) -> Array:
    """A sinogram (angles, detectors) with the pixels ``wrong`` interpolated linearly between the others.

    Raises
    ------
    DataError
        no pixel is left.
    """
    if not wrong.any():
        return sinogram
    right = np.flatnonzero(~wrong)
    if not len(right):
        raise DataError("no detector pixel measured anything")
    filled, columns = sinogram.copy(), np.flatnonzero(wrong)
    after = np.clip(np.searchsorted(right, columns), 0, len(right) - 1)
    before = np.clip(np.searchsorted(right, columns) - 1, 0, len(right) - 1)
    left, distance = right[before], np.maximum(right[after] - right[before], 1)
    share = np.clip((columns - left) / distance, 0, 1)
    filled[:, columns] = (1 - share) * sinogram[:, left] + share * sinogram[:, right[after]]
    return filled


def _unmeasured(weights: Array) -> Mask:
    """Pixels without light: in most views where their neighbours had some, or in all."""
    share = (weights <= 0).mean(0)
    found = np.asarray(share == 1)
    if len(share) < _MIN_PIXELS:
        return found
    beside = np.maximum(*_beside(share, min(2 * largest_run(len(share)), len(share) // 2)))
    return found | ((share >= _UNMEASURED) & (beside <= _MEASURED))


def _judged(scan: Scan, sinogram: Array, found: Suspects) -> tuple[Mask, Mask]:
    """Which suspects are bad, and which may be objects.

    An object at the distance r of the axis stays within w pixels for an arc α where r (1 - cos(α / 2)) <= w, and it is
    found where that is the share of the scan in which the pixel leaves its neighbours. Circles around the axis are
    found at their mirror image as well. Objects also reach beyond the ends of the detector, and stay on a pixel by
    chance in few views. So the outermost pixels, and all of fewer than 16 views, are bad only where they leave their
    neighbours by more than the range of all other data.
    """
    bad, doubtful = found.stuck.copy(), np.zeros_like(found.stuck)
    unclear = groups((found.off | found.noisy) & ~found.stuck)
    if not unclear and not bad.any():
        return bad, doubtful
    suspects = found.off | found.noisy | found.stuck
    centre, uncertainty = _centre(scan, interpolated(sinogram, suspects))
    step = float(scan.angles.diff().median())
    arc = float(scan.angles[-1] - scan.angles[0]) + step
    largest = float(np.quantile(sinogram, 0.999))
    right = sinogram[:, ~suspects] if not suspects.all() else sinogram
    height = float(np.ptp(right))
    for group in groups(found.stuck):
        value = float(sinogram[:, slice(*group)].mean())
        if _air(sinogram, group, float(right.min()) + _SHARE * height):
            bad[slice(*group)] = False
        elif _distance(group, centre) <= 1 + uncertainty and value >= largest:
            # metal on the axis, so dense that values are cut
            bad[slice(*group)], doubtful[slice(*group)] = False, True
    for group in unclear:
        first, last = group
        turning = 1 - math.cos(min(math.pi, 0.5 * float(found.share[first:last].min()) * arc))
        axis = _distance(group, centre) <= (last - first + 1) / turning + uncertainty
        ends = first < _END or last > len(bad) - _END or len(sinogram) < _MANY_VIEWS
        if ends and float(np.abs(found.rest[first:last]).min()) < height:
            continue
        if axis or (not found.noisy[first:last].any() and _mirrored(found, group, centre)):
            doubtful[first:last] = axis
        else:
            bad[first:last] = True
    return bad, doubtful


def _air(sinogram: Array, group: Group, highest: float) -> bool:
    """Whether pixels at an end see air without noise, exactly as the one beside does while the object is elsewhere."""
    first, last = group
    value = float(np.median(sinogram[:, first:last]))
    if value > highest or _END <= first <= last <= sinogram.shape[1] - _END:
        return False
    beside = sinogram[:, [k for k in (first - 1, last) if 0 <= k < sinogram.shape[1]]]
    return bool((np.abs(beside - value) <= 1e-6 * float(np.ptp(sinogram))).mean() >= _SHARE)


def _centre(scan: Scan, sinogram: Array) -> tuple[float, float]:
    """The rotation centre as given, from the data, or in the middle; with its uncertainty."""
    if scan.rotation_centre is not None or scan.distances is not None:
        return scan.centre, 1.0
    try:
        found = rotation_centre(replace(scan, sinogram=torch.from_numpy(sinogram)))
    except DataError:
        return scan.centre, 0.1 * sinogram.shape[1]
    return found.centre, (1.0 if found.doubt is None else 3.0) + 3 * found.uncertainty


def _distance(group: Group, centre: float) -> float:
    return max(group[0] - centre, centre - (group[1] - 1), 0.0)


def _mirrored(found: Suspects, group: Group, centre: float) -> bool:
    """Whether pixels on the other side of the axis leave their neighbours as this group does."""
    if _distance(group, centre) <= 1:
        return False
    first, last = math.floor(2 * centre - group[1]) - 1, math.ceil(2 * centre - group[0]) + 3
    other = found.rest[max(0, first) : max(0, last)]
    own = found.rest[slice(*group)]
    peak = float(own[np.abs(own).argmax()])
    return bool(len(other) and (math.copysign(1.0, peak) * other).max() > 0.15 * abs(peak))


def groups(mask: Mask) -> list[Group]:
    """Neighbours that are all True, as (first, last + 1)."""
    ends = np.flatnonzero(np.diff(np.pad(mask, 1).astype(int)))
    return [(int(a), int(b)) for a, b in zip(ends[::2], ends[1::2], strict=True)]


def _names(mask: Mask) -> str:
    made = [f"{a}" if b == a + 1 else f"{a} to {b - 1}" for a, b in groups(mask)]
    return ", ".join(made if len(made) <= 20 else [*made[:20], "..."])


def largest_run(pixels: int) -> int:
    """The largest number of neighbouring bad pixels that ``suspicious_pixels`` finds on a detector."""
    return max(3, min(_LARGEST_RUN, pixels // _RUN_SHARE))


def suspicious_pixels(sinogram: Array) -> Suspects:
    """Detector pixels that leave their neighbours in line integrals (angles, detectors): single ones and small groups.

    For groups of up to n = 1, 3 and ``largest_run`` pixels, the neighbours are the median m of 2 n + 1 pixels. With the
    range h of the data and the noise σ around there, a ray is off where ``|y - m| > max(0.03 h, 4 σ)``; a pixel is off
    where 40 % of its rays are, and 5 times as many as of the pixels beside. It is noisy where its mean change from view
    to view is 5 times that of those beside, and stuck where it is a tenth, and its mean ``|y - m|`` above 0.02 h.

    None are found with fewer than 8 views or 24 pixels.
    """
    views, pixels = sinogram.shape
    none = np.zeros(pixels, bool)
    if views < _MIN_VIEWS or pixels < _MIN_PIXELS:
        return Suspects(none, none, none, np.zeros(pixels), np.zeros(pixels))
    off, noisy, stuck, rest, share = none, none, none, np.zeros(pixels), np.zeros(pixels)
    for run in sorted({1, 3, largest_run(pixels)}):
        found = _suspicious(sinogram, run)
        rest = np.where(np.abs(found.rest) > np.abs(rest), found.rest, rest)
        share = np.where(found.off | found.noisy, np.maximum(share, found.share), share)
        off, noisy, stuck = off | found.off, noisy | found.noisy, stuck | found.stuck
        sinogram = interpolated(sinogram, off | noisy | stuck)  # they spoil larger neighbourhoods
    return Suspects(off, noisy, stuck, rest, share)


def _suspicious(sinogram: Array, run: int) -> Suspects:
    """Groups of up to ``run`` pixels that leave the median of 2 run + 1 pixels around them."""
    smooth = _median(sinogram, run)
    rest = sinogram - smooth
    height = float(np.quantile(smooth, 0.998) - np.quantile(smooth, 0.002))
    noise = scipy.ndimage.median_filter(np.quantile(np.abs(rest), 0.9, axis=0), 6 * run + 1, mode="mirror")
    share = (np.abs(rest) > np.maximum(_SHARE * height, _DEVIATIONS * noise)).mean(0)
    beside = np.maximum(*_beside(share, max(4, 2 * run)))
    off = _sharp((share >= _OFF) & (share > _TIMES * (beside + 1 / len(sinogram))), np.abs(rest).mean(0))
    change = np.abs(np.diff(sinogram, axis=0)).mean(0)
    around = _beside(change, max(4, 2 * run))
    away = np.abs(rest).mean(0) > 0.02 * height
    noisy = _sharp((change > _NOISY * np.maximum(*around)) & away, change)
    stuck = (change < _STUCK * np.minimum(*around)) & away
    return Suspects(off, noisy, stuck, np.median(rest, 0), np.where(noisy, 1.0, share))


def _median(sinogram: Array, run: int) -> Array:
    """Median of 2 run + 1 pixels; beyond the ends, data go on as their point reflection, so that slopes stay slopes."""
    ends = sinogram[:, : 3 * run + 1], sinogram[:, : -3 * run - 2 : -1]
    left, right = (2 * np.median(e[:, : 2 * run + 1], 1, keepdims=True) - e[:, : 2 * run : -1] for e in ends)
    padded = np.concatenate([left, sinogram, right[:, ::-1]], 1)
    return np.asarray(scipy.ndimage.median_filter(padded, (1, 2 * run + 1))[:, run:-run])


def _sharp(chosen: Mask, size: Array) -> Mask:
    """Groups of neighbours without ends that are small against the rest, where ``size`` falls off at once beside."""
    left = np.zeros_like(chosen)
    for first, last in groups(chosen):
        inside = first + np.flatnonzero(size[first:last] >= 0.25 * size[first:last].max())
        start, stop = int(inside[0]), int(inside[-1]) + 1
        beside = np.concatenate([size[max(0, start - 2) : start], size[stop : stop + 2]])
        left[start:stop] = beside.max() < 0.25 * size[start:stop].min()
    return left


def _beside(values: Array, reach: int) -> tuple[Array, Array]:
    """Medians of up to ``reach`` values on the left and on the right; of the other side where there is none."""
    padded = np.pad(values, reach, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach)
    left, right = np.append(np.nan, np.nanmedian(windows[1 : len(values)], 1)), windows[reach + 1 :]
    right = np.append(np.nanmedian(right[:-1], 1), np.nan)
    left[0], right[-1] = right[0], left[-1]
    return left, right
