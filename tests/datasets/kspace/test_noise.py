"""Noise of k-space: its level where images are sharp, its covariance, whitening, and what cannot be known."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import DataError, KSpaceDataModule, RandomEllipses, SheppLogan
from datasets.kspace.noise import NoiseEstimate, estimate_noise, measured_noise
from recon.operators import simulated_sensitivities
from recon.operators.mri.cartesian import centred_fft
from recon.operators.mri.sampling import PATTERNS, radial

Shape = tuple[int, int]


def discs(shape: Shape) -> torch.Tensor:
    """A sharp disc with an insert and a hole, with a smooth phase; the sides are 48."""
    i, j = ((torch.arange(n, dtype=torch.float64) - n // 2) * 48 / n for n in shape)
    i, j = i[:, None].expand(shape), j.expand(shape)
    made = torch.where(i.square() + j.square() < 400, 0.5, 0.0).double()
    made[(i + 8).square() + (j - 10).square() < 16] = 1.0
    made[(i - 9).square() + (j + 6).square() < 9] = 0.1
    return torch.polar(made, j / 40)


def noise(covariance: torch.Tensor, number: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Complex (coils, ...) with E[n n^H] / 2 = covariance."""
    root = torch.linalg.cholesky(covariance)
    parts = torch.randn(2, len(root), math.prod(number), generator=torch.Generator().manual_seed(seed)).double()
    return (root @ torch.complex(parts[0], parts[1])).reshape(len(root), *number)


def correlated(coils: int, sigma: float) -> torch.Tensor:
    """A covariance with standard deviations from sigma to 3 sigma and correlations of 0.5 and -0.3i of neighbours."""
    deviations = torch.linspace(1, 3, coils).double() * sigma
    made = torch.eye(coils, dtype=torch.complex128)
    for k in range(coils - 1):
        made[k, k + 1], made[k + 1, k] = 0.4 - 0.3j, 0.4 + 0.3j
    return made * torch.outer(deviations, deviations)


def white(coils: int, sigma: float) -> torch.Tensor:
    return sigma**2 * torch.eye(coils, dtype=torch.complex128)


@pytest.mark.parametrize("sigma", [0.003, 0.01, 0.03])
@pytest.mark.parametrize("shape", [(48, 48), (96, 81)])
def test_sharp_images_fully_sampled(shape: Shape, sigma: float) -> None:
    for seed, image in enumerate((discs(shape), discs(shape).abs().to(torch.complex128))):
        y = centred_fft(image[None]) + noise(white(1, sigma), shape, seed)
        found = estimate_noise(y, torch.ones(shape, dtype=torch.bool))
        assert found.certain
        assert found.level == pytest.approx(sigma, rel=0.2)
        assert found.root_mean_square == pytest.approx(found.level)


@pytest.mark.parametrize("sigma", [0.003, 0.01])
def test_phantom_that_fills_the_field_of_view(sigma: float) -> None:
    image = SheppLogan(64)[0].to(torch.complex128)
    y = centred_fft(image) + noise(white(1, sigma), (64, 64))
    found = estimate_noise(y, torch.ones(64, 64, dtype=torch.bool))
    assert found.certain
    assert found.level == pytest.approx(sigma, rel=0.2)


@pytest.mark.parametrize("coils", [1, 4])
@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_undersampled_is_right_or_not_certain(pattern: str, coils: int) -> None:
    shape, sigma = (96, 96), 0.01
    mask = PATTERNS[pattern](shape, 3.0, None, 0)  # type: ignore[index]
    y = centred_fft(simulated_sensitivities(coils, shape) * discs(shape)) + noise(white(coils, sigma), shape)
    found = estimate_noise(y * mask, mask)
    if found.certain or pattern in ("random_lines", "equispaced"):
        assert found.level == pytest.approx(sigma, rel=0.2)
    else:
        assert found.level > 0.8 * sigma  # signal only adds


