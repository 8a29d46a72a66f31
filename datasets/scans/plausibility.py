"""Whether the values of a scan can be line integrals and its lengths millimetres: units that were mistaken."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from datasets.errors import DataError
from datasets.scans.scan import Scan

# Views are looked at in so many parts, whose means hold little noise.
_PARTS = 4
# Air at an end of the detector: so many pixels at least, in so many views, and line integrals above this share of those
# of the object.
_BAND, _FEWEST_VIEWS, _BACKGROUND = 4, 8, 0.01
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

    Raises
    ------
    DataError
        counts, transmissions or negative line integrals.
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


def background(scan: Scan, counted: bool) -> tuple[str, ...]:
    """What to say about line integrals of air, outside of the object, that are not 0: flat fields that do not fit.

    Air is sought at each end of the detector: a band of pixels (1/6, 1/12 or 1/24 of them, 4 at least) whose values are
    the same in all views and for all pixels, apart from noise, and far below those of the object. So nothing is said
    where the object reaches beyond that end, and within a region of interest. Its level b is the mean of
    the pixels' medians, or -log of the median of the views' mean exp(-y), whichever is nearer to 0: noise of the
    logarithm, and noise of the counts, leave one of the two as it is. It is said where it exceeds 1 % of the range of
    the median view (real scans with up to 0.9 % are taken for good) and 8 standard errors.

    ``counted``: the line integrals were made of counts and flat fields.
    """
    values = scan.sinogram.double()
    count = max(_BAND, values.shape[1] // 24)
    if len(values) < _FEWEST_VIEWS or values.shape[1] < 6 * count:
        return ()
    profile = values.median(0).values
    height = float(profile.max() - profile.min())
    found: dict[str, float] = {}
    for width in (4 * count, 2 * count, count):  # the widest band of air has the least noise
        for side, band in (("left", values[:, :width]), ("right", values[:, -width:].flip(1))):
            b = None if side in found else _level(band, profile, height)
            if b is not None:
                found[side] = b
    if not found:
        return ()
    sides = " and ".join(f"{found[side]:.3g} at the {side}" for side in ("left", "right") if side in found)
    mean = sum(found.values()) / len(found)
    given = "Subtract it from the values, or give counts with --flat, that of air"
    if counted:
        given = (
            f"The flat fields are about {math.exp(mean):.5g} times the light of the scan: give --flat, a file with "
            "fields whose counts above the dark ones are divided by that"
        )
        if "flat" in scan.metadata:
            flat, dark = scan.metadata["flat"], scan.metadata["dark"]
            given += f", or {dark + (flat - dark) / math.exp(mean):.6g} where all pixels are alike"
    return (
        f"{scan.path}: air is not 0: line integrals outside of the object are {sides} end of the detector, in all "
        f"views, and become attenuation in the result, of air too. {given}",
    )


def _level(band: Tensor, profile: Tensor, height: float) -> float | None:
    """The line integral of air in a band (views, pixels), its outermost pixel first; None where that is 0 or no air.

    Medians over the views or pixels, and 1.25 times the standard errors of means for theirs: single rays without light
    or hit by something else do not count.
    """
    width = band.shape[1]
    pixels = band.median(0).values
    level = float(pixels.mean())
    noise = 1.4826 * float((band - pixels).abs().median())
    error = 1.25 * noise / math.sqrt(band.numel())
    transmitted = float(torch.exp(-band).mean(1).median())
    b = min(level, -math.log(transmitted), key=abs) if transmitted > 0 else level
    if (b > 0) != (level > 0) or abs(b) <= max(_BACKGROUND * height, 8 * error):
        return None
    step = float(pixels[: width // 2].mean() - pixels[width // 2 :].mean())
    # an object that begins inside of the band has a step of b at least; 2: of the standard error of a difference
    flat = abs(step) <= min(0.3 * abs(b), 0.03 * abs(b) + 3 * 2 * error)
    here = band.median(1).values
    same = float((here - level).abs().quantile(0.95)) <= 0.03 * height + 4 * 1.25 * noise / math.sqrt(width)
    low = b < 0.25 * (float(profile.max()) - level)
    return b if flat and same and low else None


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
