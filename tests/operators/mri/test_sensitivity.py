"""Coil sensitivities: estimates against the truth, and reconstruction of measured k-space with them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models import TotalVariation
from recon.lower_level import FISTA, LBFGS, Energy
from recon.operators import (
    CartesianMRI,
    NoCalibrationError,
    complex_to_channels,
    estimate_sensitivities,
    magnitude,
    root_sum_of_squares,
    simulated_sensitivities,
    zero_filled,
)
from recon.operators.checks import random_tensor
from recon.operators.mri.cartesian import centred_fft
from recon.operators.mri.sampling import poisson_disc, random_lines
from recon.operators.mri.sensitivity import calibration_region, sampled_points

SHAPE = (60, 51)


def phantom(shape: tuple[int, int] = SHAPE) -> Tensor:
    """An ellipse with structure and a smooth phase, zero around it."""
    i, j = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape)
    i, j = i[:, None], j[None]
    inside = (i / 0.8).square() + (j / 0.65).square() <= 1
    structure = 0.6 + 0.3 * torch.sin(9 * i) * torch.cos(7 * j) + 0.1 * (i.square() + j.square() < 0.1)
    return torch.polar(structure * inside, 1.2 * i + 0.8 * j * j)


def kspace(mask: Tensor, coils: int = 5, noise: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Sampled k-space, true maps, true image."""
    shape = (mask.shape[0], mask.shape[1])
    x, maps = phantom(shape), simulated_sensitivities(coils, shape)
    y = centred_fft(maps * x)
    y = y + noise * random_tensor(tuple(y.shape), True, generator=torch.Generator().manual_seed(0))
    return y * mask, maps, x


@pytest.mark.parametrize("coils", [2, 5])
@pytest.mark.parametrize("pattern", ["poisson", "lines"])
def test_recovers_maps_from_undersampled_data(coils: int, pattern: str) -> None:
    mask = poisson_disc(SHAPE, 3.0, calibration=20) if pattern == "poisson" else random_lines(SHAPE, 2.0, 20)
    y, maps, x = kspace(mask, coils, noise=1e-3)
    found = estimate_sensitivities(y)
    inside = x.abs() > 0.1
    squares = found.abs().square().sum(0)
    assert bool((squares[inside] > 0.99).all())
    torch.testing.assert_close(squares, (squares > 0.5).double(), atol=1e-12, rtol=0)
    # |<s, s^>| = 1 where both are of norm one and equal up to a phase
    agreement = (found.conj() * maps).sum(0).abs()[inside]
    assert float(agreement.min()) > 0.995
    assert float(agreement.mean()) > 0.9995
    # with the phase of the object in the maps, the combined image is nearly real and positive
    combined = (found.conj() * maps * x).sum(0)[inside]
    assert float(combined.real.min()) > 0
    assert float(combined.imag.norm() / combined.norm()) < 0.1


def test_maps_of_full_data_explain_all_coils() -> None:
    y, maps, x = kspace(torch.ones(SHAPE, dtype=torch.bool))
    found = estimate_sensitivities(y)
    images = maps * x
    rest = images - found * (found.conj() * images).sum(0)
    assert float(rest.norm() / images.norm()) < 0.01


def test_scale_of_the_data_does_not_matter() -> None:
    y = kspace(poisson_disc(SHAPE, 3.0, calibration=16))[0]
    torch.testing.assert_close(estimate_sensitivities(1e4 * y), estimate_sensitivities(y), atol=1e-9, rtol=0)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99), st.floats(0.3, 1.0))
def test_calibration_region_is_the_largest_block(height: int, width: int, seed: int, density: float) -> None:
    mask = torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < density
    rows, columns = calibration_region(mask)
    blocks = [(0, 0)]
    for r in range(1, height + 1):
        for c in range(1, width + 1):
            top, left = height // 2 - r // 2, width // 2 - c // 2
            if bool(mask[top : top + r, left : left + c].all()):
                blocks.append((r, c))
    assert (rows, columns) in blocks
    assert (min(rows, columns), rows * columns) == max((min(b), b[0] * b[1]) for b in blocks)


