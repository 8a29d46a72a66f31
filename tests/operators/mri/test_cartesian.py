"""Cartesian MRI against the matrix of the discrete Fourier transform, against ODL, and on measured k-space."""

from __future__ import annotations

import copy
import math

import numpy as np
import odl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from odl.trafos import DiscreteFourierTransform, FourierTransform
from torch import Tensor

from recon.operators import (
    CartesianMRI,
    channels_to_complex,
    check_adjoint,
    complex_to_channels,
    magnitude,
    root_sum_of_squares,
    zero_filled,
)
from recon.operators.checks import random_tensor
from recon.operators.mri.cartesian import centred_fft, centred_ifft
from tests.operators.checks import assert_adjoint, assert_bounds, assert_operator, random_image, singular_values

SIZES = [(5, 4), (4, 5), (3, 3), (1, 6)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_mask(shape: tuple[int, int], seed: int = 0) -> Tensor:
    mask = torch.rand(shape, generator=generator(seed)) < 0.5
    mask[shape[0] // 2, shape[1] // 2] = True
    return mask


def random_maps(coils: int, shape: tuple[int, int], seed: int = 1) -> Tensor:
    return random_tensor((coils, *shape), True, generator=generator(seed))


def fourier_matrix(n: int) -> Tensor:
    """The definition: exp(-2 pi i k p / n) / sqrt(n), with k and p from -(n // 2) upwards."""
    frequency = torch.arange(n, dtype=torch.float64) - n // 2
    return torch.exp(-2j * math.pi * torch.outer(frequency, frequency) / n) / math.sqrt(n)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("coils", [0, 3])
def test_contract(shape: tuple[int, int], coils: int) -> None:
    maps = random_maps(coils, shape) if coils else None
    assert_operator(CartesianMRI(random_mask(shape), maps), tightness=math.inf if coils else 1e-12)
    full = CartesianMRI(torch.ones(shape, dtype=torch.bool), maps)
    assert_operator(full)
    assert full.lower_bound == pytest.approx(float(singular_values(full)[-1]), rel=1e-12)


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 4), st.integers(0, 99))
def test_adjoint_and_bounds(height: int, width: int, coils: int, seed: int) -> None:
    maps = random_maps(coils, (height, width), seed) if coils else None
    operator = CartesianMRI(random_mask((height, width), seed), maps)
    assert_adjoint(operator)
    assert_bounds(operator, tightness=math.inf)
    assert check_adjoint(operator, dtype=torch.float32, seed=seed) <= 1e-5


@pytest.mark.parametrize("shape", SIZES)
def test_against_the_fourier_matrix(shape: tuple[int, int]) -> None:
    mask, maps = random_mask(shape), random_maps(2, shape)
    operator = CartesianMRI(mask, maps)
    x = random_image(operator)
    rows, columns = map(fourier_matrix, shape)
    expected = mask * (rows @ (maps * torch.complex(x[:, 0], x[:, 1])[:, None]) @ columns)
    result = operator(x)
    torch.testing.assert_close(torch.complex(result[:, :, 0], result[:, :, 1]), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SIZES)
