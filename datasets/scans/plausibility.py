"""Whether the values of a scan can be line integrals and its lengths millimetres: units that were mistaken."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from datasets.readers.pictures import DataError
from datasets.scans.scan import Scan

# Views are looked at in so many parts, whose means hold little noise.
_PARTS = 4
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
    found = _air_of_counts(values)
    if found is None:
        return (*_scale(scan, high), *_lengths(scan, high))
    air, sure = found
    said = (
        f"{scan.path}: its values, {low:g} to {high:g}, are {air:.6g} at the edges of the detector and smaller inside"
    )
    if air > _LARGEST:
        raise DataError(
            f"{said}, as counts are and line integrals are not. Give the count of air, --flat {air:.6g} (with --dark "
            f"where there is one), or --counts --photons {air:.6g} if they are photons"
        )
    if sure and abs(air - 1) <= 0.1:
        raise DataError(
            f"{said}, as transmissions are and line integrals are not. Give --flat {air:.6g}, or store -log of them"
        )
    if sure and low < 0 and abs(air) <= 0.1 * abs(low):
        raise DataError(
            f"{said}, as logarithms of transmissions are; line integrals are their negatives, so change the sign"
        )
    return (f"{said}, as transmissions or counts are; if they are no line integrals, give the value of air as --flat",)


def _air_of_counts(values: Tensor) -> tuple[float, bool] | None:
    """The value of air of counts or transmissions, and whether nothing else comes to mind; None for line integrals.

    It is at one edge of the detector at least (the object may leave the field of view on the other): there the mean
    over all views is near the largest of the detector's, and hardly changes from view to view. At the other edge line
    integrals may be near the smallest, 0; counts are not that small beside those of air.
    """
    values = values.double()
    profile = values.mean(0)
    low, high = float(profile.min()), float(profile.max())
    if high - low <= 1e-12 * abs(high):
        return None
    columns = max(1, values.shape[1] // 50)
    position, air = [], []
    for edge in (values[:, :columns].mean(1), values[:, -columns:].mean(1)):
        mean = float(edge.mean())
        parts = torch.stack([part.mean() for part in edge.chunk(_PARTS)])
        position.append((mean - low) / (high - low))
        if position[-1] > 0.85 and float(parts.max() - parts.min()) < 0.2 * (high - low):
            air.append(mean)
    if not air:
        return None
    both = min(position) > 0.3
    return (max(air), both) if both or float(values.min()) > 0.1 * max(air) > 0 else None


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
