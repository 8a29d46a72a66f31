r"""Symmetries of a scan: rays that flips, quarter turns and transpositions of the image make of one another.

Let R be one of the eight symmetries of the square, and the grid of the image be R times itself. If ray t is R times ray
r, its integral over the image x is that over ray r of x(R .): with the row a_r of the matrix and the permutation P_R,

    (A x)_t = <a_r, P_R x>,    (P_R x)(p) = x(R p).

So only one row of each class of such rays has to be stored, with the R that each of the others is reached by. With S
the stored rows and the motions R_1, ..., R_m of a group, (S P_1 x, ..., S P_m x) has all data, and A^T y adds up
P_i^T S^T y_i, where y_i is y at the rays that are reached by R_i, and 0 elsewhere. The pair is exactly adjoint whatever
the classes are; whether they are those of the scan is a matter of its angles, which are compared to within rounding.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from recon.operators.tomography.beams import Geometry, ParallelBeam
from recon.operators.tomography.geometry import TURN

Indices = NDArray[np.int64]

#: radians to which angles are equal: those of equispaced views are off by 1e-15, and entries are rounded by 1e-7
TOLERANCE = 1e-12
#: what reading a stored entry costs, in products of it with a number: few stored rows against few motions of the image
READING = 4


@dataclass(frozen=True)
class Motion:
    """R (x, y) = (down x, across y), of (y, x) if ``turned``; ``down`` and ``across`` are 1 or -1."""

    turned: bool = False
    down: int = 1
    across: int = 1

    @property
    def determinant(self) -> int:
        """1 for turns, -1 for mirrors."""
        return self.down * self.across * (-1 if self.turned else 1)

    def after(self, other: Motion) -> Motion:
        """``self`` times ``other``."""
        down, across = (other.across, other.down) if self.turned else (other.down, other.across)
        return Motion(self.turned != other.turned, self.down * down, self.across * across)

    def point(self, x: float, y: float) -> tuple[float, float]:
        """R (x, y)."""
        x, y = (y, x) if self.turned else (x, y)
        return self.down * x, self.across * y

    def angle(self, phi: Indices | NDArray[np.float64] | float) -> NDArray[np.float64]:
        """The angle of R (cos phi, sin phi): plus or minus phi plus a multiple of pi / 2."""
        base, sign = (math.pi / 2, -1) if self.turned else (0.0, 1)
        if self.down < 0:  # phi -> pi - phi
            base, sign = math.pi - base, -sign
        if self.across < 0:
            base, sign = -base, -sign
        return np.asarray(base + sign * np.asarray(phi))


IDENTITY = Motion()
ALL = tuple(Motion(turned, down, across) for turned in (False, True) for down in (1, -1) for across in (1, -1))


@dataclass(frozen=True)
class Folding:
    """Which rays are stored, and where the others are.

    Attributes
    ----------
    shape
        of the image, ``(H, W)``.
    motions
        a group; the first one is the identity.
    rows
        numbers of the stored rays (view times detector pixels plus detector pixel), increasing.
    slots
        for every ray, number of its stored row times the number of motions, plus number of its motion.
    """

    shape: tuple[int, int]
    motions: tuple[Motion, ...]
    rows: Indices
    slots: Indices

    @cached_property
    def moved(self) -> Indices:
        """Pixels of x that make P_R x, ``(motions, pixels)``."""
        return np.stack([_permutation(self.shape, motion) for motion in self.motions])

    @property
    def digest(self) -> str:
        """A hash of all that it is."""
        found = hashlib.sha256(repr((self.shape, self.motions)).encode())
        found.update(np.ascontiguousarray(self.slots, "<i8").data)
        return found.hexdigest()


def fold(geometry: Geometry, line: bool = False) -> Folding:
    """Return the cheapest folding of a scan with parallel or fan beams.

    Parameters
    ----------
    geometry
        the scan.
    line
        whether the entries are lengths of intersection: these jump where a ray runs along the edge of pixels, to one
        side or the other, so that such rays are stored, all of them.
    """
    valid = [motion for motion in ALL if _keeps_the_grid(geometry, motion)]
    groups = {_generated(pair) for pair in itertools.product(valid, repeat=2)}
    foldings = [_folded(geometry, tuple(m for m in ALL if m in group), line) for group in sorted(groups, key=len)]
    return min(foldings, key=lambda folding: len(folding.rows) * (READING + len(folding.motions)))


def _keeps_the_grid(geometry: Geometry, motion: Motion) -> bool:
    (height, width), (tall, wide) = geometry.image_shape, geometry.pixel_size
    if motion.turned and (height != width or tall != wide):
        return False
    return motion.point(*geometry.image_offset) == tuple(geometry.image_offset)


def _generated(motions: tuple[Motion, ...]) -> frozenset[Motion]:
    """The group that some motions generate."""
    group = {IDENTITY}
    while True:
        more = group | {motion.after(other) for motion in motions for other in group}
        if more == group:
            return frozenset(group)
        group = more


def _permutation(shape: tuple[int, int], motion: Motion) -> Indices:
    """Numbers of the pixels R p for the pixels p."""
    pixels = np.arange(math.prod(shape)).reshape(shape)
    if motion.down < 0:
        pixels = pixels[::-1]
    if motion.across < 0:
        pixels = pixels[:, ::-1]
    return (pixels.T if motion.turned else pixels).reshape(-1)


def _folded(geometry: Geometry, motions: tuple[Motion, ...], line: bool) -> Folding:
    """The folding by a group: views in order, each ray that is not reached yet is stored and reaches what it can."""
    views, detectors = len(geometry.angles), geometry.detector_pixels
    images = [_images(geometry, motion) for motion in motions]
    alone = _on_edges(geometry) if line else np.zeros((views, detectors), dtype=bool)
    slots = np.full((views, detectors), -1)
    rows: list[Indices] = []
    count, pixel = 0, np.arange(detectors)
    for view in range(views):
        chosen = slots[view] < 0
        if any((view, True) in image[view] for image in images):  # a ray and its mirror image are of one view
            chosen &= (pixel <= pixel[::-1]) | ~chosen[::-1] | alone[view] | alone[view, ::-1]
        kept = pixel[chosen]
        numbers = count + np.arange(len(kept))
        slots[view, kept] = numbers * len(motions)
        for index, image in enumerate(images[1:], 1):
            waiting = ~alone[view, kept]
            for other, mirrored in image[view]:
                target = detectors - 1 - kept if mirrored else kept
                reached = waiting & (slots[other, target] < 0) & ~alone[other, target]
                slots[other, target[reached]] = numbers[reached] * len(motions) + index
                waiting &= ~reached
        rows.append(view * detectors + kept)
        count += len(kept)
    return Folding((geometry.image_shape[0], geometry.image_shape[1]), motions, np.concatenate(rows), slots.reshape(-1))


def _images(geometry: Geometry, motion: Motion) -> list[list[tuple[int, bool]]]:
    """For every view those that the motion makes of it, with whether the detector runs the other way there.

    Parallel rays of the angle phi at s are those of phi + pi at -s. The detector may run the other way if it is
    symmetric, which means no offset.
    """
    angles = np.asarray(geometry.angles)
    moved = motion.angle(angles)
    if isinstance(geometry, ParallelBeam):
        # the mirror image first: it may be of the same view, of which only one half is stored then
        candidates = [(moved + math.pi, True), (moved, False)]
    elif motion.determinant > 0:
        candidates = [(moved, False)]
    else:  # R e_t is that of the view whose e_s is -R e_s
        candidates = [(moved + math.pi, True)]
    symmetric = geometry.across()[2] == 0
    found: list[list[tuple[int, bool]]] = [[] for _ in angles]
    for wanted, mirrored in candidates:
        if mirrored and not symmetric:
            continue
        for view, other in enumerate(_nearest(angles, wanted)):
            if other >= 0:
                found[view].append((int(other), mirrored))
    return found


def _nearest(angles: NDArray[np.float64], wanted: NDArray[np.float64]) -> Indices:
    """The number of the angle that equals each of ``wanted`` but for whole turns, -1 where there is none."""
    order = np.argsort(angles % TURN, kind="stable")
    ordered = (angles % TURN)[order]
    ordered = np.concatenate([ordered[-1:] - TURN, ordered, ordered[:1] + TURN])
    order = np.concatenate([order[-1:], order, order[:1]])
    after = np.clip(np.searchsorted(ordered, wanted % TURN), 1, len(ordered) - 1)
    nearer = np.where(ordered[after] - wanted % TURN < wanted % TURN - ordered[after - 1], after, after - 1)
    return np.where(np.abs(ordered[nearer] - wanted % TURN) <= TOLERANCE, order[nearer], -1)


def _on_edges(geometry: Geometry) -> NDArray[np.bool_]:
    """Rays that run along an edge of pixels, ``(views, detectors)``."""
    points, directions = geometry.rays()
    sizes, shape = np.asarray(geometry.pixel_size), np.asarray(geometry.image_shape)
    lines = (points - geometry.image_offset) / sizes + shape / 2  # whole numbers on edges
    on_edge = np.abs(lines - np.round(lines)) <= TOLERANCE * max(geometry.image_shape)
    along = np.abs(directions) <= TOLERANCE  # the other axis
    return np.asarray((on_edge & along).any(-1))
