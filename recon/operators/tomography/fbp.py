"""Filtered back-projection in physical units, for parallel and fan beams."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from recon.errors import one_of
from recon.operators.tomography.beams import FanBeam, Geometry
from recon.operators.tomography.ramp import FILTERS, RAMPS, RampFilter
from recon.operators.tomography.ray_transform import RayTransform
from recon.operators.tomography.redundancy import redundancy_weights

__all__ = ["FILTERS", "FilteredBackProjection", "back_project"]

# pixels times views that are back-projected at once: on a CPU, so few that all that belongs to them stays in the cache
_BLOCK, _CUDA_BLOCK = 1 << 16, 1 << 23
_KEPT_BYTES = 1 << 27  # that the weights of interpolation may take: 256² pixels and 240 views in single precision


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
    :mod:`recon.operators.tomography.ramp`, and w is that of :mod:`recon.operators.tomography.redundancy`: 1/2 for a
    full turn, smooth for short scans and for detectors beside the axis, 1 where lines are seen once. Scans of less than
    half a turn (plus the fan angle) lack data, and the formula then adds up what is there.

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
        ramp: str = "space",
    ) -> None:
        """Prepare the filter; neither ASTRA nor a matrix is needed.

        Parameters
        ----------
        geometry
            the scan, or an operator with one.
        filter
            "ram-lak", "shepp-logan", "cosine", "hamming" or "hann", from sharp to smooth.
        frequency_scaling
            cut-off relative to the highest frequency of the detector, in (0, 1].
        padding
            whether rows are padded with zeros to almost twice the length, against the wrap-around of the discrete
            convolution.
        ramp
            "space", sampled there; or "frequency", ODL's samples of ``|f|``, which add a constant to all values (38 HU
            in water): for networks that were trained on such reconstructions.

        Raises
        ------
        ValueError
            for cone beams, an unknown filter or ramp, or a scaling out of range.
        """
        super().__init__()
        geometry = geometry.geometry if isinstance(geometry, RayTransform) else geometry
        if geometry.ndim != 2:
            raise ValueError(f"filtered back-projection serves parallel and fan beams, got {geometry.kind}")
        one_of(FILTERS, filter=filter)
        one_of(RAMPS, ramp=ramp)
        if not 0.0 < frequency_scaling <= 1.0:
            raise ValueError(f"frequency_scaling must be in (0, 1], got {frequency_scaling}")
        self.geometry = geometry
        self.filter = filter
        self.frequency_scaling = float(frequency_scaling)
        self._continued = _continuation(geometry)
        pixels = geometry.detector_pixels + sum(self._continued)
        self._filter = RampFilter(pixels, geometry.detector_spacing, filter, frequency_scaling, padding, ramp)
        weights = redundancy_weights(geometry) * geometry.view_widths[:, None]
        if isinstance(geometry, FanBeam):
            length = geometry.length
            weights = weights * geometry.magnification * length / np.hypot(length, geometry.detector_positions())
        self._weights = torch.from_numpy(weights)
        self._positions = _Positions(geometry, self._continued[0])

    @torch.no_grad()
    def forward(self, sinogram: Tensor) -> Tensor:
        """Return the reconstruction, in the precision and on the device of the data. No gradients pass.

        Raises
        ------
        ValueError
            the data do not fit the geometry.
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
        return back_project(self.geometry, rows, self._continued[0], self._positions)