def ellipses(shape: Shape, seed: int, share: float) -> torch.Tensor:
    """Sharp ellipses with a smooth phase, over a share of the rows and columns; the largest value is 1."""
    inner = [max(8, round(share * n)) for n in shape]
    picture = RandomEllipses(1, max(inner), seed, interior=False)[0][0].double()
    i, j = (torch.arange(n) * max(inner) // n for n in inner)
    made = torch.zeros(shape, dtype=torch.float64)
    top, left = ((n - m) // 2 for n, m in zip(shape, inner, strict=True))
    made[top : top + inner[0], left : left + inner[1]] = picture[i[:, None], j]
    return torch.polar(made / made.max(), (torch.arange(shape[1]) / shape[1]).double().expand(shape))


# seed, shape, coils, acceleration, noise
CASES = [
    (seed, shape, coils, acceleration, sigma)
    for seed, (shape, coils, acceleration, sigma) in enumerate(
        itertools.product([(64, 81), (101, 64)], [1, 3], [3.0, 6.0], [0.002, 0.02])
    )
]


def _estimated(case: tuple[int, Shape, int, float, float], share: float, pattern: str) -> tuple[NoiseEstimate, float]:
    """The estimate, and the largest ratio of its levels to the true ones or of the true ones to them."""
    seed, shape, coils, acceleration, sigma = case
    truth = correlated(coils, sigma) if seed % 2 else white(coils, sigma)
    mask = PATTERNS[pattern](shape, acceleration, None, seed)  # type: ignore[index]
    image = simulated_sensitivities(coils, shape) * ellipses(shape, 100 + seed, share)
    found = estimate_noise((centred_fft(image) + noise(truth, shape, seed)) * mask, mask)
    exact = NoiseEstimate(truth, 10**6, "known")
    ratios = (found.level / exact.level, found.root_mean_square / exact.root_mean_square)
    return found, max(max(ratio, 1 / ratio) for ratio in ratios)


def test_air_beside_the_object_and_few_lines() -> None:
    """The ends of the readout hold noise alone in every line, however few there are."""
    found = [_estimated(case, 0.75, pattern) for case in CASES for pattern in ("random_lines", "equispaced")]
    assert max(off for _, off in found) <= 1.2
    assert sum(not one.certain for one, _ in found) <= 0.25 * len(found)


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_pictures_without_air_are_right_or_not_certain(pattern: str) -> None:
    for case in CASES:
        found, off = _estimated(case, 1.0, pattern)
        assert off <= 1.2 or not found.certain, case


def test_noise_alone_and_coils_that_are_off() -> None:
    y = noise(white(3, 0.5), (40, 40))
    y[1] = 0.0
    found = estimate_noise(y, torch.ones(40, 40, dtype=torch.bool))
    assert found.level == pytest.approx(0.5, rel=0.05)
    assert found.deviations[1] == 0
    assert found.alike
    assert torch.equal(found.whitened(y)[1], y[1])


def test_without_noise_nothing_is_whitened() -> None:
    y = centred_fft(simulated_sensitivities(4, (48, 48)) * discs((48, 48)))
    found = estimate_noise(y, torch.ones(48, 48, dtype=torch.bool))
    assert not found.certain
    assert found.root_mean_square < 1e-3


@pytest.mark.parametrize("sigma", [0.005, 0.02])
def test_covariance_of_coils_from_the_data(sigma: float) -> None:
    shape, truth = (96, 96), correlated(4, sigma)
    y = centred_fft(simulated_sensitivities(4, shape) * discs(shape)) + noise(truth, shape)
    found = estimate_noise(y, torch.ones(shape, dtype=torch.bool))
    assert found.certain
    assert not found.alike
    # relative to the truth: eigenvalues of C^-1 estimate, which whitening divides by
    ratio = torch.linalg.eigvals(torch.linalg.solve(truth, found.covariance)).real.sqrt()
    assert float(ratio.min()) > 0.85
    assert float(ratio.max()) < 1.2
    left = found.whitened(noise(truth, shape, 5)).flatten(1)
    left = left @ left.conj().T / (2 * left.shape[1]) / found.level**2
    assert torch.allclose(left, torch.eye(4, dtype=left.dtype), atol=0.3)


def test_covariance_of_a_noise_scan() -> None:
    truth = correlated(5, 0.7)
    found = measured_noise(noise(truth, (200_000,)), "measured")
    assert torch.allclose(found.covariance, truth, atol=0.03 * float(truth.abs().max()))
    exact = NoiseEstimate(truth, 100_000, "known")
    assert exact.level == pytest.approx(math.sqrt(5 / float(torch.linalg.inv(truth).diagonal().real.sum())))
    assert exact.root_mean_square == pytest.approx(math.sqrt(float(truth.diagonal().real.mean())))
    # the map itself, by brute force: W C W^H = level^2 I
    w = exact.whitened(torch.eye(5, dtype=torch.complex128)[:, None])[:, 0]
    assert torch.allclose(w @ truth @ w.conj().T, exact.level**2 * torch.eye(5, dtype=w.dtype), atol=1e-12)
    assert NoiseEstimate(white(5, 0.3), 100_000, "known").alike
    same = NoiseEstimate(white(5, 0.3), 100, "known").whitened(torch.ones(5, 2, 2, dtype=torch.complex128))
    assert torch.allclose(same, torch.ones_like(same))


def test_noise_scans_that_are_no_good() -> None:
    with pytest.raises(ValueError, match="at least 100 are needed"):
        measured_noise(noise(white(2, 1.0), (50,)), "measured")
    twice = noise(white(1, 1.0), (500,)).repeat(2, 1)
    with pytest.raises(ValueError, match="combinations of each other"):
        measured_noise(twice, "measured")
    twice[1] = 0
    with pytest.raises(ValueError, match="coil 1 of the noise scan holds only zeros"):
        measured_noise(twice, "measured")


# --- served with the data --------------------------------------------------------------------------------------------


def _saved(folder: Path, truth: torch.Tensor) -> tuple[Path, Path]:
    shape, coils = (64, 64), len(truth)
    y = centred_fft(simulated_sensitivities(coils, shape) * discs(shape)) + noise(truth, shape)
    np.save(folder / "k.npy", y.numpy())
    np.save(folder / "noise.npy", noise(truth, (50, 400), 7).numpy())
    return folder / "k.npy", folder / "noise.npy"


def test_coils_are_whitened_and_the_combined_image_gains(tmp_path: Path) -> None:
    truth = correlated(4, 0.02)
    file, scan = _saved(tmp_path, truth)
    plain = KSpaceDataModule(str(file), noise=1.0)
    by_data, by_scan = KSpaceDataModule(str(file)), KSpaceDataModule(str(file), noise_scan=str(scan))
    assert not plain.whitened
    assert by_data.whitened
    assert by_scan.whitened
    assert torch.equal(plain.measured, plain.file.values)
    level = NoiseEstimate(truth, 10**6, "known").level
    assert by_scan.noise == pytest.approx(level, rel=0.02)
    assert by_data.noise == pytest.approx(level, rel=0.2)

    def noise_of_air(data: KSpaceDataModule) -> float:
        """Standard deviation over the disc's height, where there is no signal, of the matched combination."""
        image = data.operator.adjoint(data.measurement()[None])[0] * data.scale
        disc = torch.complex(image[0], image[1])[28:36, 28:36]
        smooth = disc.abs().diff(dim=0).diff(dim=1)
        return float(smooth.std()) / 2 / float(disc.abs().mean())

    assert noise_of_air(by_scan) < 0.8 * noise_of_air(plain)
    assert noise_of_air(by_data) < 0.8 * noise_of_air(plain)


def test_like_coils_stay_as_they_are(tmp_path: Path) -> None:
    file, scan = _saved(tmp_path, white(4, 0.02))
    for data in (KSpaceDataModule(str(file)), KSpaceDataModule(str(file), noise_scan=str(scan))):
        assert not data.whitened
        assert torch.equal(data.measured, data.file.values)
        assert data.noise == pytest.approx(0.02, rel=0.1)


def test_noise_scan_of_other_coils(tmp_path: Path) -> None:
    file, _ = _saved(tmp_path, white(4, 0.02))
    np.save(tmp_path / "other.npy", noise(white(3, 1.0), (500,)).numpy())
    with pytest.raises(DataError, match=r"other\.npy: noise of 3 coils, but .*k\.npy has 4"):
        _ = KSpaceDataModule(str(file), noise_scan=str(tmp_path / "other.npy")).noise
    np.save(tmp_path / "short.npy", noise(white(4, 1.0), (9,)).numpy())
    with pytest.raises(DataError, match=r"short\.npy: a noise scan of 4 coils with 9 samples"):
        _ = KSpaceDataModule(str(file), noise_scan=str(tmp_path / "short.npy")).noise
    with pytest.raises(ValueError, match="exclude each other"):
        KSpaceDataModule(str(file), noise_scan="n.npy", noise=1.0)


def test_radial_single_coil_is_not_certain() -> None:
    mask = radial((64, 64), 4.0, None, 0)
    y = (centred_fft(discs((64, 64))[None]) + noise(white(1, 0.003), (64, 64))) * mask
    assert not estimate_noise(y, mask).certain
