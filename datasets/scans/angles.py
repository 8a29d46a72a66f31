"""Angles of views: degrees or radians, and the order in which an operator takes them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.errors import DataError

# Angles that were written with few digits may exceed the full turn by this much (radians).
TURN = 2 * math.pi + 1e-3
# Views closer than this (radians) are views at the same angle, at most a turn apart.
_SAME = 1e-5
# Views at the same angle that differ by more than this, relative to their size, did not see the same object.
_DIFFERENT = 0.1


@dataclass(frozen=True)
class OrderedViews:
    """Views in the order of their angles."""

    values: np.ndarray
    """(views, ...)"""
    angles: np.ndarray
    """(views,) radians, strictly increasing over at most one turn, if the file allowed it."""
    repeats: Tensor | None = None
    """(views,) how many views of the file were averaged for each; None: none was."""
    warnings: tuple[str, ...] = ()


def ordered_views(values: np.ndarray, angles: np.ndarray, path: Path) -> OrderedViews:
    """Views sorted by their angles modulo one turn; those at the same angle, a turn apart, are averaged.

    Golden-angle scans are sorted, scans that turn backwards turned around, and scans over several turns become scans
    over one. A scan whose angles increase over at most one turn stays as it is. Counts must be averaged before the
    logarithm is taken. What is wrong with the angles otherwise is left to the checks of ``Scan``, among it views at
    the same angle within one turn.

    Parameters
    ----------
    values
        (views, ...), counts or line integrals.
    angles
        (views,) radians.
    path
        for the warning that views at the same angle differ.
    """
    if angles.ndim != 1 or len(angles) < 2 or len(angles) != len(values) or not np.isfinite(angles).all():
        return OrderedViews(values, angles)
    turns = float(np.ptp(angles)) > TURN
    if not turns and (np.diff(angles) > 0).all():
        return OrderedViews(values, angles)
    if turns:
        after = np.mod(angles - angles[0], 2 * math.pi)
        after[after > 2 * math.pi - _SAME] = 0.0  # the rounding of a full turn
        angles = angles[0] + after
    order = np.argsort(angles, kind="stable")
    values, angles = values[order], angles[order]
    first = np.concatenate([[True], np.diff(angles) > _SAME])
    if not turns or first.all():
        return OrderedViews(values, angles)
    group, count = np.cumsum(first) - 1, int(first.sum())
    repeats = np.bincount(group, minlength=count).astype(np.float64)
    mean = np.zeros((count, *values.shape[1:]))
    np.add.at(mean, group, values)
    mean /= repeats.reshape(-1, *[1] * (values.ndim - 1))
    return OrderedViews(mean, angles[first], torch.from_numpy(repeats), _differences(values, mean[group], path))


def _differences(values: np.ndarray, mean: np.ndarray, path: Path) -> tuple[str, ...]:
    size = float(np.sqrt(np.square(mean - mean.mean()).mean()))
    difference = float(np.sqrt(np.square(values - mean).mean()))
    if difference <= _DIFFERENT * size:
        return ()
    return (
        f"{path}: views at the same angle, a turn apart, differ by {100 * difference / max(size, 1e-300):.0f} % of the "
        "variation in a view; they are averaged, but the object, its axis or the angles may have changed",
    )


def degrees_to_radians(degrees: np.ndarray, path: Path) -> np.ndarray:
    """Angles in radians.

    Raises
    ------
    DataError
        three or more angles lie within 2π, or eight or more cover two, three or four turns of radians: no scan has so
        small an arc in degrees, so they are radians already.
    """
    degrees = np.asarray(degrees, dtype=np.float64)
    if degrees.size >= 3 and np.isfinite(degrees).all():
        span = float(np.ptp(degrees))
        with_step = span * degrees.size / (degrees.size - 1)  # with the step after the last view
        turns = with_step / (2 * math.pi)
        several = degrees.size >= 8 and 1.5 < turns < 4.5 and abs(turns - round(turns)) < 0.02
        if 0 < span <= TURN or several:
            raise DataError(
                f"{path}: the {degrees.size} angles span {span:g} and should be degrees, but look like "
                f"radians ({math.degrees(span):.4g} degrees); give them as radians, or in degrees (--angles)"
            )
    return np.deg2rad(degrees)


def check_turn(radians: np.ndarray, path: Path) -> None:
    """Raise ``DataError`` where angles span more than one turn, as degrees taken for radians do."""
    span = float(np.ptp(radians)) if radians.size and np.isfinite(radians).all() else 0.0
    if span > TURN:
        raise DataError(
            f"{path}: the angles span {span:g} radians; valid is at most one turn, 2π. If these are degrees, give them "
            "as degrees; if they are radians of several turns, give them in degrees too, or modulo 2π"
        )


def view_angles(
    angles: np.ndarray | None, degrees: np.ndarray | float | None, views: int, path: Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The angles of a scan in radians, and what has to be said about them.

    Parameters
    ----------
    angles
        (views,) radians, or None.
    degrees
        (views,) degrees; or one number, the arc over which the views are equispaced from 0, without its end.
    views
        number of views.
    path
        for messages.

    Raises
    ------
    DataError
        not one of the two; an arc of 0; degrees that are evidently radians; radians over several turns, which cannot be
        told from degrees.
    """
    if (angles is None) == (degrees is None):
        raise DataError(f"{path}: give one of angles (radians) and angles_degrees (degrees, or the arc of the scan)")
    if degrees is None:
        radians = np.asarray(angles, dtype=np.float64).ravel()
        check_turn(radians, path)
        return radians, ()
    if np.ndim(degrees) > 0 and np.size(degrees) != 1:
        return degrees_to_radians(np.asarray(degrees).ravel(), path), ()
    arc = float(np.asarray(degrees).item())
    if views == 1 and np.ndim(degrees) > 0:
        return np.deg2rad([arc]), ()
    if not (math.isfinite(arc) and arc != 0):
        raise DataError(f"{path}: the arc is {arc:g} degrees; it must be finite and not 0, e.g. 180 or 360")
    if abs(arc) <= TURN:
        raise DataError(f"{path}: the arc of {views} views is {arc:g} degrees, which looks like radians; give degrees")
    made = arc * np.arange(views) / views
    said = (
        f"{path}: its angles are taken as {views} views from 0 to {made[-1]:g} degrees in steps of {arc / views:g}, "
        f"an arc of {arc:g} degrees without its end; give a file of angles if they are others"
    )
    return np.deg2rad(made), (said,)
