"""Noise of measured k-space: its covariance between coils, from what holds no signal, or from a scan of noise alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from scipy.stats import chi2
from torch import Tensor

from recon.operators.mri import centred_ifft
from recon.operators.sensitivity import calibration_region

# Sides in pixels of the windows whose local frequencies are looked at: sharp images need small ones, images that ring
# need large ones. Each has at least twice its side of samples.
_WINDOWS = (4, 8, 12)
# Local frequencies of one kind, at most: more add time but no accuracy.
_MANY = 200_000
# The share of noise that counts, lowest energies first, for the estimate and for its check.
_INSIDE, _CHECK = 0.78, 0.98
# The estimate and the check may differ by this factor where signal does not pass for noise.
_CERTAIN = 1.25


@dataclass(frozen=True)
class NoiseEstimate:
    """The noise n of k-space samples, real and imaginary parts alike: E[n n^H] / 2 = ``covariance``."""

    covariance: Tensor
    """complex128 (coils, coils), of the real part (and of the imaginary part) of a sample."""
    count: int
    """Independent samples of each coil that it was estimated from, about."""
    rule: str
    certain: bool = True
    """False where signal may have been taken for noise, so that the noise is probably smaller."""

    @property
    def deviations(self) -> Tensor:
        """The standard deviation of each coil, float64 (coils,)."""
        return self.covariance.diagonal().real.sqrt()

    @property
    def level(self) -> float:
        """(coils / trace(covariance^-1))^(1/2): the standard deviation of each coil if all are alike and independent.

        0 if a coil has no noise.
        """
        values = torch.linalg.eigvalsh(self.covariance)
        if not float(values[0]) > 0:
            return 0.0
        return math.sqrt(len(values) / float((1 / values).sum()))


def estimate_noise(kspace: Tensor, mask: Tensor) -> NoiseEstimate:
    """The noise of complex k-space ``(coils, height, width)``, white and alike in all its samples.

    What is looked at are samples themselves, those farthest from the zero frequency, and local frequencies: the image of
    the largest fully sampled block around the zero frequency (along one axis: of lines that are sampled completely) is
    cut into windows of 4, 8 and 12 pixels, weighted by Hann's, and transformed. All of these are unitary up to overlap,
    so the noise has the same covariance C everywhere, but the signal is somewhere else in each: air has none, flat parts
    have none at high local frequencies, although a sharp image has signal in all of k-space.

    For one of them with vectors v of all coils, C solves the equation of a distribution that is cut off,

        C = mean of v v^H / 2 over all v with v^H C^-1 v <= t,   divided by F_{2n+2}(t) / F_{2n}(t),

    with the distribution function F_k of chi^2 with k degrees of freedom, n coils and F_2n(t) = 0.78; it is found by
    iteration from the smallest vectors upwards, so that signal (larger ones) does not count. Signal that is left can only
    add, hence the smallest of the estimates is taken.

    Args:
        kspace: complex; coils that are zero everywhere have no noise.
        mask: boolean (height, width), what was sampled.
    """
    live = kspace.abs().sum((1, 2)) > 0
    kspace = kspace[live].to(torch.complex128)
    best: tuple[float, Tensor, int, str] | None = None
    for vectors, independent, where in _signal_free(kspace, mask):
        covariance, inside = _clipped(vectors, _INSIDE)
        size = _size(covariance)
        if best is None or size < best[0]:
            wide, _ = _clipped(vectors, _CHECK)
            best = (size, covariance, int(inside * independent), where)
            certain = _size(wide) <= size * _CERTAIN
    assert best is not None
    full = torch.zeros(len(live), len(live), dtype=torch.complex128)
    full[live.nonzero(), live.nonzero().T] = best[1]
    return NoiseEstimate(full, best[2], f"estimated from {best[3]}", certain)


def _size(covariance: Tensor) -> float:
    """Geometric mean of the standard deviations of the coils."""
    return float(covariance.diagonal().real.clamp_min(1e-300).log().mean().div(2).exp())


def _signal_free(kspace: Tensor, mask: Tensor) -> Iterator[tuple[Tensor, int, str]]:
    """Vectors (number, coils) of which some hold only noise, how many are independent, and what they are."""
    rows, columns = (torch.arange(n, dtype=torch.float64) - n // 2 for n in mask.shape)
    radius = torch.hypot(rows[:, None] / mask.shape[0], columns[None] / mask.shape[1])
    far = mask & (radius >= torch.quantile(radius[mask], 0.9))
    yield kspace[:, far].T, int(far.sum()), "the outermost tenth of k-space"
    yield kspace[:, mask].T, int(mask.sum()), "the smallest samples of k-space"
    block = calibration_region(mask)
    if min(block) >= 2 * _WINDOWS[0]:
        top, left = (n // 2 - size // 2 for n, size in zip(mask.shape, block, strict=True))
        image = centred_ifft(kspace[:, top : top + block[0], left : left + block[1]])
        for side in _WINDOWS:
            if min(block) >= 2 * side:
                yield _local_frequencies(image, (1, 2), side), block[0] * block[1], "local frequencies of the image"
    for axis in (1, 2):
        # with the axis of lines last: the rows of the transposed mask are its columns
        lines = mask if axis == 2 else mask.T
        extent = lines.any(0).nonzero().flatten()
        first, last = int(extent[0]), int(extent[-1]) + 1
        full = lines[:, first:last].all(1)
        if last - first < 2 * _WINDOWS[0] or int(full.sum()) < 2:
            continue
        part = (kspace if axis == 2 else kspace.transpose(1, 2))[:, full, first:last]
        profile = torch.fft.ifft(torch.fft.ifftshift(part, dim=2), dim=2, norm="ortho")
        profile = torch.fft.fftshift(profile, dim=2)
        for side in _WINDOWS:
            if last - first >= 2 * side:
                yield _local_frequencies(profile, (2,), side), part[0].numel(), "local frequencies of full lines"


def _local_frequencies(values: Tensor, axes: tuple[int, ...], side: int) -> Tensor:
    """Fourier transforms of Hann windows of ``side`` pixels: (number, coils), of the noise of ``values``."""
    window = torch.hann_window(side + 2, periodic=False, dtype=torch.float64)[1:-1]
    window = window / window.norm()
    number = math.prod(values.shape[1:])
    # overlapping windows of a small image, some of a large one
    step = max(1, side // 4, math.floor(side * (number / _MANY) ** (1 / len(axes))))
    for axis in axes:
        values = torch.fft.fft(values.unfold(axis, side, step) * window, dim=-1)
    return values.reshape(len(values), -1).T


def _clipped(vectors: Tensor, share: float) -> tuple[Tensor, float]:
    """C of ``estimate_noise`` for vectors (number, coils), and the share of the vectors that is noise."""
    number, coils = vectors.shape
    cut = float(chi2.ppf(share, 2 * coils))
    factor = float(chi2.cdf(cut, 2 * coils + 2)) / share
    energies = vectors.abs().square()
    scale = _start(energies, 2)
    covariance = torch.diag(scale).to(vectors.dtype)
    if not bool((scale > 0).all()):
        return covariance, 1.0
    covariance *= _start((energies / scale).sum(1, keepdim=True), 2 * coils)[0]
    inside = torch.ones(number, dtype=torch.bool)
    for _ in range(100):
        distance = (torch.linalg.solve(covariance, vectors.T).T * vectors.conj()).sum(1).real
        before, inside = inside, distance <= cut
        if bool((before == inside).all()):
            break
        part = vectors[inside]
        covariance = part.T @ part.conj() / (2 * len(part) * factor)
    return covariance, min(1.0, float(inside.double().mean()) / share)


def _start(energies: Tensor, freedom: int) -> Tensor:
    """Variances for which the smallest energies, columns of (number, ...), are chi^2 of so many degrees of freedom."""
    low = 0.02
    rank = max(0, min(len(energies) - 1, math.ceil(low * len(energies)) - 1))
    return energies.sort(dim=0).values[rank] / float(chi2.ppf((rank + 0.5) / len(energies), freedom))
