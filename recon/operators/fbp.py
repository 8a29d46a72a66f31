"""Filtered back-projection in physical units, for parallel and fan beams."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from recon.operators.geometry import FanBeam, Geometry
from recon.operators.ramp import FILTERS, RampFilter
from recon.operators.redundancy import redundancy_weights
from recon.operators.tomography import RayTransform

__all__ = ["FILTERS", "FilteredBackProjection", "back_project"]

_BLOCK = 1 << 16  # pixels that are back-projected at once on the CPU, so that what belongs to them stays in the cache


class FilteredBackProjection(nn.Module):
    """Reconstructs attenuation (1/mm) from line integrals, ``(batch, 1, angles, detectors) -> (batch, 1, H, W)``.

    With Delta_k the angle that view k stands for, s the detector coordinate, * the convolution with the ramp ``|f|``
    (f in cycles per mm) times the window of the filter, and w redundancy weights that add up to one over the
    measurements of the same line:

        parallel:   x(p) = sum_k Delta_k [|f| * (w y_k)](<p, e_s>)
        fan:        x(p) = sum_k Delta_k (R / U)^2 [|f| * (w c y_k)](M R <p, e_s> / U) M,    U = R + <p, e_t>,
                    c(s) = L / sqrt(L^2 + s^2),  M = L / R,

    with R the source's and L = R + detector_distance the detector's distance from axis and source (Kak and Slaney,
    Principles of Computerized Tomographic Imaging, equations 3.30 and 3.97-3.107). The ramp is sampled in space, see
    :mod:`recon.operators.ramp`, and w is that of :mod:`recon.operators.redundancy`: 1/2 for a full turn, smooth for
    short scans and for detectors beside the axis, 1 where lines are seen once. Scans of less than half a turn (plus the
    fan angle) lack data, and the formula then adds up what is there.

    Where the detector is narrower than the image, or beside the axis, rows are continued with zeros as far as the image
    projects: what the filter spreads beyond the edges belongs to the value of the pixels there.

    Back-projection is by linear interpolation of the filtered data at each pixel, and not by the transpose A^T, which
    leaves out pixels between the rays of a coarse detector and has other weights than c and (R / U)^2 for fan beams.
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
        self._continued = _continuation(geometry)
        pixels = geometry.detector_pixels + sum(self._continued)
        self._filter = RampFilter(pixels, geometry.detector_spacing, filter, frequency_scaling, padding)
        weights = redundancy_weights(geometry) * geometry.view_widths[:, None]
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
        dtype = torch.promote_types(sinogram.dtype, torch.float32) if sinogram.is_floating_point() else torch.float32
        if len(sinogram) == 0:
            return sinogram.new_zeros((0, *self.geometry.domain_shape), dtype=dtype)
        weighted = sinogram.to(dtype) * self._weights.to(sinogram.device, dtype)
        rows = self._filter(nn.functional.pad(weighted[:, 0], self._continued))
        return back_project(self.geometry, rows, self._continued[0])


def back_project(geometry: Geometry, rows: Tensor, before: int = 0) -> Tensor:
    """Return ``sum_k q_k(s(p)) g(p)`` at every pixel p, ``(batch, angles, detectors) -> (batch, 1, H, W)``.

    q is linear between detector pixels and zero outside. ``s = <p, e_s>`` and g = 1 for parallel beams; ``s = L
    <p, e_s> / U`` and ``g = (R / U)^2`` for fan beams. The rows may be longer than the detector, by ``before`` pixels
    at its beginning and any number at its end.
    """
    height, width = geometry.image_shape
    image = rows.new_zeros(len(rows), height, width)
    # zeros on both sides, so that positions outside are clamped to a pixel of value 0; and slopes to the next pixel
    values = nn.functional.pad(rows, (1, 2))
    slopes = values[..., 1:] - values[..., :-1]
    step = height if rows.is_cuda else max(1, _BLOCK // width)
    for first in range(0, height, step):
        _add_views(geometry, image[:, first : first + step], first, values, slopes, before)
    return image[:, None]


def _add_views(geometry: Geometry, image: Tensor, first: int, values: Tensor, slopes: Tensor, before: int) -> None:
    """Add all views to rows of the image from ``first`` on, ``(batch, rows, W)``, in memory that is used again."""
    _, spacing, offset = geometry.across()
    x, y = (torch.from_numpy(axis).to(image.device, image.dtype) for axis in geometry.pixel_positions())
    x, y = x[first : first + image.shape[1], None], y[None]
    index, gain = (image.new_empty(image.shape[1:]) for _ in range(2))
    lower = torch.empty_like(index, dtype=torch.int32)
    slope_found, found = (torch.empty_like(index) for _ in range(2))
    zero = before + 1 + (geometry.detector_pixels - 1) / 2 - offset / spacing  # the index of s = 0
    for view, angle in enumerate(geometry.angles):
        cos, sin = math.cos(angle), math.sin(angle)
        if isinstance(geometry, FanBeam):
            # gain = R / U, and s = M gain <p, e_s>
            torch.add(1 - x * (sin / geometry.source_distance), y * (cos / geometry.source_distance), out=gain)
            gain.reciprocal_()
            scale = geometry.magnification / spacing
            torch.add(x * (cos * scale), y * (sin * scale), out=index)
            index.mul_(gain).add_(zero)
            gain.square_()
        else:
            torch.add(x * (cos / spacing) + zero, y * (sin / spacing), out=index)
        index.clamp_(0, values.shape[-1] - 2)
        lower.copy_(index)  # rounds towards zero
        index.frac_()
        for picture, value, slope in zip(image, values[:, view], slopes[:, view], strict=True):
            torch.index_select(value, 0, lower.view(-1), out=found.view(-1))
            torch.index_select(slope, 0, lower.view(-1), out=slope_found.view(-1))
            found.addcmul_(index, slope_found)
            if isinstance(geometry, FanBeam):
                picture.addcmul_(gain, found)
            else:
                picture.add_(found)


def _continuation(geometry: Geometry) -> tuple[int, int]:
    """Return how many pixels before and after the detector (at most its own number) the image projects onto."""
    reach = geometry.radius
    if isinstance(geometry, FanBeam):
        length = geometry.source_distance + geometry.detector_distance
        reach = length * math.tan(math.asin(reach / geometry.source_distance))
    positions = geometry.detector_positions()
    missing = (np.array([reach + positions[0], reach - positions[-1]]) / geometry.detector_spacing).clip(0)
    before, after = np.minimum(np.ceil(missing - 1e-6), geometry.detector_pixels).astype(int)
    return int(before), int(after)
