"""A measured CT scan as a plain record: line integrals, angles and distances in physical units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.errors import DataError
from datasets.scans.angles import check_turn
from recon.operators.tomography.beams import FanBeam, ParallelBeam, offset_from_rotation_centre


@dataclass(frozen=True)
class Distances:
    """Those of a fan beam, in mm."""

    source: float
    """From the source to the rotation axis."""
    detector: float
    """From the rotation axis to the detector."""

    @property
    def whole(self) -> float:
        """From the source to the detector."""
        return self.source + self.detector


@dataclass(frozen=True)
class Scan:
    """Line integrals of one slice and the positions of their rays (``recon.operators.tomography.beams``).

    Raises
    ------
    DataError
        on construction, where values are not finite, shapes do not fit, angles are not strictly increasing or span more
        than one turn (as degrees taken for radians do), or a length is not positive.
    """

    sinogram: Tensor
    """Line integrals of the attenuation, (angles, detectors), float64."""
    angles: Tensor
    """(angles,) radians, float64, strictly increasing."""
    detector_spacing: float
    """Pitch of the detector pixels in mm, on the detector."""
    distances: Distances | None = None
    """Of the source and the detector; None for parallel rays."""
    rotation_centre: float | None = None
    """Detector pixel onto which the rotation axis projects: pixels count from 0 at their centres, and None is the
    middle of the detector, (detectors - 1) / 2."""
    weights: Tensor | None = None
    """Weights of the weighted L2 fidelity, of the sinogram's shape, 0 for rays that were not measured; None if the file
    does not tell."""
    repeats: Tensor | None = None
    """(angles,) how many views of the file were averaged for each; None: none was. ``weights`` count all of them."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What else the file says."""
    path: Path = Path()
    warnings: tuple[str, ...] = ()
    """What was noticed while reading and may make the result wrong, each a sentence that names the file."""

    def __post_init__(self) -> None:
        """Check that everything fits together."""
        if self.sinogram.ndim != 2 or 0 in self.sinogram.shape:
            raise DataError(
                f"{self.path}: a sinogram of shape {tuple(self.sinogram.shape)}; valid is (angles, detectors)"
            )
        if not torch.isfinite(self.sinogram).all():
            bad = int((~torch.isfinite(self.sinogram)).sum())
            raise DataError(f"{self.path}: {bad} of {self.sinogram.numel()} values of the sinogram are NaN or infinite")
        if self.weights is not None and self.weights.shape != self.sinogram.shape:
            raise DataError(
                f"{self.path}: weights of shape {tuple(self.weights.shape)} for a sinogram of another shape"
            )
        self._check_angles()
        source = None if self.distances is None else self.distances.source
        for name, value in (("detector_spacing", self.detector_spacing), ("source_distance", source)):
            if value is not None and not 0 < value < math.inf:
                raise DataError(f"{self.path}: {name} is {value} mm; it must be positive and finite")
        if self.distances is not None and not 0 <= self.distances.detector < math.inf:
            raise DataError(f"{self.path}: detector_distance is {self.distances.detector} mm; it must be at least 0")
        if self.rotation_centre is not None and not 0 <= self.rotation_centre <= self.sinogram.shape[1] - 1:
            raise DataError(
                f"{self.path}: rotation_centre is {self.rotation_centre}; valid are detector pixels 0 to "
                f"{self.sinogram.shape[1] - 1}"
            )

    def _check_angles(self) -> None:
        angles, views = self.angles, self.sinogram.shape[0]
        if angles.shape != (views,):
            shape = tuple(self.sinogram.shape)
            raise DataError(
                f"{self.path}: {angles.numel()} angles for a sinogram of shape {shape}; valid is (angles, detectors), "
                f"so {views} angles, unless the sinogram is transposed"
            )
        if not torch.isfinite(angles).all():
            raise DataError(f"{self.path}: angles are NaN or infinite")
        check_turn(angles.numpy(), self.path)
        if (angles.diff() <= 0).any():
            view = int(torch.nonzero(angles.diff() <= 0)[0]) + 1
            raise DataError(
                f"{self.path}: angle {view} ({float(angles[view]):g} rad) does not exceed the one before "
                f"({float(angles[view - 1]):g} rad); sort the views by their angles, each angle once"
            )

    @property
    def magnification(self) -> float:
        """Size of the detector relative to its image at the rotation axis; 1 for parallel rays."""
        return 1.0 if self.distances is None else self.distances.whole / self.distances.source

    @property
    def centre(self) -> float:
        """The rotation centre as a number: ``rotation_centre``, or the middle of the detector."""
        return (self.sinogram.shape[1] - 1) / 2 if self.rotation_centre is None else self.rotation_centre

    def geometry(
        self, image_shape: tuple[int, int], pixel_size: float | tuple[float, float] | None = None
    ) -> ParallelBeam | FanBeam:
        """The geometry of the scan for pictures of ``image_shape`` (H, W) with pixels of ``pixel_size`` mm.

        Without ``pixel_size``, pixels are as large as a detector pixel at the rotation axis, spacing / magnification.

        Raises
        ------
        ValueError
            see ``recon.operators.tomography.beams``; e.g. a source that lies inside the picture.
        """
        size = self.detector_spacing / self.magnification if pixel_size is None else pixel_size
        sides = size if isinstance(size, tuple) else (size, size)
        detectors = self.sinogram.shape[1]
        offset = offset_from_rotation_centre(self.centre, detectors, self.detector_spacing)
        angles = tuple(self.angles.tolist())
        if self.distances is None:
            return ParallelBeam(image_shape, sides, angles, detectors, self.detector_spacing, offset)
        return FanBeam(
            image_shape,
            sides,
            angles,
            detectors,
            self.detector_spacing,
            offset,
            source_distance=self.distances.source,
            detector_distance=self.distances.detector,
        )

    def warned(self, *said: str) -> Scan:
        """The scan with more warnings."""
        return replace(self, warnings=(*self.warnings, *said)) if said else self

    def select(self, views: slice | Sequence[int]) -> Scan:
        """The scan with only these views: ``slice(0, 180)`` limits the angle, ``slice(None, None, 6)`` leaves gaps.

        Raises
        ------
        DataError
            none is left, or they are not in increasing order.
        IndexError
            there is no such view.
        """
        chosen = views if isinstance(views, slice) else list(views)
        weights = None if self.weights is None else self.weights[chosen]
        repeats = None if self.repeats is None else self.repeats[chosen]
        return replace(
            self, sinogram=self.sinogram[chosen], angles=self.angles[chosen], weights=weights, repeats=repeats
        )


def lodopab_geometry() -> ParallelBeam:
    """The geometry of LoDoPaB-CT (Leuschner et al., Scientific Data 8:109, 2021), that of ODL for its pictures.

    362 x 362 pixels on 260 x 260 mm; 1000 angles (k + 1/2) π / 1000; 513 detector pixels along the picture's diagonal.
    """
    side = 260.0
    return ParallelBeam.equispaced(
        (362, 362),
        side / 362,
        1000,
        start=math.pi / 2000,
        detector_pixels=513,
        detector_spacing=math.sqrt(2) * side / 513,
    )
