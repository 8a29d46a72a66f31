"""Filtered back-projection in physical units, with ODL's filters; parallel and fan beams."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recon.operators.geometry import FanBeam, Geometry
from recon.operators.tomography import RayTransform

FILTERS = ("ram-lak", "shepp-logan", "cosine", "hamming", "hann")
_FULL_TURN = 2 * math.pi * (1 - 1e-3)  # scans count as a full turn from here on


class FilteredBackProjection(nn.Module):
    """Reconstructs attenuation (1/mm) from line integrals, ``(batch, 1, angles, detectors) -> (batch, 1, H, W)``.

    With Delta_k the angle that view k stands for, s the detector coordinate, * the convolution with the ramp ``|f|``
    (f in cycles per mm) times the window of the filter, and w redundancy weights that add up to one over the
    measurements of the same line:

        parallel:   x(p) = sum_k Delta_k [|f| * (w y_k)](<p, e_s>)
        fan:        x(p) = sum_k Delta_k (R / U)^2 [|f| * (w c y_k)](M R <p, e_s> / U) M,    U = R + <p, e_t>,
                    c(s) = L / sqrt(L^2 + s^2),  M = L / R,

    with R the source's and L = R + detector_distance the detector's distance from axis and source (Kak and Slaney,
    Principles of Computerized Tomographic Imaging, equations 3.30 and 3.97-3.107). w is 1/2 for a full turn; 1 where
    every line is seen at most about once; and Parker's weights (Med. Phys. 9, 1982), smooth in the angle, in between.
    Scans of less than half a turn (plus the fan angle) lack data, and the formula then adds up what is there.

    The filtered data are ODL's, ``odl.applications.tomo.fbp_filter_op``, with the data and the scale prepared so that
    they have the meaning above: ODL's filter divides by the length of the angular range, and takes the angles for
    equally spaced. Back-projection is by linear interpolation of the filtered data at each pixel, and not the transpose
    A^T that ODL's ``fbp_op`` takes: on the CPU this ignores the offset of parallel detectors, leaves out pixels between
    the rays of a coarse detector, and has other weights than c and (R / U)^2 for fan beams ("correct in the limit of
    fan angle 0", as its documentation has it).
    """

    def __init__(
        self,
        geometry: Geometry | RayTransform,
        filter: str = "ram-lak",
        frequency_scaling: float = 1.0,
        padding: bool = True,
    ) -> None:
        """Prepare the filter; neither ASTRA nor a matrix is needed.

        Args:
            geometry: the scan, or an operator with one.
            filter: "ram-lak", "shepp-logan", "cosine", "hamming" or "hann", from sharp to smooth.
            frequency_scaling: cut-off relative to the highest frequency of the detector, in (0, 1].
            padding: whether rows are padded with zeros to almost twice the length, against the wrap-around of the
                discrete convolution.

        Raises:
            ValueError: for cone beams, an unknown filter, or a scaling out of range.
        """
        super().__init__()
        geometry = geometry.geometry if isinstance(geometry, RayTransform) else geometry
        if geometry.ndim != 2:
            raise ValueError(f"filtered back-projection serves parallel and fan beams, got {geometry.kind}")
        if filter not in FILTERS:
            raise ValueError(f"filter must be one of {', '.join(FILTERS)}, got {filter!r}")
        if not 0.0 < frequency_scaling <= 1.0:
            raise ValueError(f"frequency_scaling must be in (0, 1], got {frequency_scaling}")
        self.geometry = geometry
        self.filter = filter
        self.frequency_scaling = float(frequency_scaling)
        self._filter = _odl_filter(geometry, filter, frequency_scaling, padding)
        # ODL's filter is |f| pi / arc.
        weights = redundancy_weights(geometry) * geometry.view_widths[:, None] * geometry.arc / math.pi
        if isinstance(geometry, FanBeam):
            length = geometry.source_distance + geometry.detector_distance
            weights = weights * geometry.magnification * length / np.hypot(length, geometry.detector_positions())
        self._weights = torch.from_numpy(weights)

    @torch.no_grad()
    def forward(self, sinogram: Tensor) -> Tensor:
        """Return the reconstruction, in the precision and on the device of the data. No gradients pass.

        Raises:
            ValueError: the data do not fit the geometry.
        """
        if sinogram.ndim != 4 or tuple(sinogram.shape[1:]) != self.geometry.range_shape or sinogram.is_complex():
            raise ValueError(
                f"expected real data of shape (batch, {', '.join(map(str, self.geometry.range_shape))}), got "
                f"{tuple(sinogram.shape)}, {sinogram.dtype}"
            )
        filtered = torch.empty(sinogram.shape, dtype=torch.float64)
        for image, slot in zip(sinogram.double().cpu()[:, 0] * self._weights, filtered[:, 0], strict=True):
            slot.copy_(torch.from_numpy(np.array(self._filter(image.numpy()).data)))
        dtype = torch.promote_types(sinogram.dtype, torch.float32) if sinogram.is_floating_point() else torch.float32
        return back_project(self.geometry, filtered.to(sinogram.device, dtype)).to(dtype)


def redundancy_weights(geometry: Geometry) -> NDArray[np.float64]:
    """Return w(angle, detector), ``(angles, detectors)``: one over the measurements of each line that was seen.

    With beta the angle from the start, gamma the angle of the ray to the central ray (growing with s) and
    ``2 delta = arc - pi``, the ray (beta, gamma) is seen again as ``(beta + pi - 2 gamma, -gamma)``, and

        w = sin^2(pi/4 beta / (delta + gamma))                  for beta < 2 (delta + gamma)
            sin^2(pi/4 (pi + 2 delta - beta) / (delta - gamma)) for beta > pi + 2 gamma
            1                                                   in between,

    which needs ``delta >= |gamma|``. Parallel beams have gamma = 0.
    """
    gamma = np.zeros(geometry.detector_pixels)
    if isinstance(geometry, FanBeam):
        length = geometry.source_distance + geometry.detector_distance
        gamma = np.arctan2(geometry.detector_positions(), length)
    shape = (len(geometry.angles), len(gamma))
    if geometry.arc >= _FULL_TURN:
        return np.full(shape, 0.5)
    delta = 0.5 * (geometry.arc - math.pi)
    if delta <= max(float(np.abs(gamma).max()), 1e-9):
        return np.ones(shape)
    beta = (np.asarray(geometry.angles) - geometry.ends[0])[:, None]
    rising = np.sin(0.25 * math.pi * np.minimum(beta / (delta + gamma), 2.0)) ** 2
    falling = np.sin(0.25 * math.pi * np.clip((math.pi + 2 * delta - beta) / (delta - gamma), 0.0, 2.0)) ** 2
    return np.asarray(rising * falling)


def back_project(geometry: Geometry, rows: Tensor) -> Tensor:
    """Return ``sum_k q_k(s(p)) g(p)`` at every pixel p, q linear between detector pixels and zero outside.

    ``s = <p, e_s>`` and g = 1 for parallel beams; ``s = L <p, e_s> / U`` and ``g = (R / U)^2`` for fan beams.
    """
    options: dict[str, Any] = {"dtype": rows.dtype, "device": rows.device}
    axes = [(torch.arange(n, **options) - (n - 1) / 2) * p for n, p in zip(*_grid(geometry), strict=True)]
    x, y = axes[0][:, None], axes[1][None, :]
    pixels, spacing, offset = geometry.across()
    # zeros on both sides, and one more so that index k + 1 exists
    padded = nn.functional.pad(rows[:, 0], (1, 2))
    image = torch.zeros((len(rows), *geometry.image_shape), **options)
    for view, angle in enumerate(geometry.angles):
        cos, sin = math.cos(angle), math.sin(angle)
        position: Tensor = x * cos + y * sin
        gain: Tensor | float = 1.0
        if isinstance(geometry, FanBeam):
            ratio = geometry.source_distance / (geometry.source_distance - x * sin + y * cos)
            position = position * ratio * geometry.magnification
            gain = ratio.square()
        index = ((position - offset) / spacing + (pixels + 1) / 2).clamp(0, pixels + 1)
        lower = index.floor()
        fraction, column = index - lower, lower.long()
        row = padded[:, view]
        image += gain * ((1 - fraction) * row[:, column] + fraction * row[:, column + 1])
    return image[:, None]


def _grid(geometry: Geometry) -> tuple[tuple[int, ...], tuple[float, ...]]:
    return geometry.image_shape, geometry.pixel_size


class _NoProjector:
    """Stands where ODL expects a backend: its filter needs only the spaces of the ray transform."""

    def call_forward(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("only the filter of ODL is used")

    call_backward = call_forward


def _odl_filter(geometry: Geometry, filter_type: str, frequency_scaling: float, padding: bool) -> Any:
    """Return ODL's filter operator for equally spaced angles over the same arc."""
    from odl.applications.tomo.analytic.filtered_back_projection import fbp_filter_op
    from odl.applications.tomo.operators.ray_trafo import RayTransform as ODLRayTransform
    from odl.core.discr import uniform_discr, uniform_partition

    # Any image will do, except that ODL takes one with pixels of area 1 for unweighted, and rescales the filter for it.
    space = uniform_discr([-1, -1], [1, 1], (3, 3), dtype="float64")
    angles = uniform_partition(*geometry.ends, len(geometry.angles))
    transform = ODLRayTransform(space, geometry.odl_geometry(angles), impl=_NoProjector)
    return fbp_filter_op(transform, padding, filter_type, frequency_scaling)
