"""Noise of measured k-space: its covariance between coils, from what holds no signal, or from a scan of noise alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from scipy.stats import chi2
from torch import Tensor

from recon.operators.mri.cartesian import centred_ifft
from recon.operators.mri.sensitivity import calibration_region

# Sides in pixels of the windows whose local frequencies are looked at: sharp images need small ones, images that ring
# need large ones. Each has at least twice its side of samples.
_WINDOWS = (4, 8, 12)
# Samples far from the zero frequency are a tenth of all, but at least so many: estimates from few are too small.
_FEW = 1000
# Vectors of one kind, about: more add time but no accuracy.
_MANY = 20_000
# The share of noise that counts, lowest energies first, for the estimate and for its check.
_INSIDE, _CHECK = 0.78, 0.98
# The estimate and the check may differ by this factor where signal does not pass for noise.
_CERTAIN = 1.15
# Coils whose correlation has a smaller eigenvalue than this are combinations of each other.
_DEPENDENT = 1e-10


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
        """(coils / trace(covariance^-1))^(1/2): the standard deviation of all coils once they are whitened."""
        live = self.covariance.diagonal().real > 0
        if not bool(live.any()):
            return 0.0
        return math.sqrt(
            int(live.sum()) / float(torch.linalg.inv(self.covariance[live][:, live]).diagonal().real.sum())
        )

    @property
    def root_mean_square(self) -> float:
        """(trace(covariance) / coils)^(1/2): what residuals of all coils that are not whitened have."""
        return math.sqrt(float(self.covariance.diagonal().real.mean()))

    @property
    def alike(self) -> bool:
        """Whether the coils are independent and of one variance, as far as ``count`` samples can tell, or nearly so.

        The eigenvalues of the covariance differ by less than 1.5, or than those of the sample covariance of white
        noise, ((1 + q) / (1 - q))^2 with q = (coils / count)^(1/2) (Marchenko and Pastur).
        """
        live = self.covariance.diagonal().real > 0
        if int(live.sum()) < 2:
            return True
        values = torch.linalg.eigvalsh(self.covariance[live][:, live])
        ratio = min(math.sqrt(int(live.sum()) / max(1, self.count)), 0.99)
        return float(values[-1]) <= max(1.5, ((1 + ratio) / (1 - ratio)) ** 2) * float(values[0])

    def whitened(self, kspace: Tensor) -> Tensor:
        """``level`` C^(-1/2) k, whose noise is independent, with the standard deviation ``level`` in each coil.

        The coils are replaced by combinations of them, as near to the coils themselves as can be; coils without noise
        (those that are zero) stay as they are. Sensitivities of whitened k-space are those of the new coils.

        Args:
            kspace: complex128 (coils, height, width).
        """
        live = self.covariance.diagonal().real > 0
        values, vectors = torch.linalg.eigh(self.covariance[live][:, live])
        root = self.level * (vectors / values.sqrt()) @ vectors.conj().T
        made = kspace.clone()
        made[live] = torch.einsum("ij,jhw->ihw", root, kspace[live])
        return made


def measured_noise(samples: Tensor, rule: str) -> NoiseEstimate:
    """The noise of a scan without signal, complex ``(coils, samples)``: the mean of n n^H / 2.

    Raises:
        ValueError: fewer than 100 samples, or than 4 for each coil; no noise, or coils that depend on each other.
    """
    coils, number = samples.shape
    if number < max(100, 4 * coils):
        raise ValueError(
            f"a noise scan of {coils} coils with {number} samples each; at least {max(100, 4 * coils)} are needed"
        )
    samples = samples.to(torch.complex128)
    covariance = samples @ samples.conj().T / (2 * number)
    scale = covariance.diagonal().real.sqrt()
    if not bool((scale > 0).all()):
        raise ValueError(f"coil {int((scale <= 0).nonzero()[0])} of the noise scan holds only zeros")
    if _singular(covariance):
        raise ValueError("the coils of the noise scan are combinations of each other, so they cannot be whitened")
    return NoiseEstimate(covariance, number, rule)


def estimate_noise(kspace: Tensor, mask: Tensor) -> NoiseEstimate:
    """The noise of complex k-space ``(coils, height, width)``, white and alike in all its samples.

    What is looked at are samples themselves, those farthest from the zero frequency, and local frequencies: the image
    of the largest fully sampled block around the zero frequency (along one axis: of lines that are sampled completely)
    is cut into windows of 4, 8 and 12 pixels, weighted by Hann's, and transformed. All of these are unitary up to
    overlap, so the noise has the same covariance C everywhere, but the signal is somewhere else in each: air has none,
    flat parts have none at high local frequencies, although a sharp image has signal in all of k-space.

    For one of them with vectors v of all coils, C solves the equation of a distribution that is cut off,

        C = mean of v v^H / 2 over all v with v^H C^-1 v <= t,   divided by F_{2n+2}(t) / F_{2n}(t),

    with the distribution function F_k of chi^2 with k degrees of freedom, n coils and F_2n(t) = 0.78; it is found by
    iteration from the smallest vectors upwards, so that signal (larger ones) does not count. Signal that is left can
    only add, hence the smallest of the estimates is taken. It is certain if a local one is nearly as small, and if
    F_2n(t) = 0.98 gives nearly the same in all combinations of the coils.

    Args:
        kspace: complex; coils that are zero everywhere have no noise.
        mask: boolean (height, width), what was sampled.
    """
    live = kspace.abs().sum((1, 2)) > 0
    kspace = kspace[live].to(torch.complex128)
    best: tuple[Tensor, int, str, bool] | None = None
    smallest, of_image = math.inf, math.inf
    for vectors, independent, where, local in _signal_free(kspace, mask):
        covariance, inside = _clipped(vectors, _INSIDE)
        size = _size(covariance)
        of_image = min(of_image, size) if local else of_image
        if size < smallest:
            wide, _ = _clipped(vectors, _CHECK)
            smallest, best = size, (covariance, int(inside * independent), where, _agree(covariance, wide))
    assert best is not None
    full = torch.zeros(len(live), len(live), dtype=torch.complex128)
    full[live.nonzero(), live.nonzero().T] = best[0]
    # samples alone cannot tell: signal that is alike in all of them passes for noise
    certain = best[3] and of_image <= _CERTAIN * smallest
    return NoiseEstimate(full, best[1], f"estimated from {best[2]}", certain)


def _agree(covariance: Tensor, wide: Tensor) -> bool:
    """Whether no combination of the coils has much more noise in the second one."""
    if _singular(covariance) or not bool(torch.isfinite(wide.abs()).all()):
        return False
    ratio = torch.linalg.eigvals(torch.linalg.solve(covariance, wide)).real
    return float(ratio.max()) <= _CERTAIN**2


def _size(covariance: Tensor) -> float:
    """Geometric mean of the standard deviations of the coils."""
    return float(covariance.diagonal().real.clamp_min(1e-300).log().mean().div(2).exp())


def _signal_free(kspace: Tensor, mask: Tensor) -> Iterator[tuple[Tensor, int, str, bool]]:
    """Vectors (number, coils) with some that hold only noise, how many are independent, what they are, if local."""
    rows, columns = (torch.arange(n, dtype=torch.float64) - n // 2 for n in mask.shape)
    radius = torch.hypot(rows[:, None] / mask.shape[0], columns[None] / mask.shape[1])
    share = min(1.0, max(0.1, _FEW / int(mask.sum())))
    far = mask & (radius >= torch.quantile(radius[mask], 1 - share))
    yield kspace[:, far].T, int(far.sum()), "the outermost samples of k-space", False
    yield kspace[:, mask].T, int(mask.sum()), "the smallest samples of k-space", False
    block = calibration_region(mask)
    if min(block) >= 2 * _WINDOWS[0]:
        top, left = (n // 2 - size // 2 for n, size in zip(mask.shape, block, strict=True))
        image = centred_ifft(kspace[:, top : top + block[0], left : left + block[1]])
        for side in _WINDOWS:
            if min(block) >= 2 * side:
                vectors = _local_frequencies(image, (1, 2), side)
                yield vectors, block[0] * block[1], "local frequencies of the image", True
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
                vectors = _local_frequencies(profile, (2,), side)
                yield vectors, part[0].numel(), "local frequencies of full lines", True


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
    if len(vectors) > _MANY:  # not every k-th one, which would be the same frequency of all windows
        vectors = vectors[torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))[:_MANY]]
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
        if _singular(covariance):
            break
        distance = (torch.linalg.solve(covariance, vectors.T).T * vectors.conj()).sum(1).real
        before, inside = inside, distance <= cut
        if bool((before == inside).all()):
            break
        part = vectors[inside]
        covariance = part.T @ part.conj() / (2 * len(part) * factor)
    return covariance, min(1.0, float(inside.double().mean()) / share)


def _singular(covariance: Tensor) -> bool:
    """Whether a combination of the coils has no noise, as in data without any."""
    scale = covariance.diagonal().real.sqrt()
    if not bool((scale > 0).all()):
        return True
    return not float(torch.linalg.eigvalsh(covariance / torch.outer(scale, scale))[0]) > _DEPENDENT


def _start(energies: Tensor, freedom: int) -> Tensor:
    """Variances for which the smallest energies, columns of (number, ...), are chi^2 of so many degrees of freedom."""
    low = 0.02
    rank = max(0, min(len(energies) - 1, math.ceil(low * len(energies)) - 1))
    return energies.sort(dim=0).values[rank] / float(chi2.ppf((rank + 0.5) / len(energies), freedom))
