"""Whether the values of a scan can be line integrals and its lengths millimetres: units that were mistaken."""

from __future__ import annotations

import math

from torch import Tensor

from datasets.reading import DataError
from datasets.scans import Scan

# No detector sees exp(-15): line integrals above it are on another scale.
_LARGEST = 15.0
# Pitches in mm that detectors do not have, and mean attenuations in 1/mm that do not go with them. A pitch in m is a
# thousandth of the true one, and the attenuation (0.02 for water) a thousandfold; a pitch in micrometres the reverse.
_SMALL_PITCH, _LARGE_ATTENUATION = 2e-3, 1.0
_LARGE_PITCH, _SMALL_ATTENUATION = 20.0, 1e-3


def implausible(scan: Scan) -> tuple[str, ...]:
    """What is implausible about the values and lengths of a scan, as sentences that say what to give instead.

    * Counts and transmissions are largest in air: at the edges of the detector they are near their maximum and the same
      in all views, where line integrals are near 0. Refused where their size leaves no doubt: above 15 (counts), around
      1 (transmissions), or below 0 (logarithms of transmissions, with the wrong sign); a warning otherwise.
    * Line integrals above 15 are not measured: a warning, as phantoms may be in units of their own.
    * The largest line integral over the width of the field of view is an attenuation. Together with the pitch it shows
      lengths in metres or in micrometres: a warning.

    Raises:
        DataError: counts, transmissions or negative line integrals.
    """
    values = scan.sinogram
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return ()
    air = _value_in_air_of_counts(values)
    name = scan.path
    if air is not None:
        if air > _LARGEST:
            raise DataError(
                f"{name}: its values, {low:g} to {high:g}, are largest at the edges of the detector ({air:g}), as "
                f"counts are and line integrals are not. Give the count of air, --flat {air:.6g} (with --dark where "
                f"there is one), or --counts --photons {air:.6g} if they are photons"
            )
        if abs(air - 1) <= 0.1:
            raise DataError(
                f"{name}: its values, {low:g} to {high:g}, are {air:g} at the edges of the detector and smaller "
                "inside, as transmissions are and line integrals are not. Give --flat 1, or store -log of them"
            )
        if abs(air) <= 0.1 * abs(low) and low < 0:
            raise DataError(
                f"{name}: its values, {low:g} to {high:g}, are about 0 at the edges of the detector and negative "
                "inside, as the logarithms of transmissions are; line integrals are their negatives: change the sign"
            )
        return (
            f"{name}: its values are larger at the edges of the detector ({air:g}) than inside, as transmissions or "
            "counts are; if they are no line integrals, give the value of air as --flat",
        )
    return (*_scale(scan, high), *_lengths(scan, high))


def _value_in_air_of_counts(values: Tensor) -> float | None:
    """The value at the edges of the detector, if it is near the largest, the same in all views and never near 0.

    One edge is enough (an object may leave the field of view on the other), unless the other one looks like air of
    line integrals.
    """
    low, high = (float(values.double().flatten().kthvalue(k).values) for k in _ranks(values.numel()))
    if high <= low:
        return None
    columns = max(1, values.shape[1] // 50)
    position, found = [], []
    for edge in (values[:, :columns], values[:, -columns:]):
        views = edge.double().mean(1)
        middle = float(views.median())
        spread = float((views - middle).abs().median()) / (high - low)
        position.append((middle - low) / (high - low))
        if position[-1] > 0.85 and spread < 0.05:
            found.append(middle)
    inside = float(values.double().median(1).values.median())
    return max(found) if found and min(position) > 0.3 and inside < max(found) else None


def _ranks(n: int) -> tuple[int, int]:
    """Places of the smallest and the largest value among n, without the outermost half per cent."""
    out = n // 200
    return 1 + out, n - out


def _scale(scan: Scan, high: float) -> tuple[str, ...]:
    if high <= _LARGEST:
        return ()
    return (
        f"{scan.path}: has line integrals up to {high:.4g}, but no light passes exp(-{high:.3g}): they are scaled (as "
        "integers, or with lengths in another unit) or counts, or those of a phantom in units of its own. The result "
        "has the scale of the file; for counts give --flat or --counts",
    )


def _lengths(scan: Scan, high: float) -> tuple[str, ...]:
    if scan.metadata.get("length_unit", "mm") != "mm":
        return ()
    pitch, width = scan.detector_spacing, scan.detector_spacing / scan.magnification * scan.sinogram.shape[1]
    attenuation = high / width
    if pitch < _SMALL_PITCH and attenuation > _LARGE_ATTENUATION:
        wrong, right = "metres", 1000 * pitch
    elif pitch > _LARGE_PITCH and attenuation < _SMALL_ATTENUATION and math.isfinite(attenuation):
        wrong, right = "micrometres", pitch / 1000
    else:
        return ()
    return (
        f"{scan.path}: a detector pitch of {pitch:g} mm means an attenuation of {attenuation:.3g} / mm (water: 0.02). "
        f"If lengths are in {wrong}, give them in mm, e.g. a pitch of {right:g}",
    )