def test_missing_centre_is_named() -> None:
    mask = poisson_disc(SHAPE, 3.0, calibration=8)
    y = kspace(mask)[0]
    found = "x".join(map(str, calibration_region(mask)))
    with pytest.raises(NoCalibrationError, match=rf"centre of k-space has {found} points .*\(30, 25\).* needs 12x12"):
        estimate_sensitivities(y)
    assert estimate_sensitivities(y, kernel=4).shape == (5, *SHAPE)
    y[:, 30, 25] = 0
    with pytest.raises(NoCalibrationError, match="has 0x0 points"):
        estimate_sensitivities(y)
    # zeros that were measured do not count as missing, but nothing can be learned from them alone
    full = torch.ones(SHAPE, dtype=torch.bool)
    with pytest.raises(NoCalibrationError, match="zero in all coils"):
        estimate_sensitivities(torch.zeros_like(y), full)


def test_wrong_arguments() -> None:
    y = kspace(torch.ones(SHAPE, dtype=torch.bool))[0]
    for wrong in (y.real, y[0], y[:0], 3.0):
        with pytest.raises(ValueError, match="complex tensor"):
            estimate_sensitivities(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mask must be boolean"):
        estimate_sensitivities(y, torch.ones(3, 3, dtype=torch.bool))
    for options in ({"kernel": 1}, {"noise_level": 0.0}, {"support": 1.0}):
        with pytest.raises(ValueError, match="must be at least 2"):
            estimate_sensitivities(y, **options)  # type: ignore[arg-type]
    y[0, 1, 2] = math.nan
    with pytest.raises(ValueError, match="1 values that are NaN"):
        estimate_sensitivities(y)
    for arguments in ((0, (4, 4)), (2, (0, 4)), (2, (4, 4), -1.0)):
        with pytest.raises(ValueError, match="must be positive"):
            simulated_sensitivities(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("coils", [1, 4])
def test_simulated_maps_are_normalised(coils: int) -> None:
    maps = simulated_sensitivities(coils, (7, 6))
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(7, 6, dtype=torch.float64))
    assert CartesianMRI(torch.ones(7, 6, dtype=torch.bool), maps).norm_bound == pytest.approx(1.0)
    if coils > 1:  # each is strongest in its place
        assert len({int(m.abs().argmax()) for m in maps}) == coils


def test_total_variation_beats_zero_filling() -> None:
    mask = poisson_disc(SHAPE, 3.0, calibration=20)
    y, maps, x = kspace(mask, noise=5e-3)
    operator, data = CartesianMRI(mask, maps), complex_to_channels(y)[None]
    energy = Energy(data, TotalVariation(-6.0, -6.0).double(), operator, mu=1e-3)
    start, truth = operator.adjoint(data), complex_to_channels(x)[None]
    solution = LBFGS()(energy, start, 0.1)
    assert solution.converged
    assert float((solution.x - truth).norm()) < 0.4 * float((start - truth).norm())


def test_measured_brain(shared_data: Path) -> None:
    file = shared_data / "mri_kspace_8ch" / "cartesian_ksp.npy"
    if not file.is_file():
        pytest.skip(f"real data: no file {file}")
    measured = torch.from_numpy(np.load(file))
    mask = sampled_points(measured)
    assert calibration_region(mask) == (24, 24)
    maps = estimate_sensitivities(measured)
    operator, y = CartesianMRI(mask, maps), complex_to_channels(measured.to(torch.complex128))[None]
    assert operator.acceleration == pytest.approx(1 / 0.124, rel=5e-3)
    assert operator.norm_bound == pytest.approx(1.0)

    # the head, by the zero-filled image, lies in the support; the noise around it is what is cut off
    coil_images = zero_filled(y)
    blurred = root_sum_of_squares(coil_images)[0, 0]
    supported = maps.abs().sum(0) > 0
    assert bool(supported[blurred > 0.15 * blurred.max()].all())
    assert 0.5 < float(supported.double().mean()) < 0.95
    # combined with the maps, the coil images lose what is not in all of them consistently: little
    combined = magnitude(operator.adjoint(y))[0, 0]
    assert float((combined - blurred)[supported].norm() / blurred[supported].norm()) < 0.05

    energy = Energy(y, TotalVariation(math.log(1e-3), math.log(5e-3)).double(), operator, mu=5e-3)
    start = operator.adjoint(y)
    solution = LBFGS()(energy, start, 0.5)
    assert solution.converged
    again = FISTA()(energy, start, 0.5)
    # both certified: no further apart than the sum of their errors
    assert float((solution.x - again.x).norm()) <= float(solution.error + again.error)
    residual = float((operator(solution.x) - y).norm() / y.norm())
    assert residual < 0.05
    # edges that zero filling blurs come back: more variation within the head, less noise around it
    x = magnitude(solution.x)[0, 0]
    contrast = (x.diff(dim=1).square().mean() / combined.diff(dim=1).square().mean()).sqrt()
    assert float(contrast) > 1.5