def test_a_single_coil_with_a_full_mask_is_unitary(shape: tuple[int, int]) -> None:
    operator = CartesianMRI(torch.ones(shape, dtype=torch.bool))
    assert (operator.norm_bound, operator.lower_bound) == (1.0, 1.0)
    x = random_image(operator)
    torch.testing.assert_close(operator.adjoint(operator(x)), x, rtol=0, atol=1e-14)
    torch.testing.assert_close(operator(x).norm(), x.norm())
    # a point in the origin has a constant spectrum, and a constant image one sample in the origin of k-space
    point, constant = torch.zeros(1, 2, *shape), torch.ones(1, 2, *shape)
    centre = (shape[0] // 2, shape[1] // 2)
    point[(..., *centre)] = 1
    root = math.sqrt(shape[0] * shape[1])
    torch.testing.assert_close(operator(point), constant[:, None] / root)
    torch.testing.assert_close(operator(constant), root * point[:, None])


@pytest.mark.parametrize("shape", [(5, 4), (4, 7)])
def test_against_odls_discrete_transform(shape: tuple[int, int]) -> None:
    """ODL's transform has its origins in the corner and no scaling."""
    z = random_tensor(shape, True, generator=generator())
    transform = DiscreteFourierTransform(odl.uniform_discr([0, 0], list(shape), shape, dtype="complex128"))
    odls = transform(transform.domain.element(np.fft.ifftshift(z.numpy()))).asarray()
    np.testing.assert_allclose(centred_fft(z).numpy(), np.fft.fftshift(odls) / math.sqrt(z.numel()), atol=1e-13)


@pytest.mark.parametrize("shape", [(5, 3), (7, 5)])
def test_against_odls_continuous_transform(shape: tuple[int, int]) -> None:
    """ODL's is (2 pi)^(-d/2) times the integral over pixels of side one, which is a factor sinc(xi / 2) per axis."""
    z = random_tensor(shape, True, generator=generator())
    low = [-(n // 2) - 0.5 for n in shape]
    space = odl.uniform_discr(low, [a + n for a, n in zip(low, shape, strict=True)], shape, dtype="complex128")
    transform = FourierTransform(space, shift=False)
    rows, columns = transform.range.grid.coord_vectors
    factor = np.outer(np.sinc(rows / (2 * np.pi)), np.sinc(columns / (2 * np.pi))) / (2 * np.pi)
    expected = transform(space.element(z.numpy())).asarray() / (factor * math.sqrt(z.numel()))
    np.testing.assert_allclose(centred_fft(z).numpy(), expected, atol=1e-12)


def test_helpers_of_complex_images() -> None:
    z = random_tensor((2, 3, 4, 5), True, generator=generator())
    x = complex_to_channels(z)
    assert x.shape == (2, 3, 2, 4, 5)
    assert torch.equal(channels_to_complex(x), z)
    assert torch.equal(x[:, :, 1], z.imag)
    torch.testing.assert_close(magnitude(x)[:, :, 0], z.abs())
    torch.testing.assert_close(root_sum_of_squares(x)[:, 0], z.abs().square().sum(1).sqrt())
    torch.testing.assert_close(channels_to_complex(zero_filled(complex_to_channels(centred_fft(z)))), z)
    for wrong in (z, x[..., :1, :, :], x.long(), x[0, 0, 0]):
        for helper in (channels_to_complex, magnitude, root_sum_of_squares):
            with pytest.raises(ValueError, match=r"expected .*real"):
                helper(wrong)
    with pytest.raises(ValueError, match="expected a complex tensor"):
        complex_to_channels(x)


def test_unsampled_data_are_not_read() -> None:
    mask = random_mask((4, 5))
    operator = CartesianMRI(mask)
    y = operator(random_image(operator))
    assert torch.equal(y == 0, (~mask).expand_as(y))
    torch.testing.assert_close(operator.adjoint(y.masked_fill(~mask, math.nan)), operator.adjoint(y))
    assert operator.acceleration == pytest.approx(20 / int(mask.sum()))
    assert CartesianMRI(torch.zeros(2, 3, dtype=torch.bool)).norm_bound == 0


def test_casts_and_copies_keep_the_precision() -> None:
    operator = CartesianMRI(random_mask((6, 5)), random_maps(3, (6, 5)))
    x = random_image(operator)
    expected = operator(x)
    cast = copy.deepcopy(operator).to(torch.float32)
    assert torch.equal(cast(x), expected)
    assert not operator.state_dict()
    mask = torch.ones(6, 5, dtype=torch.bool)
    kept = CartesianMRI(mask)
    mask.fill_(False)
    assert bool(kept.mask.all())


def test_first_use_in_inference_mode_does_not_spoil_later_gradients() -> None:
    operator = CartesianMRI(random_mask((4, 4)), random_maps(2, (4, 4)))
    x = torch.zeros(1, 2, 4, 4)
    with torch.inference_mode():
        operator(x)
    operator(x.requires_grad_()).sum().backward()


def test_inverse_transform() -> None:
    z = random_tensor((2, 5, 4), True, generator=generator())
    torch.testing.assert_close(centred_ifft(centred_fft(z)), z)


def test_wrong_arguments() -> None:
    mask = torch.ones(4, 5, dtype=torch.bool)
    for wrong in (mask.float(), mask[None], [True]):
        with pytest.raises(ValueError, match=r"boolean tensor \(height, width\)"):
            CartesianMRI(wrong)  # type: ignore[arg-type]
    maps = random_maps(2, (4, 5))
    for wrong_maps in (maps.real, maps[0], maps[:, :3], maps[:0], [1.0]):
        with pytest.raises(ValueError, match=r"complex tensor \(coils, 4, 5\)"):
            CartesianMRI(mask, wrong_maps)  # type: ignore[arg-type]
    maps[1, 2, 3] = math.nan
    with pytest.raises(ValueError, match="1 values that are NaN"):
        CartesianMRI(mask, maps)
    with pytest.raises(ValueError, match=r"expected \(batch, 2, 4, 5\)"):
        CartesianMRI(mask)(torch.zeros(1, 1, 4, 5))
    with pytest.raises(ValueError, match=r"expected \(batch, 1, 2, 4, 5\)"):
        CartesianMRI(mask).adjoint(torch.zeros(1, 2, 4, 5))
