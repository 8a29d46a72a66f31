"""What the geometries of scans share: sizes, checks, parts. Conventions: :mod:`recon.operators.tomography.beams`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from recon.errors import at_least

if TYPE_CHECKING:  # ODL takes seconds to import
    from odl.applications.tomo.geometry import Geometry as ODLGeometry
    from odl.core.discr import DiscretizedSpace, RectPartition

Array = NDArray[np.float64]
TURN = 2.0 * math.pi


@dataclass(frozen=True)
class Geometry:
    """What all scans share; use one of the subclasses.

    Attributes
    ----------
    image_shape
        pixels, ``(H, W)``, in 3D ``(D, H, W)``.
    pixel_size
        side lengths in mm in the order of ``image_shape``; one number stands for all of them.
    angles
        radians, strictly increasing, over at most one turn (both ends included).
    detector_pixels, detector_spacing, detector_offset
        number, pitch in mm and position of the detector's centre in mm; numbers, in 3D pairs (along the rotation axis,
        across it).
    image_offset
        position of the image's centre relative to the rotation axis in mm, in the order of ``image_shape``; one number
        stands for all of them, and zero is an image centred on the axis.
    """

    image_shape: tuple[int, ...]
    pixel_size: tuple[float, ...]
    angles: tuple[float, ...]
    detector_pixels: Any
    detector_spacing: Any
    detector_offset: Any = 0.0
    image_offset: Any = field(default=0.0, kw_only=True)

    kind: ClassVar[str] = ""
    ndim: ClassVar[int] = 2
    #: radians over which a scan sees everything
    full: ClassVar[float] = math.pi

    def __post_init__(self) -> None:
        """Bring the fields into their canonical types and check them.

        Raises
        ------
        ValueError
            a size is not positive, an angle not finite, not in order or apparently in degrees.
        """
        n, detector = self.ndim, self.ndim - 1
        shape = numbers(self.image_shape, n, "image_shape", whole=True)
        set_ = object.__setattr__  # the way in for a frozen dataclass
        set_(self, "image_shape", tuple(int(v) for v in shape))
        set_(self, "pixel_size", numbers(self.pixel_size, n, "pixel_size"))
        set_(self, "image_offset", numbers(self.image_offset, n, "image_offset", positive=False))
        set_(self, "angles", _angles(self.angles))
        pixels = tuple(int(v) for v in numbers(self.detector_pixels, detector, "detector_pixels", whole=True))
        spacing = numbers(self.detector_spacing, detector, "detector_spacing")
        offset = numbers(self.detector_offset, detector, "detector_offset", positive=False)
        set_(self, "detector_pixels", pixels if detector == 2 else pixels[0])
        set_(self, "detector_spacing", spacing if detector == 2 else spacing[0])
        set_(self, "detector_offset", offset if detector == 2 else offset[0])

    @classmethod
    def equispaced(
        cls,
        image_shape: Sequence[int],
        pixel_size: float | Sequence[float],
        views: int,
        *,
        start: float = 0.0,
        arc: float | None = None,
        detector_pixels: int | Sequence[int] | None = None,
        detector_spacing: float | Sequence[float] | None = None,
        detector_offset: float | Sequence[float] = 0.0,
        **distances: float,
    ) -> Self:
        """Views at ``start + k arc / views``, over half a turn of parallel beams and a whole one of others by default.

        The detector has pixels of the image's size there, as many as cover the circle around the image, unless they are
        given; in 3D they have to be. ``distances`` are those of the source and of the detector, see :class:`FanBeam`.
        """
        shape, size = tuple(image_shape), numbers(pixel_size, cls.ndim, "pixel_size")
        angles = equispaced(start, cls.full if arc is None else arc, views)
        if cls.ndim == 3:
            return cls(shape, size, angles, detector_pixels, detector_spacing, detector_offset, **distances)
        scan = cls(shape, size, angles, 1, min(size), detector_offset, **distances)
        spacing = min(size) * scan.magnification
        if detector_spacing is not None:
            spacing = numbers(detector_spacing, 1, "detector_spacing")[0]
        if detector_pixels is None:
            detector_pixels = max(1, math.ceil(2 * (scan.reach + abs(scan.detector_offset)) / spacing - 1e-9))
        return replace(scan, detector_pixels=detector_pixels, detector_spacing=spacing)

    # --- sizes ---

    @property
    def domain_shape(self) -> tuple[int, int, int]:
        """Shape of an image: ``(1, H, W)``, in 3D ``(D, H, W)``."""
        return (1, *self.image_shape) if self.ndim == 2 else self.image_shape  # type: ignore[return-value]

    @property
    def range_shape(self) -> tuple[int, int, int]:
        """Shape of the data: ``(1, angles, detectors)``, in 3D ``(detector rows, angles, detector columns)``."""
        if self.ndim == 2:
            return (1, len(self.angles), self.detector_pixels)
        return (self.detector_pixels[0], len(self.angles), self.detector_pixels[1])

    @property
    def radius(self) -> float:
        """Distance of the farthest corner of a slice from the axis in mm: the circle that holds it at every angle."""
        sides = zip(self.image_shape[-2:], self.pixel_size[-2:], self.image_offset[-2:], strict=True)
        return math.hypot(*(0.5 * n * p + abs(offset) for n, p, offset in sides))

    @property
    def magnification(self) -> float:
        """Size of the detector relative to its image at the rotation axis: 1 for parallel beams."""
        return 1.0

    @property
    def reach(self) -> float:
        """As far from the axis as the circle around the image projects, mm on the detector."""
        return self.radius

    def pixel_positions(self) -> tuple[Array, ...]:
        """Coordinates (mm) of the pixels' centres along each axis of the image; the rotation axis is at 0."""
        axes = zip(self.image_shape, self.pixel_size, self.image_offset, strict=True)
        return tuple(np.asarray((np.arange(n) - (n - 1) / 2) * p + offset) for n, p, offset in axes)

    @property
    def view_widths(self) -> Array:
        """The angle that each view stands for, in radians: half the way to both neighbours.

        Across the ends of a scan that closes the circle (for parallel beams over at most half a turn: the half circle
        of directions), neighbours are the views at the other end, at no distance if the first direction was measured
        twice. A scan does so if its ends are at most 1.5 times the largest step apart. At the ends of other scans, half
        the step on the inner side stands for what is missing.
        """
        angles = np.asarray(self.angles)
        if len(angles) == 1:
            return np.full(1, math.pi)
        steps, span = np.diff(angles), float(angles[-1] - angles[0])
        half = self.kind == "parallel" and span <= 0.5 * TURN * (1 + 1e-9)
        gap = max((0.5 if half else 1.0) * TURN - span, 0.0)
        first, last = (gap, gap) if gap <= 1.5 * steps.max() else (steps[0], steps[-1])
        return 0.5 * (np.append(steps, last) + np.append(first, steps))

    @property
    def ends(self) -> tuple[float, float]:
        """Where the angular range begins and ends, radians: ``arc`` apart."""
        widths, angles = self.view_widths, self.angles
        if len(angles) == 1:
            return angles[0] - widths[0] / 2, angles[0] + widths[0] / 2
        first, last = (angles[0] + angles[1]) / 2, (angles[-2] + angles[-1]) / 2  # between the first two, the last two
        return float(first - widths[0]), float(last + widths[-1])

    @property
    def arc(self) -> float:
        """Length of the angular range in radians, the sum of ``view_widths``."""
        return float(self.view_widths.sum())

    def detector_positions(self) -> Array:
        """Coordinates s_k (mm) of the detector pixels across the rotation axis."""
        n, spacing, offset = self.across()
        return np.asarray((np.arange(n) - (n - 1) / 2) * spacing + offset)

    def across(self) -> tuple[int, float, float]:
        """Number, spacing and offset across the rotation axis."""
        if self.ndim == 2:
            return self.detector_pixels, self.detector_spacing, self.detector_offset
        return self.detector_pixels[1], self.detector_spacing[1], self.detector_offset[1]

    # --- parts of a scan ---

    def select(self, views: Sequence[int] | slice) -> Self:
        """Return the scan with only these views; ``sinogram[..., views, :]`` are its data.

        Raises
        ------
        ValueError
            there is no such view, or none is left.
        """
        try:
            chosen = np.asarray(self.angles)[views if isinstance(views, slice) else np.asarray(views, dtype=int)]
        except IndexError as error:
            raise ValueError(f"views out of range: there are {len(self.angles)}") from error
        return replace(self, angles=tuple(chosen))

    def views_between(self, start: float, stop: float) -> list[int]:
        """Indices of the views with ``start <= angle < stop`` (radians)."""
        return [k for k, angle in enumerate(self.angles) if start <= angle < stop]

    def limited_angle(self, start: float, stop: float) -> Self:
        """Return the scan with the views with ``start <= angle < stop`` (radians), see :meth:`views_between`.

        Raises
        ------
        ValueError
            no view is there.
        """
        return self.select(self.views_between(start, stop))

    def sparse_view(self, step: int) -> Self:
        """Return the scan with every ``step``-th view, beginning with the first.

        Raises
        ------
        ValueError
            the step is not positive.
        """
        at_least(1, step=step)
        return self.select(slice(None, None, step))

    # --- rays ---

    def rays(self) -> tuple[Array, Array]:
        """Return a point (mm) and the unit direction of every ray, ``(angles, detectors, 2)`` each, as (x, y)."""
        raise NotImplementedError

    def frames(self) -> tuple[Array, Array]:
        """Return ``e_s`` and ``e_t`` of every view, ``(angles, 2)`` each."""
        phi = np.asarray(self.angles)
        return np.stack([np.cos(phi), np.sin(phi)], -1), np.stack([-np.sin(phi), np.cos(phi)], -1)

    # --- ODL ---

    def to_odl(self) -> tuple[DiscretizedSpace, ODLGeometry]:
        """Return ODL's image space and geometry, for ``odl.applications.tomo.RayTransform(space, geometry)``.

        In 3D, ODL orders axes (x, y, z) and (angles, ...); this project (z, x, y) and (rows, angles, columns).
        """
        from odl.core.discr import nonuniform_partition, uniform_discr

        shape, sizes = self.image_shape, self.pixel_size
        if self.ndim == 3:
            shape, sizes = (*shape[1:], shape[0]), (*sizes[1:], sizes[0])
        middle = self.image_offset if self.ndim == 2 else (*self.image_offset[1:], self.image_offset[0])
        half = [0.5 * n * p for n, p in zip(shape, sizes, strict=True)]
        low, high = ([m + sign * h for m, h in zip(middle, half, strict=True)] for sign in (-1, 1))
        space = uniform_discr(low, high, shape, dtype="float32")
        start, stop = self.ends
        angles = nonuniform_partition(np.asarray(self.angles), min_pt=start, max_pt=stop)
        return space, self.odl_geometry(angles)

    def odl_geometry(self, angles: RectPartition) -> ODLGeometry:
        """Return ODL's geometry for a partition of the angles."""
        raise NotImplementedError

    # --- dictionaries ---

    def to_dict(self) -> dict[str, object]:
        """Return the geometry as numbers, strings and lists, for YAML or JSON; ``geometry_from_dict`` reads it."""
        values = asdict(self)
        if not any(self.image_offset):
            del values["image_offset"]
        return {"type": self.kind} | {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


# --- checks and helpers ---


def floats(value: object) -> Array | None:
    """Numbers, nested or not, as an array; None for what are no numbers."""
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None


def numbers(value: object, count: int, name: str, *, positive: bool = True, whole: bool = False) -> tuple[float, ...]:
    """Return ``count`` finite numbers; a single one is repeated, except for whole numbers.

    Raises
    ------
    ValueError
        the value is something else.
    """
    array = floats(value)
    if array is None or array.ndim > 1:
        values: tuple[float, ...] = ()
    else:
        values = tuple(array.tolist() if array.ndim else [float(array)] * (1 if whole else count))
    wanted = "whole number" if whole else "number"
    good = len(values) == count and all(math.isfinite(v) and (v > 0 or not positive) for v in values)
    if not good or (whole and any(v != int(v) for v in values)):
        raise ValueError(
            f"{name} must be {count} {'positive' if positive else 'finite'} {wanted}{'s' * (count > 1)}, got {value!r}"
        )
    return values


def _angles(values: object) -> tuple[float, ...]:
    given = floats(values)
    if given is None:
        raise ValueError(f"angles must be numbers in radians, got {values!r}")
    angles = np.atleast_1d(given)
    if angles.ndim != 1 or angles.size == 0 or not np.isfinite(angles).all():
        raise ValueError(f"angles must be a non-empty list of finite numbers, got shape {angles.shape}")
    low, high = float(angles.min()), float(angles.max())
    # One turn plus rounding; scans that start anywhere within two turns of zero.
    if high - low > TURN * (1 + 1e-6) or max(-low, high) > 2 * TURN:
        raise ValueError(
            f"angles must be in radians and within one turn, got {low:g} ... {high:g}: if these are degrees, convert "
            "them with numpy.deg2rad (or give angles_degrees in a file)"
        )
    wrong = np.flatnonzero(np.diff(angles) <= 0)
    if wrong.size == angles.size - 1 and angles.size > 1 and bool((np.diff(angles) < 0).all()):
        raise ValueError("angles decrease: turn them round, and the rows of the sinogram with them (sinogram.flip(-2))")
    if wrong.size:
        k = int(wrong[0])
        raise ValueError(
            f"angles must increase strictly, but angle {k} is {angles[k]:g} and angle {k + 1} is {angles[k + 1]:g}: "
            "sort them, and the rows of the sinogram with them"
        )
    return tuple(angles.tolist())


def equispaced(start: float, arc: float, views: int) -> tuple[float, ...]:
    """Return ``start + k arc / views`` for k < views.

    Raises
    ------
    ValueError
        the arc is not positive, or the number no whole one.
    """
    if not arc > 0:
        raise ValueError(f"need a positive arc, got arc={arc:g}")
    count = int(numbers(views, 1, "views", whole=True)[0])
    return tuple(start + k * arc / count for k in range(count))


def odl_detector(*axes: tuple[int, float, float]) -> RectPartition:
    """Return ODL's partition of a detector with these numbers, spacings and offsets along its axes."""
    from odl.core.discr import uniform_partition

    low = [offset - 0.5 * n * spacing for n, spacing, offset in axes]
    high = [offset + 0.5 * n * spacing for n, spacing, offset in axes]
    return uniform_partition(low, high, [n for n, _, _ in axes])
