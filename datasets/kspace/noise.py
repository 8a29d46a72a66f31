"""Noise of measured k-space: its covariance between coils, from what holds no signal, or from a scan of noise alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import scipy  # its parts are loaded where they are used
import torch
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
# The estimate and the check may differ by this factor where signal does not pass for noise; of groups, by less.
_CERTAIN, _CERTAIN_GROUPS = 1.15, 1.08
# Noise is as strong in lines near the zero frequency as far from it, signal is not: the ratio of their energies, in
# the mean of all coils and in one coil.
_NEAR, _NEAR_COIL = 1.2, 1.5
# Fewer groups of vectors than this share of all may be alike by chance.
_GROUPS = 0.1
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

        Parameters
        ----------
        kspace
            complex128 (coils, height, width).
        """
        live = self.covariance.diagonal().real > 0
        values, vectors = torch.linalg.eigh(self.covariance[live][:, live])
        root = self.level * (vectors / values.sqrt()) @ vectors.conj().T
        made = kspace.clone()
        made[live] = torch.einsum("ij,jhw->ihw", root, kspace[live])
        return made


def measured_noise(samples: Tensor, rule: str) -> NoiseEstimate:
    """The noise of a scan without signal, complex ``(coils, samples)``: the mean of n n^H / 2.

    Raises
    ------
    ValueError
        fewer than 100 samples, or than 4 for each coil; no noise, or coils that depend on each other.
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
    iteration from the smallest vectors upwards, so that signal (larger ones) does not count. Complete lines have the
    same air beside the object: their m vectors of one place and local frequency are also taken or left together, by
    the sum of v^H C^-1 v and 2nm degrees of freedom, which tells noise from signal better, the more lines there are.

    Signal that is left can only add, hence the smallest of the estimates is taken. It is certain if the smallest one of
    local frequencies, or of those without groups, is nearly as small and plausible: 0.98 instead of 0.78 gives nearly
    the same in all combinations of the coils; of groups, a tenth counts as noise, and lines near the zero frequency
    have no more energy than others.

    Parameters
    ----------
    kspace
        complex; coils that are zero everywhere have no noise.
    mask
        boolean (height, width), what was sampled.
    """
    live = kspace.abs().sum((1, 2)) > 0
    kspace = kspace[live].to(torch.complex128)
    found = [(kind, *_clipped(kind.vectors, _INSIDE)) for kind in _signal_free(kspace, mask)]
    best = min(found, key=lambda one: _size(one[1]))
    # samples alone cannot tell: signal that is alike in all of them passes for noise
    local = [one for one in found if one[0].local and _size(one[1]) <= _CERTAIN * _size(best[1])]
    single = [one for one in local if one[0].vectors.shape[1] == 1]
    smallest = [min(some, key=lambda one: _size(one[1])) for some in (local, single) if some]
    certain = any(_plausible(*one) for one in smallest) and (best[0].local or _plausible(*best))
    kind, covariance, inside = best
    full = torch.zeros(len(live), len(live), dtype=torch.complex128)
    full[live.nonzero(), live.nonzero().T] = covariance
    count = int(min(1.0, float(inside.double().mean()) / _INSIDE) * kind.independent)
    return NoiseEstimate(full, count, f"estimated from {kind.name}", certain)


@dataclass(frozen=True)
class _Kind:
    """Vectors some of which hold only noise."""

    vectors: Tensor
    """(groups, members, coils): members are taken or left together, those of lines from the zero frequency outwards."""
    independent: int
    """How many samples they were made from."""
    name: str
    local: bool
    """Whether these are local frequencies."""


