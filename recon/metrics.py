"""How far reconstructions are from the truth, image by image. Values are never clipped to the range of a display."""

from __future__ import annotations

import skimage.metrics
import torch
from torch import Tensor

from recon.errors import positive

#: side of the Gaussian window of the SSIM in pixels
SSIM_WINDOW = 11


def psnr(x: Tensor, target: Tensor, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio 10 log10(range^2 / mean (x - target)^2) in dB.

    Parameters
    ----------
    x, target
        ``(batch, channel, height, width)``; the mean is over channels and pixels.
    data_range
        of the images, on the scale of their values.

    Returns
    -------
    Tensor
        ``(batch,)``, float64; infinite where x equals the target.

    Raises
    ------
    ValueError
        different shapes, not four axes, no pixel, or a range that is not positive.
    """
    _check(x, target, data_range)
    mse = (x.detach().double() - target.detach().double()).square().flatten(1).mean(1)
    return 10 * torch.log10(data_range**2 / mse)


def ssim(x: Tensor, target: Tensor, data_range: float = 1.0) -> Tensor:
    """Structural similarity as defined by Wang, Bovik, Sheikh and Simoncelli (2004), mean over channels and pixels.

    Gaussian window of standard deviation 1.5 and 11x11 pixels, K1 = 0.01, K2 = 0.03, computed in float64 by
    scikit-image.

    Parameters
    ----------
    x, target, data_range
        As for :func:`psnr`; images must have at least 11x11 pixels.

    Returns
    -------
    Tensor
        ``(batch,)``, float64, at most 1.

    Raises
    ------
    ValueError
        As :func:`psnr`, or smaller images.
    """
    _check(x, target, data_range)
    if min(x.shape[2:]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, but got {x.shape[2]}x{x.shape[3]}")
    values = [
        skimage.metrics.structural_similarity(
            a.numpy(),
            b.numpy(),
            data_range=data_range,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(x.detach().cpu().double(), target.detach().cpu().double(), strict=True)
    ]
    return torch.tensor(values, dtype=torch.float64, device=x.device)


def _check(x: Tensor, target: Tensor, data_range: float) -> None:
    if x.shape != target.shape:
        raise ValueError(
            f"an image of shape {tuple(x.shape)} cannot be compared with one of shape {tuple(target.shape)}"
        )
    if x.ndim != 4 or x.numel() == 0:
        raise ValueError(f"images must have the shape (batch, channel, height, width), but got {tuple(x.shape)}")
    positive(data_range=data_range)
