"""Cartesian MRI: Fourier samples of a complex image, seen through the sensitivities of one or several coils.

Complex numbers are pairs of reals throughout: an image is ``(batch, 2, height, width)``, real and imaginary part as
channels, and k-space data are ``(batch, coils, 2, height, width)``, zero where nothing was sampled. C^n is R^2n with
the inner product Re <., .>, so nothing of the lower level has to know about it, and the Euclidean transpose of the real
map is the conjugate transpose of the complex one. Images and k-space have their origin at (height // 2, width // 2).

The transforms are torch's, not ODL's: they work on whole batches, on any device and under autograd, and ODL's adjoints
are no transposes. ``DiscreteFourierTransform.adjoint`` of ODL 1.0.0 is a rescaled inverse that fails the adjoint test
by the factor of the number of pixels; ``FourierTransform`` approximates the continuous transform and is not unitary.
The tests compare values with both.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recon.operators.linear import LinearOperator, fft_rounding, kind_of
from recon.operators.spectrum import Spectrum
from recon.operators.symbol import NormalSymbol

# Relative slack for the rounding of the bounds themselves.
_ROUNDING = 1e-13


def complex_to_channels(z: Tensor) -> Tensor:
    """Complex ``(..., height, width)`` to real ``(..., 2, height, width)``: real part, imaginary part.

    Raises
    ------
    ValueError
        z is not complex or has fewer than two axes.
    """
    if not z.is_complex() or z.ndim < 2:
        raise ValueError(f"expected a complex tensor (..., height, width), got {kind_of(z)}")
    return torch.stack((z.real, z.imag), dim=-3)


def channels_to_complex(x: Tensor) -> Tensor:
    """Real ``(..., 2, height, width)`` to complex ``(..., height, width)``, the inverse of the above.

    Raises
    ------
    ValueError
        x is not real floating, or has no axis of length two before its last two axes.
    """
    _check_channels(x, 3, "a real tensor (..., 2, height, width)")
    return torch.complex(x[..., 0, :, :], x[..., 1, :, :])


def magnitude(x: Tensor) -> Tensor:
    """``|x|``: channels ``(..., 2, height, width)`` to ``(..., 1, height, width)``.

    Raises
    ------
    ValueError
        as :func:`channels_to_complex`.
    """
    _check_channels(x, 3, "a real tensor (..., 2, height, width)")
    return torch.linalg.vector_norm(x, dim=-3, keepdim=True)


def centred_fft(z: Tensor) -> Tensor:
    """F z over the last two axes, unitary, with image and frequency origin at ``n // 2`` along each axis:

    (F z)[k] = n^(-1/2) sum_p z[p] exp(-2 pi i (k - n // 2)(p - n // 2) / n).
    """
    if z.numel() == 0:  # the FFT libraries refuse an empty batch
        return z
    axes = (-2, -1)
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(z, dim=axes), norm="ortho"), dim=axes)


def centred_ifft(z: Tensor) -> Tensor:
    """F^-1 z = F^* z, see :func:`centred_fft`."""
    if z.numel() == 0:
        return z
    axes = (-2, -1)
    return torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(z, dim=axes), norm="ortho"), dim=axes)


def zero_filled(y: Tensor) -> Tensor:
    """Coil images ``F^* y_c`` of k-space data, zeros where nothing was sampled; both ``(..., coils, 2, H, W)``.

    Combined with known sensitivities, the zero-filled reconstruction is ``CartesianMRI.adjoint``.
    """
    return complex_to_channels(centred_ifft(channels_to_complex(y)))


def root_sum_of_squares(images: Tensor) -> Tensor:
    """``sqrt(sum_c |x_c|^2)`` of coil images: ``(..., coils, 2, height, width)`` to ``(..., 1, height, width)``.

    Needs no sensitivities. (Roemer et al. 1990, The NMR phased array, Magn. Reson. Med. 16, eq. 31)

    Raises
    ------
    ValueError
        the shape is another one.
    """
    _check_channels(images, 4, "real coil images (..., coils, 2, height, width)")
    return torch.linalg.vector_norm(images, dim=(-4, -3))[..., None, :, :]


class CartesianMRI(LinearOperator):
    """``(A x)_c = M F (s_c x)``: ``(batch, 2, H, W) -> (batch, coils, 2, H, W)``.

    s_c are the sensitivities of the coils (one coil with s = 1 by default), F is the unitary centred Fourier transform
    and M sets to zero what was not sampled. The transpose is ``A^T y = sum_c conj(s_c) F^-1 (M y_c)``.

    Bounds. F is unitary and M an orthogonal projection, so

        ||A x||^2 <= sum_c ||s_c x||^2 = sum_p |x(p)|^2 sum_c |s_c(p)|^2 <= max_p sum_c |s_c(p)|^2 ||x||^2,

    with equality in the first step if everything was sampled. For one coil with s = 1 the norm is exactly 1 (0 if the
    mask is empty). The lower bound is ``min_p sqrt(sum_c |s_c(p)|^2)`` for a full mask and 0 otherwise: the strong
    convexity of an energy with undersampled data has to come from its ``mu``.
    """

    mask: Tensor
    sensitivities: Tensor | None

    def __init__(self, mask: Tensor, sensitivities: Tensor | None = None) -> None:
        """Create the operator.

        Parameters
        ----------
        mask
            boolean ``(height, width)``, true where k-space was sampled, zero frequency at ``(height // 2, width //
            2)``; see :mod:`recon.operators.mri.sampling`.
        sensitivities
            complex ``(coils, height, width)``; None is one coil with constant sensitivity 1.

        Raises
        ------
        ValueError
            mask or sensitivities are of another kind or shape, or not finite.
        """
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.ndim != 2:
            raise ValueError(f"the mask must be a boolean tensor (height, width), got {kind_of(mask)}")
        shape = (int(mask.shape[0]), int(mask.shape[1]))
        coils, lowest, highest = 1, 1.0, 1.0
        if sensitivities is not None:
            _check_sensitivities(sensitivities, shape)
            sensitivities = sensitivities.detach().to("cpu", torch.complex128)
            coils = len(sensitivities)
            squares = sensitivities.abs().square().sum(0)
            lowest = math.sqrt(float(squares.min())) * (1 - _ROUNDING)
            highest = math.sqrt(float(squares.max())) * (1 + _ROUNDING)
        super().__init__(
            (2, *shape),
            (coils, 2, *shape),
            norm_bound=highest if bool(mask.any()) else 0.0,
            lower_bound=lowest if bool(mask.all()) else 0.0,
        )
        self.rounding_factor = fft_rounding(shape)
        # Not in the state dict: they belong to the problem, not to what is learned. As real channels, since
        # Module.to(torch.float32) would drop imaginary parts.
        self.register_buffer("mask", mask.clone(), persistent=False)
        channels = None if sensitivities is None else complex_to_channels(sensitivities)
        self.register_buffer("sensitivities", channels, persistent=False)
        # what is computed with
        self._maps = Spectrum(_modulated(sensitivities, shape))

    @property
    def acceleration(self) -> float:
        """Points of the k-space grid for each sampled one; infinite for an empty mask."""
        sampled = int(self.mask.sum())
        return self.mask.numel() / sampled if sampled else math.inf

    def normal_symbol(self) -> NormalSymbol:
        """The mask times the mean of sum_c |s_c|^2: exact for one coil of constant sensitivity."""
        square = float(self._maps.values.abs().square().sum(0).mean())
        # an image and its data both have the origin in the middle, which changes phases only
        return NormalSymbol(torch.fft.ifftshift(self.mask.double().cpu()) * square, complex_pairs=True)

    # F = fftshift fft2 ifftshift. The first shift, of k-space, is a modulation of the image, which is part of the maps;
    # the other is one of the image alone. So no array with an axis of coils is ever shifted.

    def display(self, x: Tensor) -> Tensor:
        return magnitude(x)

    def _forward(self, x: Tensor) -> Tensor:
        if len(x) == 0:  # the FFT libraries refuse an empty batch
            return x.new_zeros((0, *(self.range_shape or ())))
        image = torch.fft.ifftshift(channels_to_complex(x), dim=(-2, -1))[:, None]
        return self._sampled(complex_to_channels(torch.fft.fft2(self._maps.like(x) * image, norm="ortho")))

    def _adjoint(self, y: Tensor) -> Tensor:
        if len(y) == 0:
            return y.new_zeros((0, *y.shape[2:]))
        images = torch.fft.ifft2(channels_to_complex(self._sampled(y)), norm="ortho")
        image = (self._maps.like(y).conj() * images).sum(1)
        return complex_to_channels(torch.fft.fftshift(image, dim=(-2, -1)))

    def _sampled(self, y: Tensor) -> Tensor:
        return y.masked_fill(~self.mask.to(y.device), 0.0)


def _check_channels(x: Tensor, axes: int, expected: str) -> None:
    if not x.is_floating_point() or x.ndim < axes or x.shape[-3] != 2:
        raise ValueError(f"expected {expected}, got {kind_of(x)}")


def _modulated(sensitivities: Tensor | None, shape: tuple[int, int]) -> Tensor:
    """``exp(2 pi i (n // 2) p / n) ifftshift(s)``, along both axes: fft2 of it times an image needs no fftshift."""
    factors = []
    for n in shape:
        # reduced to a fraction of one turn in integers, so that it is exact up to the rounding of exp
        turns = (torch.arange(n) * (n // 2)) % n
        factors.append(torch.polar(torch.ones(n, dtype=torch.float64), 2 * math.pi * turns.double() / n))
    modulation = torch.outer(*factors)[None]
    return modulation if sensitivities is None else modulation * torch.fft.ifftshift(sensitivities, dim=(-2, -1))


def _check_sensitivities(maps: Tensor, shape: tuple[int, int]) -> None:
    good = isinstance(maps, Tensor) and maps.is_complex() and maps.ndim == 3 and len(maps) > 0
    if not good or tuple(maps.shape[1:]) != shape:
        expected = f"the sensitivities must be a complex tensor (coils, {shape[0]}, {shape[1]}), as the mask is"
        raise ValueError(f"{expected}; got {kind_of(maps)}")
    bad = int((~torch.isfinite(maps)).sum())
    if bad:
        raise ValueError(f"the sensitivities hold {bad} values that are NaN or infinite")
