"""The ramp filter of filtered back-projection, sampled in space, with the usual windows."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FILTERS = ("ram-lak", "shepp-logan", "cosine", "hamming", "hann")
RAMPS = ("space", "frequency")
_FINE = 8  # frequencies at which windows are sampled, per frequency that the rows resolve


def ramp_kernel(count: int, spacing: float) -> NDArray[np.float64]:
    """Return the band-limited ramp at the lags ``0 .. count - 1`` times ``spacing``, in 1/mm^2.

    The inverse Fourier transform of ``|f|`` on ``|f| <= 1 / (2 d)`` (Kak and Slaney, Principles of Computerized
    Tomographic Imaging, equation 3.29): ``1 / (4 d^2)`` at 0, 0 at other even k, ``-1 / (pi k d)^2`` at odd k. Samples
    of ``|f|`` itself belong to a ramp that is repeated with the period of the rows, whose even taps are not 0 and whose
    mean is: that shifts all values of a reconstruction.
    """
    lags = np.arange(count)
    kernel = np.zeros(count)
    kernel[0] = 1 / (4 * spacing**2)
    kernel[1::2] = -1 / (math.pi * lags[1::2] * spacing) ** 2
    return kernel


def window(filter: str, frequencies: NDArray[np.float64], cutoff: float) -> NDArray[np.float64]:
    """Return what the filter multiplies the ramp with at frequencies relative to the highest; 0 beyond ``cutoff``."""
    ratio = frequencies / cutoff
    shapes = {
        "ram-lak": np.ones_like(ratio),
        "shepp-logan": np.sinc(ratio / 2),
        "cosine": np.cos(math.pi * ratio / 2),
        "hamming": 0.54 + 0.46 * np.cos(math.pi * ratio),
        "hann": np.cos(math.pi * ratio / 2) ** 2,
    }
    return np.asarray(shapes[filter] * (ratio <= 1))


class RampFilter:
    """Convolves rows of ``pixels`` samples, ``spacing`` mm apart, with the ramp times a window."""

    def __init__(
        self,
        pixels: int,
        spacing: float,
        filter: str,
        frequency_scaling: float,
        padding: bool,
        ramp: str = "space",
    ) -> None:
        """Sample the filter; see :class:`recon.operators.FilteredBackProjection` for the arguments.

        The window multiplies the transform of the ramp on a grid so long that the repetition of the kernel does not
        matter; of the product, the lags that occur between the samples of a row are kept.
        """
        self.pixels = pixels
        self.length = _fast_length(2 * pixels - 1) if padding else pixels
        if ramp == "frequency":
            kernel = _sampled_in_frequency(2 * pixels - 1 if padding else pixels, spacing, filter, frequency_scaling)
        else:
            fine = _FINE * _fast_length(2 * pixels)
            frequencies = np.linspace(0.0, 1.0, fine // 2 + 1)
            shape = window(filter, np.minimum(frequencies, frequency_scaling), frequency_scaling)
            if frequency_scaling < 1:  # the frequency at the cut-off has the share of its interval that lies below
                shape *= np.clip((frequency_scaling - frequencies) * (fine // 2) + 0.5, 0.0, 1.0)
            kernel = np.fft.irfft(np.fft.rfft(_repeated(ramp_kernel(fine // 2 + 1, spacing), fine)).real * shape, fine)
        half = np.zeros(self.length // 2 + 1)
        kept = min(len(half), len(kernel), pixels + 1)
        half[:kept] = kernel[:kept]
        self._response = torch.from_numpy(spacing * np.fft.rfft(_repeated(half, self.length)).real)

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the filtered rows ``(..., pixels)``, in 1/mm times the unit of the rows."""
        response = self._response.to(rows.device, rows.dtype)
        spectrum = torch.fft.rfft(rows, self.length)
        return torch.fft.irfft(spectrum * response, self.length)[..., : self.pixels]


def _sampled_in_frequency(length: int, spacing: float, filter: str, frequency_scaling: float) -> NDArray[np.float64]:
    """Return the kernel of ODL's ``fbp_filter_op``, |f| times the window at the frequencies (k + 1/2) / (length d)."""
    frequencies = (np.arange((length + 1) // 2) + 0.5) / length
    weights = np.where(frequencies < 0.5, 2.0, 1.0) * window(filter, 2 * frequencies, frequency_scaling)
    waves = np.cos(2 * math.pi * np.outer(np.arange((length + 1) // 2), frequencies))
    return np.asarray(waves @ (weights * frequencies) / (length * spacing**2))


def _repeated(half: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """Return the even sequence of this length whose values at the lags from 0 on are ``half``."""
    lags = np.arange(length)
    return half[np.minimum(lags, length - lags)]


def _fast_length(least: int) -> int:
    """Return an even length of at least ``least`` without large prime factors: 2^k or 3 2^k."""
    power = 1 << max(1, (least - 1).bit_length())
    return 3 * power // 4 if 3 * power // 4 >= least and power >= 8 else power
