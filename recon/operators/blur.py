"""Convolution with a fixed kernel (deblurring), with periodic or reflecting boundaries and proven norm bounds."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from recon.errors import one_of
from recon.operators.linear import LinearOperator, Shape, fft_rounding
from recon.operators.spectrum import Spectrum

# Relative slack for the rounding of the bounds themselves (float64 FFT: a few times 1e-16).
_ROUNDING = 1e-13


def gaussian_kernel(sigma: float | tuple[float, float], size: int | tuple[int, int] | None = None) -> Tensor:
    """Return a sampled Gaussian, ``k[i, j] ~ exp(-i^2 / (2 s_0^2) - j^2 / (2 s_1^2))``, float64, with sum one.

    Parameters
    ----------
    sigma
        standard deviation in pixels, one for both axes or one for each; positive.
    size
        kernel shape, odd; by default cut off at four standard deviations, ``2 ceil(4 sigma) + 1``.

    Raises
    ------
    ValueError
        if sigma is not positive and finite or a size is not odd and positive.
    """
    sigmas = tuple(sigma) if isinstance(sigma, (tuple, list)) else (sigma, sigma)
    if len(sigmas) != 2 or not all(math.isfinite(s) and s > 0 for s in sigmas):
        raise ValueError(f"sigma must be positive and finite, got {sigma}")
    if size is None:
        size = (2 * math.ceil(4 * sigmas[0]) + 1, 2 * math.ceil(4 * sigmas[1]) + 1)
    sizes = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(sizes) != 2 or any(n < 1 or n % 2 == 0 for n in sizes):
        raise ValueError(f"kernel sizes must be odd and positive, got {size}")
    factors = []
    for s, n in zip(sigmas, sizes, strict=True):
        t = torch.arange(n, dtype=torch.float64) - n // 2
        g = torch.exp(-0.5 * (t / s) ** 2)
        factors.append(g / g.sum())
    return torch.outer(*factors)


class Blur(LinearOperator):
    """``(A x)[p] = sum_q k[q] x[p - q]``, q counted from the centre of the kernel; every channel alike.

    Boundaries (values of x outside the image):

    * ``"periodic"``: x wraps around. A is diagonal in the Fourier basis, so ``norm_bound = max |k^|`` and
      ``lower_bound = min |k^|`` are exact.
    * ``"reflect"``: half-sample symmetric, ``d c b a | a b c d | d c b a`` (scipy.ndimage's "reflect", not torch's).
      With E the extension to the doubled torus ``2H x 2W``, C the circular convolution there and P the restriction to
      the image, ``A = P C E`` for kernels of any size, and ``A^T = E^T C^T P^T`` exactly.

    Bounds for "reflect". Split the kernel into its four parts, even or odd along each axis. E maps the cosine basis
    (DCT-II) to Fourier modes j < H, l < W, and every part maps symmetric images to symmetric or antisymmetric ones, for
    which restricting to a quarter of the torus halves the norm that extending had doubled. Hence each part has norm
    ``max |k_part^|`` over those modes, and the even-even part is diagonal in the cosine basis with eigenvalues
    ``k_even^[j, l]``:

        ||A|| <= sum over the parts of max |k_part^|,   ||A x|| >= (min |k_even^| - sum over the others) ||x||.

    Both are exact for kernels that are symmetric along each axis (Gaussian, box, disc). For others (motion blur) the
    Schur bound ``sqrt(||A||_1 ||A||_inf)`` is often smaller: the largest column and row sums of the operator with
    kernel ``|k|``, read off by applying it and its transpose to ones. ``norm_bound`` is the smaller of the two.
    """

    kernel: Tensor

    def __init__(
        self,
        kernel: Tensor | float,
        domain_shape: Shape,
        boundary: Literal["periodic", "reflect"] = "periodic",
    ) -> None:
        """Create the operator.

        Parameters
        ----------
        kernel
            real tensor ``(rows, columns)`` with odd sides, possibly larger than the image, or a number: the standard
            deviation in pixels of :func:`gaussian_kernel`.
        domain_shape
            ``(channels, height, width)``.
        boundary
            "periodic" or "reflect".

        Raises
        ------
        ValueError
            if kernel, shape or boundary are none of these.
        """
        if not isinstance(kernel, Tensor):
            kernel = gaussian_kernel(float(kernel))
        if kernel.ndim != 2 or any(n % 2 == 0 for n in kernel.shape) or not kernel.is_floating_point():
            raise ValueError(
                f"the kernel must be a real floating matrix with odd sides, got {kernel.dtype}, {tuple(kernel.shape)}"
            )
        if not bool(torch.isfinite(kernel).all()):
            raise ValueError("the kernel has entries that are not finite")
        if len(domain_shape) != 3 or any(n < 1 for n in domain_shape):
            raise ValueError(f"expected domain_shape (channels, height, width), got {tuple(domain_shape)}")
        one_of(("periodic", "reflect"), boundary=boundary)

        kernel = kernel.detach().to("cpu", torch.float64)
        height, width = domain_shape[1:]
        if boundary == "periodic":
            torus = _wrap(kernel, (height, width))
            gains = torch.fft.rfft2(torus).abs()
            bounds = float(gains.min()), float(gains.max())
        else:
            torus = _wrap(kernel, (2 * height, 2 * width))
            bounds = _reflect_bounds(torus, height, width)
        slack = _ROUNDING * float(kernel.abs().sum())
        super().__init__(domain_shape, domain_shape, bounds[1] + slack, max(bounds[0] - slack, 0.0))
        self.boundary = boundary
        self.rounding_factor = fft_rounding(torus.shape)
        self.register_buffer("kernel", kernel, persistent=False)
        self._transfer = Spectrum(torch.fft.rfft2(torus))

    def _forward(self, x: Tensor) -> Tensor:
        transfer = self._transfer.like(x)
        if self.boundary == "periodic":
            return _multiply_spectrum(x, transfer)
        height, width = x.shape[-2:]
        return _multiply_spectrum(_extend(x), transfer)[..., :height, :width]

    def _adjoint(self, y: Tensor) -> Tensor:
        transfer = self._transfer.like(y).conj()
        if self.boundary == "periodic":
            return _multiply_spectrum(y, transfer)
        height, width = y.shape[-2:]
        return _fold(_multiply_spectrum(torch.nn.functional.pad(y, (0, width, 0, height)), transfer))


def _wrap(kernel: Tensor, shape: tuple[int, int]) -> Tensor:
    """Place the kernel on a torus of this shape with its centre at the origin, adding up what overlaps."""
    rows = (torch.arange(kernel.shape[0]) - kernel.shape[0] // 2) % shape[0]
    columns = (torch.arange(kernel.shape[1]) - kernel.shape[1] // 2) % shape[1]
    torus = kernel.new_zeros(shape)
    return torus.index_put_((rows[:, None], columns[None, :]), kernel, accumulate=True)


def _multiply_spectrum(x: Tensor, transfer: Tensor) -> Tensor:
    if len(x) == 0:  # the FFT libraries refuse an empty batch
        return x
    return torch.fft.irfft2(torch.fft.rfft2(x) * transfer, s=x.shape[-2:])


def _extend(x: Tensor) -> Tensor:
    """E: half-sample symmetric extension, H x W to 2H x 2W."""
    x = torch.cat([x, x.flip(-2)], dim=-2)
    return torch.cat([x, x.flip(-1)], dim=-1)


def _fold(z: Tensor) -> Tensor:
    """E^T: add up the four mirror images, 2H x 2W to H x W."""
    height, width = z.shape[-2] // 2, z.shape[-1] // 2
    z = z[..., :height, :] + z[..., height:, :].flip(-2)
    return z[..., :width] + z[..., width:].flip(-1)


def _reflect_bounds(torus: Tensor, height: int, width: int) -> tuple[float, float]:
    """Return (lower, upper) bounds of the gain with reflecting boundary, as derived at :class:`Blur`."""

    def mirrored(z: Tensor, axis: int) -> Tensor:
        return z.flip(axis).roll(1, axis)  # q -> -q on the torus

    parts = []
    for sign_rows in (1.0, -1.0):
        half = 0.5 * (torus + sign_rows * mirrored(torus, 0))
        parts += [0.5 * (half + sign_columns * mirrored(half, 1)) for sign_columns in (1.0, -1.0)]
    gains = [torch.fft.fft2(part)[:height, :width].abs() for part in parts]
    others = sum(float(g.max()) for g in gains[1:])

    transfer = torch.fft.rfft2(torus.abs())
    ones = torus.new_ones(height, width)
    row_sum = _multiply_spectrum(_extend(ones), transfer).max()
    padded = torch.nn.functional.pad(ones, (0, width, 0, height))
    column_sum = _fold(_multiply_spectrum(padded, transfer.conj())).max()
    schur = math.sqrt(float(row_sum) * float(column_sum))
    return float(gains[0].min()) - others, min(float(gains[0].max()) + others, schur)
