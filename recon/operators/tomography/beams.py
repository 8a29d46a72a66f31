"""Scan geometries of computed tomography as immutable values in millimetres and radians.

Axes are those of ODL, so that arrays need no reordering. An image ``x[i, j]`` (row i, column j) has its centre at the
origin; the x axis runs along the rows' index (down the picture), the y axis along the columns' index (to the right):

    x_i = (i - (H - 1) / 2) * pixel_size[0],     y_j = (j - (W - 1) / 2) * pixel_size[1].

At angle phi, with ``e_s = (cos phi, sin phi)`` along the detector and ``e_t = (-sin phi, cos phi)`` along the central
ray, detector pixel k sits at the coordinate

    s_k = (k - (n - 1) / 2) * detector_spacing + detector_offset

from the point onto which the rotation axis (the origin) projects. Growing angles turn counter-clockwise on the screen.
docs/geometry.md relates this to the conventions of ASTRA, scikit-image and tomopy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from recon.operators.tomography.geometry import TURN, Array, Geometry, equispaced, floats, numbers, odl_detector

if TYPE_CHECKING:  # ODL takes seconds to import
    from odl.applications.tomo.geometry import Geometry as ODLGeometry
    from odl.core.discr import RectPartition

__all__ = [
    "ConeBeam",
    "FanBeam",
    "Geometry",
    "ParallelBeam",
    "geometry_from_dict",
    "geometry_to_dict",
    "offset_from_rotation_centre",
]


def offset_from_rotation_centre(centre: float, detector_pixels: int, detector_spacing: float) -> float:
    """Return the detector offset in mm for a rotation axis that projects onto the (fractional) pixel ``centre``.

    ``offset = ((n - 1) / 2 - centre) * spacing``: pixels count from 0 at their centres, as in tomopy, so that an axis
    in the middle has ``centre = (n - 1) / 2`` and offset 0.
    """
    return ((detector_pixels - 1) / 2 - centre) * detector_spacing


@dataclass(frozen=True)
class ParallelBeam(Geometry):
    """Parallel rays along ``e_t``: ray (phi, s) is ``{p : <p, e_s> = s}``."""

    kind: ClassVar[str] = "parallel"

    @classmethod
    def skimage(
        cls,
        image_shape: Sequence[int],
        theta: Sequence[float],
        detector_pixels: int | None = None,
        pixel_size: float = 1.0,
    ) -> ParallelBeam:
        """The scan of ``skimage.transform.radon(image, theta)``; its data are the transposed result * pixel_size.

        scikit-image turns pictures about their pixel n // 2, which projects onto pixel n // 2 of its rows; theta (in
        degrees, increasing) is 90 degrees behind phi. The rows have as many pixels as the (square) picture has in a
        row with ``circle=True``, the default here, and ``ceil(sqrt(2) n)`` with ``circle=False``.
        """
        pixels = max(image_shape) if detector_pixels is None else detector_pixels
        draft = cls(tuple(image_shape), pixel_size, tuple(np.deg2rad(theta)), pixels, pixel_size)  # type: ignore[arg-type]
        return draft.turned_as_skimage()

    def turned_as_skimage(self) -> ParallelBeam:
        """The scan with angles 90 degrees on, and with the axis in pixel n // 2 of picture and detector."""
        pixels, spacing, _ = self.across()
        sides = zip(self.image_shape, self.pixel_size, strict=True)
        return replace(
            self,
            angles=tuple(angle + math.pi / 2 for angle in self.angles),
            detector_offset=offset_from_rotation_centre(pixels // 2, pixels, spacing),
            image_offset=tuple(offset_from_rotation_centre(n // 2, n, size) for n, size in sides),
        )

    def rays(self) -> tuple[Array, Array]:
        e_s, e_t = self.frames()
        points = self.detector_positions()[None, :, None] * e_s[:, None]
        return points, np.broadcast_to(e_t[:, None], points.shape)

    def odl_geometry(self, angles: RectPartition) -> ODLGeometry:
        from odl.applications.tomo.geometry.parallel import Parallel2dGeometry

        return Parallel2dGeometry(angles, odl_detector(self.across()))


@dataclass(frozen=True)
class FanBeam(Geometry):
    """Rays from the source ``-source_distance e_t`` to the points ``detector_distance e_t + s e_s`` of a flat detector.

    Attributes
    ----------
    source_distance
        from the source to the rotation axis in mm; the source stays outside the image.
    detector_distance
        from the rotation axis to the detector in mm; 0 is a virtual detector through the axis.
    """

    source_distance: float = 0.0
    detector_distance: float = 0.0

    kind: ClassVar[str] = "fan"
    full: ClassVar[float] = TURN

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "source_distance", float(self.source_distance))
        object.__setattr__(self, "detector_distance", float(self.detector_distance))
        if not (self.radius < self.source_distance < math.inf):
            raise ValueError(
                f"source_distance is {self.source_distance:g} mm: the source must stay outside the image, whose "
                f"corners are {self.radius:g} mm from the rotation axis"
            )
        if not 0.0 <= self.detector_distance < math.inf:
            raise ValueError(f"detector_distance must be finite and not negative, got {self.detector_distance:g} mm")

    @property
    def length(self) -> float:
        """From the source to the detector, mm."""
        return self.source_distance + self.detector_distance

    @property
    def magnification(self) -> float:
        """Size of the detector relative to its image at the rotation axis."""
        return self.length / self.source_distance

    @property
    def reach(self) -> float:
        """As far from the axis as the circle around the image projects, mm on the detector."""
        return self.length * math.tan(math.asin(self.radius / self.source_distance))

    def rays(self) -> tuple[Array, Array]:
        e_s, e_t = self.frames()
        direction = self.length * e_t[:, None] + self.detector_positions()[None, :, None] * e_s[:, None]
        direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        return np.broadcast_to(-self.source_distance * e_t[:, None], direction.shape), direction

    def odl_geometry(self, angles: RectPartition) -> ODLGeometry:
        from odl.applications.tomo.geometry.conebeam import FanBeamGeometry

        detector = odl_detector(self.across())
        return FanBeamGeometry(angles, detector, self.source_distance, self.detector_distance)


@dataclass(frozen=True)
class ConeBeam(FanBeam):
    """Circular cone beam: a fan in the plane z = 0, and a flat detector with rows along the rotation axis z.

    Images are ``(D, H, W)`` with ``z_d = (d - (D - 1) / 2) * pixel_size[0]``; ``detector_pixels``, ``detector_spacing``
    and ``detector_offset`` are pairs (along z, across), and data are ``(rows, angles, columns)``.
    """

    kind: ClassVar[str] = "cone"
    ndim: ClassVar[int] = 3

    def rays(self) -> tuple[Array, Array]:
        raise NotImplementedError("rays are listed in 2D only")

    def odl_geometry(self, angles: RectPartition) -> ODLGeometry:
        from odl.applications.tomo.geometry.conebeam import ConeBeamGeometry

        along = (self.detector_pixels[0], self.detector_spacing[0], self.detector_offset[0])
        detector = odl_detector(self.across(), along)
        return ConeBeamGeometry(angles, detector, self.source_distance, self.detector_distance)


_KINDS: dict[str, type[Geometry]] = {cls.kind: cls for cls in (ParallelBeam, FanBeam, ConeBeam)}


def geometry_from_dict(values: Mapping[str, Any]) -> Geometry:
    """Return the geometry that a dictionary (of a YAML or JSON file) describes.

    Keys are ``type`` (parallel, fan or cone) and the fields of the class. Instead of ``angles`` (a list in radians)
    there may be ``angles_degrees``; either is a list or ``{start, arc, views}`` for equispaced ones. Instead of
    ``detector_offset`` there may be ``rotation_centre`` in detector pixels (2D). With ``convention: skimage`` angles
    are those of ``skimage.transform.radon``, and pictures turn about the pixel n // 2: see ``ParallelBeam.skimage``.

    Raises
    ------
    ValueError
        a key is unknown or missing, or a value not valid; the message names it.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"a geometry is a mapping with the keys type, image_shape, ..., got {type(values).__name__}")
    rest = dict(values)
    kind = rest.pop("type", None)
    if kind not in _KINDS:
        raise ValueError(f"geometry type must be one of {', '.join(_KINDS)}, got {kind!r}")
    cls = _KINDS[kind]
    convention = rest.pop("convention", None)
    if "angles_degrees" in rest:
        if "angles" in rest:
            raise ValueError("give either angles or angles_degrees")
        rest["angles"] = _listed(rest.pop("angles_degrees"), "angles_degrees", math.pi / 180)
    elif "angles" in rest:
        rest["angles"] = _listed(rest["angles"], "angles", 1.0)
    if "rotation_centre" in rest:
        if "detector_offset" in rest or cls.ndim == 3:
            raise ValueError("rotation_centre stands for detector_offset, in 2D: give one of them")
        centre = numbers(rest.pop("rotation_centre"), 1, "rotation_centre", positive=False)[0]
        pixels = numbers(rest.get("detector_pixels"), 1, "detector_pixels", whole=True)[0]
        spacing = numbers(rest.get("detector_spacing"), 1, "detector_spacing")[0]
        rest["detector_offset"] = offset_from_rotation_centre(centre, int(pixels), spacing)
    names = [field.name for field in fields(cls)]
    if unknown := sorted(set(rest) - set(names)):
        raise ValueError(f"{kind} geometry has no {', '.join(unknown)}; valid are {', '.join(names)}")
    if missing := [name for name in names if name not in rest and not name.endswith("_offset")]:
        raise ValueError(f"{kind} geometry lacks {', '.join(missing)}")
    return cls(**rest) if convention is None else _of_skimage(cls(**rest), convention, rest)


def _of_skimage(geometry: Geometry, convention: object, given: Mapping[str, object]) -> Geometry:
    """The scan of ``convention: skimage``, whose axis is in pixel n // 2 of picture and detector, whatever their pitch.

    Raises
    ------
    ValueError
        another convention, other beams, or offsets, which the convention fixes.
    """
    if convention != "skimage":
        raise ValueError(f"convention must be skimage, or left out, got {convention!r}")
    if not isinstance(geometry, ParallelBeam):
        raise ValueError(f"convention: skimage is for parallel beams, got {geometry.kind}")
    if fixed := sorted({"detector_offset", "image_offset"} & set(given)):
        raise ValueError(
            f"convention: skimage puts the axis into pixel n // 2: leave out {' and '.join(fixed)} (or rotation_centre)"
        )
    return geometry.turned_as_skimage()


def geometry_to_dict(geometry: Geometry) -> dict[str, object]:
    """The inverse of :func:`geometry_from_dict`, in plain values; equispaced angles as start, arc and views."""
    values = geometry.to_dict()
    start, views = geometry.angles[0], len(geometry.angles)
    for turn in (math.pi, TURN, geometry.arc):
        if views > 1 and equispaced(start, turn, views) == geometry.angles:
            values["angles"] = {"start": start, "arc": turn, "views": views}
            break
    return values


def _listed(value: object, name: str, unit: float) -> list[float]:
    """Angles in radians from a list, or from start, arc and views."""
    if isinstance(value, Mapping):
        if not {"arc", "views"} <= set(value) <= {"start", "arc", "views"}:
            raise ValueError(f"{name} must be a list or have the keys start, arc, views; got {', '.join(value)}")
        start, arc = (numbers(value.get(k, 0.0), 1, f"{name}.{k}", positive=False)[0] for k in ("start", "arc"))
        views = int(numbers(value["views"], 1, f"{name}.views", whole=True)[0])
        return [unit * angle for angle in equispaced(start, arc, views)]
    angles = floats(value)
    if angles is None or angles.ndim != 1:
        raise ValueError(f"{name} must be a list of numbers, got {value!r}")
    return [unit * angle for angle in angles.tolist()]