def back_project(geometry: Geometry, rows: Tensor, before: int = 0, positions: _Positions | None = None) -> Tensor:
    """Return ``sum_k q_k(s(p)) g(p)`` at every pixel p, ``(batch, angles, detectors) -> (batch, 1, H, W)``.

    q is linear between detector pixels and zero outside. ``s = <p, e_s>`` and g = 1 for parallel beams; ``s = L
    <p, e_s> / U`` and ``g = (R / U)^2`` for fan beams. The rows may be longer than the detector, by ``before`` pixels
    at its beginning and any number at its end. ``positions`` are those of earlier calls with the same scan.
    """
    positions = _Positions(geometry, before) if positions is None else positions
    height, width = geometry.image_shape
    image = rows.new_zeros(len(rows), height, width)
    # zeros on both sides, so that positions outside are clamped to a pixel of value 0; and slopes to the next pixel
    values = nn.functional.pad(rows, (1, 2))
    slopes = nn.functional.pad(values[..., 1:] - values[..., :-1], (0, 1))
    block = _CUDA_BLOCK if rows.is_cuda else _BLOCK
    lines = min(height, max(1, block // width))
    views = max(1, block // (lines * width))
    for first in range(0, height, lines):
        part = slice(first, first + lines)
        for view in range(0, len(geometry.angles), views):
            chosen = slice(view, view + views)
            lower, fraction, gain = positions(part, chosen, values)
            found, slope = torch.empty_like(fraction), torch.empty_like(fraction)
            for k, picture in enumerate(image[:, part]):
                torch.index_select(values[k, chosen].reshape(-1), 0, lower, out=found.view(-1))
                torch.index_select(slopes[k, chosen].reshape(-1), 0, lower, out=slope.view(-1))
                found.addcmul_(fraction, slope)
                picture += (found if gain is None else found.mul_(gain)).sum(0)
    return image[:, None]


class _Positions:
    """Where views see pixels, and with which weights: computed once for a scan, and kept as long as it is little."""

    def __init__(self, geometry: Geometry, before: int) -> None:
        self.geometry, self.before = geometry, before
        self._kept: dict[tuple[object, ...], tuple[Tensor, Tensor, Tensor | None]] = {}

    def __call__(self, part: slice, chosen: slice, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Those of some rows of the image and some views, see :func:`_positions`."""
        key = (part.start, chosen.start, values.shape[-1], values.dtype, values.device)
        if key in self._kept:
            return self._kept[key]
        found = _positions(self.geometry, part, chosen, values, self.before)
        numbers = math.prod(self.geometry.image_shape) * len(self.geometry.angles)
        each = sum(a.element_size() for a in found if a is not None)
        kinds = {other[2:] for other in self._kept} | {key[2:]}
        if numbers * each * len(kinds) <= _KEPT_BYTES:  # all or nothing of a precision
            self._kept[key] = found
        return found

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_kept": {}}  # computed anew where it is unpickled


def _positions(
    geometry: Geometry, part: slice, chosen: slice, values: Tensor, before: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return where some views see some rows of the image, ``(views, rows, W)``.

    These are the numbers of the samples at or before the positions s(p), counted through the chosen rows of ``values``
    and flat; how far the positions are behind them; and g, None for 1.
    """
    x, y = (torch.from_numpy(axis) for axis in geometry.pixel_positions())
    angles = torch.tensor(geometry.angles[chosen], dtype=torch.float64)[:, None, None]
    cos, sin = angles.cos(), angles.sin()
    x, y = x[None, part, None], y[None, None]
    _, spacing, offset = geometry.across()
    zero = before + 1 + (geometry.detector_pixels - 1) / 2 - offset / spacing  # the index of s = 0
    gain = None
    if isinstance(geometry, FanBeam):
        # R / U, and s = M (R / U) <p, e_s>
        distance, scale = geometry.source_distance, geometry.magnification / spacing
        gain = ((1 - x * sin / distance).to(values) + (y * cos / distance).to(values)).reciprocal_()
        index = (x * cos * scale).to(values) + (y * sin * scale).to(values)
        index.mul_(gain).add_(zero)
        gain.square_()
    else:
        index = (x * cos / spacing + zero).to(values) + (y * sin / spacing).to(values)
    samples = values.shape[-1]
    index.clamp_(0, samples - 2)
    lower = index.to(torch.int32)  # rounds towards zero
    index.frac_()
    lower += samples * torch.arange(len(lower), dtype=torch.int32, device=lower.device)[:, None, None]
    return lower.view(-1), index, gain


def _continuation(geometry: Geometry) -> tuple[int, int]:
    """Return how many pixels before and after the detector (at most its own number) the image projects onto."""
    reach, positions = geometry.reach, geometry.detector_positions()
    missing = (np.array([reach + positions[0], reach - positions[-1]]) / geometry.detector_spacing).clip(0)
    before, after = np.minimum(np.ceil(missing - 1e-6), geometry.detector_pixels).astype(int)
    return int(before), int(after)