def _plausible(kind: _Kind, covariance: Tensor, inside: Tensor) -> bool:
    """Whether what was taken for noise looks like noise."""
    wide, _ = _clipped(kind.vectors, _CHECK)
    members = kind.vectors.shape[1]
    if not _agree(covariance, wide, _CERTAIN if members == 1 else _CERTAIN_GROUPS):
        return False
    if members == 1:
        return True
    energies = kind.vectors[inside].abs().square().mean(0)
    ratios = energies[: members // 2].mean(0) / energies[members // 2 :].mean(0)
    alike = float(ratios.mean()) <= _NEAR and float(ratios.max()) <= _NEAR_COIL
    return alike and float(inside.double().mean()) >= _GROUPS * _INSIDE


def _agree(covariance: Tensor, wide: Tensor, factor: float) -> bool:
    """Whether no combination of the coils has more than ``factor`` times the noise in the second one."""
    if _singular(covariance) or not bool(torch.isfinite(wide.abs()).all()):
        return False
    ratio = torch.linalg.eigvals(torch.linalg.solve(covariance, wide)).real
    return float(ratio.max()) <= factor**2


def _size(covariance: Tensor) -> float:
    """Geometric mean of the standard deviations of the coils."""
    return float(covariance.diagonal().real.clamp_min(1e-300).log().mean().div(2).exp())


def _signal_free(kspace: Tensor, mask: Tensor) -> Iterator[_Kind]:
    """What ``estimate_noise`` looks at, at most about ``_MANY`` groups of each."""
    rows, columns = (torch.arange(n, dtype=torch.float64) - n // 2 for n in mask.shape)
    radius = torch.hypot(rows[:, None] / mask.shape[0], columns[None] / mask.shape[1])
    share = min(1.0, max(0.1, _FEW / int(mask.sum())))
    far = mask & (radius >= torch.quantile(radius[mask], 1 - share))
    yield _Kind(_some(kspace[:, far].T), int(far.sum()), "the outermost samples of k-space", False)
    yield _Kind(_some(kspace[:, mask].T), int(mask.sum()), "the smallest samples of k-space", False)
    block = calibration_region(mask)
    if min(block) >= 2 * _WINDOWS[0]:
        top, left = (n // 2 - size // 2 for n, size in zip(mask.shape, block, strict=True))
        image = centred_ifft(kspace[:, top : top + block[0], left : left + block[1]])
        for side in _WINDOWS:
            if min(block) >= 2 * side:
                vectors = _local_frequencies(image, (1, 2), side).flatten(1).T
                yield _Kind(_some(vectors), block[0] * block[1], "local frequencies of the image", True)
    yield from _of_lines(kspace.transpose(1, 2), mask.T)
    yield from _of_lines(kspace, mask)


def _of_lines(kspace: Tensor, lines: Tensor) -> Iterator[_Kind]:
    """Local frequencies of the rows that are sampled completely, each for itself and those of all rows together."""
    extent = lines.any(0).nonzero().flatten()
    first, last = int(extent[0]), int(extent[-1]) + 1
    full = lines[:, first:last].all(1).nonzero().flatten()
    if last - first < 2 * _WINDOWS[0] or len(full) < 2:
        return
    full = full[(full - len(lines) // 2).abs().argsort(stable=True)]
    part = kspace[:, full, first:last]
    profile = torch.fft.ifft(torch.fft.ifftshift(part, dim=2), dim=2, norm="ortho")
    profile = torch.fft.fftshift(profile, dim=2)
    for side in _WINDOWS:
        if last - first >= 2 * side:
            vectors = _local_frequencies(profile, (2,), side, 3 * _MANY)
            name = "local frequencies of full lines"
            yield _Kind(_some(vectors.flatten(1).T), part[0].numel(), name, True)
            together = vectors.flatten(2).permute(2, 1, 0)
            yield _Kind(_some(together), part[0].numel(), f"{name}, all lines together", True)


def _some(vectors: Tensor) -> Tensor:
    """(groups, members, coils) of vectors (groups, coils) or of groups: all, or a random part of many."""
    if len(vectors) > _MANY:  # not every k-th one, which would be the same frequency of all windows
        vectors = vectors[torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))[:_MANY]]
    return vectors[:, None] if vectors.ndim == 2 else vectors


def _local_frequencies(values: Tensor, axes: tuple[int, ...], side: int, many: int = _MANY) -> Tensor:
    """Fourier transforms of Hann windows of ``side`` pixels: (coils, rest and windows ..., frequencies of axes ...)."""
    window = torch.hann_window(side + 2, periodic=False, dtype=torch.float64)[1:-1]
    window = window / window.norm()
    number = math.prod(values.shape[1:])
    # overlapping windows of a small image, some of a large one
    step = max(1, side // 4, math.floor(side * (number / many) ** (1 / len(axes))))
    for axis in axes:
        values = torch.fft.fft(values.unfold(axis, side, step) * window, dim=-1)
    return values


def _clipped(vectors: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """C of ``estimate_noise`` for vectors (groups, members, coils), and which groups it was computed from."""
    number, members, coils = vectors.shape
    freedom = 2 * coils * members
    cut = float(scipy.stats.chi2.ppf(share, freedom))
    factor = float(scipy.stats.chi2.cdf(cut, freedom + 2)) / share
    energies = vectors.abs().square().sum(1)
    scale = _start(energies, 2 * members)
    covariance = torch.diag(scale).to(vectors.dtype)
    inside = torch.ones(number, dtype=torch.bool)
    if not bool((scale > 0).all()):
        return covariance, inside
    covariance *= _start((energies / scale).sum(1, keepdim=True), freedom)[0]
    for _ in range(100):
        if _singular(covariance):
            break
        before, inside = inside, _distances(vectors, covariance).sum(1) <= cut
        if not bool(inside.any()) or bool((before == inside).all()):
            break
        part = vectors[inside].flatten(0, 1)
        covariance = part.T @ part.conj() / (2 * len(part) * factor)
    return covariance, inside


def _distances(vectors: Tensor, covariance: Tensor) -> Tensor:
    """v^H C^-1 v of vectors (..., coils)."""
    return ((vectors @ torch.linalg.inv(covariance).T) * vectors.conj()).sum(-1).real


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
    return energies.sort(dim=0).values[rank] / float(scipy.stats.chi2.ppf((rank + 0.5) / len(energies), freedom))
