"""Estimates of the noise from the data alone."""

from __future__ import annotations

from torch import Tensor

#: side of the blocks of :func:`image_noise`, and how many there have to be
BLOCK, FEWEST = 16, 36
#: the tenth percentile of root mean squares over such blocks of white noise of standard deviation 1 (simulated)
LEAST = 0.893


def sinogram_noise(sinogram: Tensor, measured: Tensor | None = None) -> float:
    """Standard deviation of the noise of a sinogram ``(..., angles, detectors)`` with independent rays.

    The mask (1, -2, 1) x (1, -2, 1), of norm 6, takes away whatever varies linearly along views or detector (Immerkaer,
    Computer Vision and Image Understanding 64, 1996). Instead of the mean of its squares, which edges spoil, their
    median over the rays with the larger half of line integrals counts: where there is an object, and most noise. Where
    ``measured`` (of the sinogram's shape) is False, rays and their eight neighbours are left out.

    Raises
    ------
    ValueError
        the sinogram is too small, or too few rays were measured.
    """
    inside = sinogram.detach().cpu().double()[..., 1:-1, 1:-1]
    second = _second_differences(sinogram, f"a sinogram of {sinogram.shape[-2]} views and {sinogram.shape[-1]} pixels")
    if measured is not None:
        whole = measured.detach().cpu().unfold(-2, 3, 1).unfold(-2, 3, 1).flatten(-2).all(-1)
        if int(whole.sum()) < 9:
            rays = f"{int(measured.sum())} of {measured.numel()} rays"
            raise ValueError(f"too few rays were measured ({rays}) to estimate the noise; give --noise or --photons")
        inside, second = inside[whole], second[whole]
    return _deviation(second[inside >= inside.median()]) / 6


def image_noise(image: Tensor) -> float:
    """Standard deviation of the noise of an image ``(..., H, W)`` with independent pixels.

    Root mean squares of the mask of :func:`sinogram_noise` over blocks of ``BLOCK`` x ``BLOCK`` pixels, of which the
    tenth part with the least texture is below the result, corrected by ``LEAST``: what white noise has there. Images of
    fewer than ``FEWEST`` blocks get the median over all pixels. Fine texture in all blocks counts as noise.
    """
    second = _second_differences(image, f"an image of {image.shape[-2]}x{image.shape[-1]} pixels") / 6
    rows, cols = (n // BLOCK for n in second.shape[-2:])
    if rows * cols < FEWEST:
        return _deviation(second)
    blocks = second[..., : rows * BLOCK, : cols * BLOCK].unflatten(-1, (cols, BLOCK)).unflatten(-3, (rows, BLOCK))
    sizes = blocks.square().mean((-3, -1)).sqrt().flatten()
    return float(sizes.kthvalue(max(1, round(0.1 * len(sizes)))).values) / LEAST


def _second_differences(values: Tensor, what: str) -> Tensor:
    if min(values.shape[-2:]) < 3:
        raise ValueError(f"{what} is too small to estimate its noise; give --noise")
    return values.detach().cpu().double().diff(n=2, dim=-2).diff(n=2, dim=-1)


def _deviation(values: Tensor) -> float:
    """The standard deviation of a normal distribution with this median of absolute values."""
    return 1.4826 * float(values.abs().median())
