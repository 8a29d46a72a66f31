"""Blur against scipy.ndimage, and its bounds against the dense matrix."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recon.operators import Blur, gaussian_kernel
from tests.operators.checks import assert_adjoint, assert_bounds, assert_operator, random_image, singular_values

BOUNDARIES = {"periodic": "wrap", "reflect": "reflect"}
odd = st.sampled_from([1, 3, 5, 7, 9])


def random_kernel(rows: int, columns: int, seed: int = 0, nonnegative: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    kernel = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return kernel.abs() / kernel.abs().sum() if nonnegative else kernel


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("shape", [(1, 4, 5), (2, 3, 3), (1, 1, 6)])
def test_contract_gaussian(shape: tuple[int, int, int], boundary: str) -> None:
    assert_operator(Blur(0.7, shape, boundary))  # type: ignore[arg-type]


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_contract_arbitrary_kernel(boundary: str) -> None:
    # Kernels without symmetry: the bound for reflecting boundaries is proven but not exact.
    tightness = 1e-9 if boundary == "periodic" else 1.0
    assert_operator(Blur(random_kernel(3, 5), (1, 5, 4), boundary), tightness)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(odd, odd, st.integers(1, 8), st.integers(1, 8), st.sampled_from(sorted(BOUNDARIES)), st.integers(0, 99))
def test_against_scipy(rows: int, columns: int, height: int, width: int, boundary: str, seed: int) -> None:
    kernel = random_kernel(rows, columns, seed)
    operator = Blur(kernel, (1, height, width), boundary)  # type: ignore[arg-type]
    x = random_image(operator, seed=seed)
    for image, result in zip(x, operator(x), strict=True):
        expected = scipy.ndimage.convolve(image[0].numpy(), kernel.numpy(), mode=BOUNDARIES[boundary])
        np.testing.assert_allclose(result[0].numpy(), expected, atol=1e-12)
    assert_adjoint(operator)


@settings(max_examples=30, deadline=None)
@given(odd, odd, st.integers(1, 7), st.integers(1, 7), st.integers(0, 99), st.booleans(), st.booleans())
def test_bounds_with_reflection(
    rows: int, columns: int, height: int, width: int, seed: int, nonnegative: bool, symmetric: bool
) -> None:
    kernel = random_kernel(rows, columns, seed, nonnegative)
    if symmetric:
        kernel = kernel + kernel.flip(0)
        kernel = kernel + kernel.flip(1)
    operator = Blur(kernel, (1, height, width), "reflect")
    assert_bounds(operator, tightness=1e-9 if symmetric else math.inf)
    if symmetric:
        assert operator.lower_bound == pytest.approx(float(singular_values(operator)[-1]), abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(odd, odd, st.integers(1, 7), st.integers(1, 7), st.integers(0, 99))
def test_bounds_with_periodicity_are_exact(rows: int, columns: int, height: int, width: int, seed: int) -> None:
    operator = Blur(random_kernel(rows, columns, seed), (1, height, width), "periodic")
    assert_bounds(operator)
    assert operator.lower_bound == pytest.approx(float(singular_values(operator)[-1]), abs=1e-9)


def test_schur_bound_serves_motion_blur() -> None:
    kernel = torch.zeros(1, 9, dtype=torch.float64)
    kernel[0, 4:] = 0.2  # one-sided
    operator = Blur(kernel, (1, 6, 20), "reflect")
    assert_bounds(operator, tightness=0.4)


def test_reflection_keeps_constants_and_a_delta_is_the_identity() -> None:
    ones = torch.ones(1, 1, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(Blur(2.0, (1, 7, 5), "reflect")(ones), ones)
    delta = torch.zeros(3, 3, dtype=torch.float64)
    delta[1, 1] = 1.0
    for boundary in BOUNDARIES:
        operator = Blur(delta, (1, 7, 5), boundary)  # type: ignore[arg-type]
        x = random_image(operator)
        torch.testing.assert_close(operator(x), x)
        assert operator.lower_bound == pytest.approx(1.0) == operator.norm_bound


def test_module_casts_and_copies_keep_the_precision() -> None:
    operator = Blur(1.0, (1, 6, 7))
    x = random_image(operator)
    expected = operator(x)
    cast = copy.deepcopy(operator).to(torch.float32)
    assert torch.equal(cast(x), expected)
    assert not operator.state_dict()


def test_first_use_in_inference_mode_does_not_spoil_later_gradients() -> None:
    operator = Blur(1.0, (1, 6, 7))
    x = torch.zeros(1, 1, 6, 7)
    with torch.inference_mode():
        operator(x)
    operator(x.requires_grad_()).sum().backward()


def test_gaussian_kernel() -> None:
    kernel = gaussian_kernel(1.5)
    assert kernel.shape == (13, 13)
    assert kernel.dtype == torch.float64
    assert float(kernel.sum()) == pytest.approx(1.0, abs=1e-14)
    assert float(kernel[6, 8] / kernel[6, 6]) == pytest.approx(math.exp(-(2**2) / (2 * 1.5**2)))
    assert gaussian_kernel((0.5, 2.0)).shape == (5, 17)
    assert gaussian_kernel(1.0, size=(3, 5)).shape == (3, 5)
    x = torch.randn(1, 1, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = scipy.ndimage.gaussian_filter(x[0, 0].numpy(), 1.5, mode="reflect", radius=6)
    np.testing.assert_allclose(Blur(1.5, (1, 9, 9), "reflect")(x)[0, 0].numpy(), expected, atol=1e-13)


def test_wrong_arguments() -> None:
    for kernel in (torch.ones(2, 3), torch.ones(3), torch.ones(3, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match="odd sides"):
            Blur(kernel, (1, 4, 4))
    with pytest.raises(ValueError, match="not finite"):
        Blur(torch.full((3, 3), math.nan), (1, 4, 4))
    with pytest.raises(ValueError, match="channels, height, width"):
        Blur(1.0, (4, 4))
    with pytest.raises(ValueError, match="boundary"):
        Blur(1.0, (1, 4, 4), "zero")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sigma"):
        Blur(-1.0, (1, 4, 4))
    with pytest.raises(ValueError, match="odd"):
        gaussian_kernel(1.0, size=4)
