"""Coil sensitivities: estimates from the fully sampled centre of k-space (ESPIRiT), and simulated ones."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from recon.operators.linear import kind_of
from recon.operators.mri.cartesian import centred_ifft
from recon.operators.mri.sampling import central

# More of the centre than this adds nothing but time: sensitivities are smooth.
_LARGEST_REGION = 32
# Pixels whose matrices are decomposed at the same time; bounds the memory.
_CHUNK = 16384


class NoCalibrationError(ValueError):
    """The centre of k-space is not sampled as completely as an estimate of the sensitivities needs."""


def sampled_points(kspace: Tensor) -> Tensor:
    """Boolean ``(height, width)`` of complex k-space ``(coils, height, width)``: where any coil is not exactly zero.

    Raises
    ------
    ValueError
        another shape or dtype, or values that are not finite.
    """
    if not isinstance(kspace, Tensor) or not kspace.is_complex() or kspace.ndim != 3 or kspace.numel() == 0:
        raise ValueError(f"k-space must be a complex tensor (coils, height, width), got {kind_of(kspace)}")
    bad = int((~torch.isfinite(kspace)).sum())
    if bad:
        raise ValueError(f"k-space holds {bad} values that are NaN or infinite")
    return (kspace != 0).any(0)


def calibration_region(mask: Tensor) -> tuple[int, int]:
    """Rows and columns of the largest fully sampled block around the zero frequency, ``(0, 0)`` if it is not sampled.

    Index ``n // 2`` of the block is the zero frequency, as in k-space. Largest is the block with the longest shorter
    side, and of those the one with most points.

    Parameters
    ----------
    mask
        boolean ``(height, width)``.
    """
    full = mask.detach().cpu().numpy()
    height, width = full.shape
    best, columns = (0, 0), width
    for rows in range(1, height + 1):
        while columns and not full[central(height, rows), central(width, columns)].all():
            columns -= 1
        if columns and (min(rows, columns), rows * columns) > (min(best), best[0] * best[1]):
            best = (rows, columns)
    return best


def estimate_sensitivities(
    kspace: Tensor,
    mask: Tensor | None = None,
    kernel: int = 6,
    noise_level: float = 0.03,
    support: float = 0.8,
) -> Tensor:
    """ESPIRiT (Uecker et al. 2014, Magn. Reson. Med. 71, 990-1001), the first set of maps.

    The patches ``a_m`` of ``kernel x kernel`` samples of all coils, cut out of the calibration region, span a small
    subspace with projection P (singular values above ``noise_level`` times the largest). All of k-space lies in it
    patch by patch, so averaging ``a_m = P a_m`` over the patches that hold a sample is a convolution that reproduces
    the data:

        y_c = sum_c' K_cc' * y_c',   K_cc'(d) = kernel^-2 sum_{u - v = d} P_{(c, u), (c', v)}.

    In the image it says ``W(p) s(p) = s(p)`` where there is signal, with the Hermitian matrix W(p) of size
    coils x coils, the inverse transform of K, whose eigenvalues are in [0, 1]. So s(p) is the first eigenvector, of
    norm one, where its eigenvalue is at least ``support``, and zero elsewhere. Its phase, which is arbitrary, is set to
    that of the coil images of the calibration region: the phase of the object goes into the maps, the image that is
    reconstructed with them is nearly real and positive, and regularizers see smooth channels.

    Parameters
    ----------
    kspace
        complex ``(coils, height, width)``, zero frequency at ``(height // 2, width // 2)``.
    mask
        boolean ``(height, width)``, what was sampled; None is :func:`sampled_points`.
    kernel
        side of the patches, at least 2; the region must be twice as large.
    noise_level, support
        see above, both between 0 and 1.

    Returns
    -------
    Tensor
        complex ``(coils, height, width)`` with ``sum_c |s_c|^2`` equal to 1 within the support and 0 outside.

    Raises
    ------
    NoCalibrationError
        (a ValueError) the fully sampled centre is too small; it names its size and what is needed.
    ValueError
        an argument is of another shape or out of its range.
    """
    if kernel < 2 or not (0 < noise_level < 1 and 0 < support < 1):
        raise ValueError(
            f"kernel ({kernel}) must be at least 2, noise_level ({noise_level}) and support ({support}) between 0 and 1"
        )
    block = _calibration(kspace, mask, kernel)
    shape = kspace.shape[1:]
    maps, values = _first_eigenvectors(_reproducing_kernel(block, kernel, noise_level), shape)
    aligned = (maps.conj() * _low_resolution(block, shape)).sum(0)
    maps = maps * torch.polar(torch.ones_like(values), aligned.angle())
    return torch.where(values >= support, maps, 0.0)


def _calibration(kspace: Tensor, mask: Tensor | None, kernel: int) -> Tensor:
    """The fully sampled centre of k-space, ``(coils, rows, columns)``; errors as :func:`estimate_sensitivities`."""
    sampled = sampled_points(kspace)
    mask = sampled if mask is None else mask
    if mask.dtype != torch.bool or mask.shape != sampled.shape:
        raise ValueError(f"the mask must be boolean {tuple(sampled.shape)}, got {mask.dtype} {tuple(mask.shape)}")
    region = calibration_region(mask)
    if min(region) < 2 * kernel:
        raise NoCalibrationError(
            f"the fully sampled centre of k-space has {region[0]}x{region[1]} points around the zero frequency (at "
            f"{tuple(n // 2 for n in mask.shape)}), but estimating sensitivities with kernel={kernel} needs "
            f"{2 * kernel}x{2 * kernel}: give sensitivities, a smaller kernel, or k-space with a full centre"
        )
    rows, columns = (min(n, _LARGEST_REGION) for n in region)
    block = _cut(kspace.detach().to(torch.complex128), rows, columns)
    if not bool(block.any()):
        raise NoCalibrationError(f"the centre of k-space ({rows}x{columns} points) is zero in all coils")
    return block


def simulated_sensitivities(coils: int, shape: tuple[int, int], width: float = 0.8) -> Tensor:
    """Smooth maps of coils around the image: Gaussians with linear phases, normalised to ``sum_c |s_c|^2 = 1``.

    Coil c sits at the angle ``t = 2 pi c / coils`` on a circle that passes through the middles of the edges:
    ``s_c(p) ~ exp(-|p - q_c|^2 / (2 width^2) + i (t + <q_c, p>))``, in units of half the image's sides.

    Parameters
    ----------
    coils
        at least 1; one coil has constant sensitivity 1.
    shape
        ``(height, width)``.
    width
        of the Gaussians, positive.

    Raises
    ------
    ValueError
        an argument is out of its range.
    """
    if coils < 1 or len(shape) != 2 or min(shape) < 1 or not 0 < width < math.inf:
        raise ValueError(f"coils ({coils}), shape ({shape}) and width ({width}) must be positive")
    if coils == 1:
        return torch.ones((1, *shape), dtype=torch.complex128)
    i, j = ((torch.arange(n, dtype=torch.float64) - n // 2) / (n / 2) for n in shape)
    angle = 2 * math.pi * torch.arange(coils, dtype=torch.float64)[:, None, None] / coils
    row, column = angle.sin(), angle.cos()
    distance = (i[:, None] - row).square() + (j - column).square()
    maps = torch.polar(torch.exp(-distance / (2 * width**2)), angle + row * i[:, None] + column * j)
    return maps / maps.abs().square().sum(0).sqrt()


def _cut(kspace: Tensor, rows: int, columns: int) -> Tensor:
    return kspace[:, central(kspace.shape[1], rows), central(kspace.shape[2], columns)]


def _reproducing_kernel(block: Tensor, kernel: int, noise_level: float) -> Tensor:
    """K ``(coils, coils, 2 kernel - 1, 2 kernel - 1)``, d = 0 in the middle."""
    coils = len(block)
    patches = block.unfold(1, kernel, 1).unfold(2, kernel, 1)  # (coils, rows, columns, kernel, kernel)
    vectors = patches.permute(0, 3, 4, 1, 2).reshape(coils * kernel**2, -1)
    values, basis = torch.linalg.eigh(vectors @ vectors.conj().T)
    signal = basis[:, values > noise_level**2 * values[-1]]
    projection = (signal @ signal.conj().T).reshape(coils, kernel, kernel, coils, kernel, kernel)
    result = block.new_zeros(coils, coils, 2 * kernel - 1, 2 * kernel - 1)
    for i in range(kernel):
        for j in range(kernel):
            # v = (i, j) fixed: all u, at the differences u - v
            window = np.s_[..., kernel - 1 - i : 2 * kernel - 1 - i, kernel - 1 - j : 2 * kernel - 1 - j]
            result[window] += projection[..., i, j].permute(0, 3, 1, 2)
    return result / kernel**2


def _first_eigenvectors(kernels: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Eigenvectors ``(coils, height, width)`` and values ``(height, width)`` of W(p), the largest ones."""
    coils, reach = len(kernels), kernels.shape[-1] // 2
    # Small matrix products instead of an FFT of padded kernels, which needs coils^2 images at the same time.
    phases = []
    for n in shape:
        position = torch.arange(n, dtype=torch.float64, device=kernels.device) - n // 2
        shift = torch.arange(-reach, reach + 1, dtype=torch.float64, device=kernels.device)
        phases.append(torch.exp(2j * math.pi * torch.outer(position, shift) / n))
    half = phases[0] @ kernels  # (coils, coils, height, 2 kernel - 1)
    maps = kernels.new_empty((coils, *shape))
    values = torch.empty(shape, dtype=torch.float64, device=kernels.device)
    step = max(1, _CHUNK // shape[1])
    for start in range(0, shape[0], step):
        rows = slice(start, start + step)
        matrices = (half[:, :, rows] @ phases[1].T).permute(2, 3, 0, 1)
        found, vectors = torch.linalg.eigh(matrices)
        values[rows] = found[..., -1]
        maps[:, rows] = vectors[..., -1].permute(2, 0, 1)
    return maps, values


def _low_resolution(block: Tensor, shape: torch.Size) -> Tensor:
    """Coil images of the calibration region alone, with a Hann window against ringing."""
    coils, rows, columns = block.shape
    windows = [torch.hann_window(n + 2, periodic=False, dtype=torch.float64)[1:-1] for n in (rows, columns)]
    padded = block.new_zeros((coils, *shape))
    _cut(padded, rows, columns).copy_(block * torch.outer(*windows).to(block.device))
    return centred_ifft(padded)
