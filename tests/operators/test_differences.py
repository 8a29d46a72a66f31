"""Finite differences against a loop, and their exact norm."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recon.operators import FiniteDifferences
from tests.operators.checks import assert_adjoint, assert_bounds, assert_operator, random_image


@pytest.mark.parametrize("boundary", ["neumann", "periodic"])
@pytest.mark.parametrize("shape", [(4, 5), (3, 3), (1, 4), (1, 1), (2, 6)])
def test_contract(shape: tuple[int, int], boundary: str) -> None:
    assert_operator(FiniteDifferences((1, *shape), boundary))  # type: ignore[arg-type]


def test_against_a_loop() -> None:
    height, width = 4, 5
    for boundary in ("neumann", "periodic"):
        operator = FiniteDifferences((1, height, width), boundary)  # type: ignore[arg-type]
        x = random_image(operator)
        expected = np.zeros((2, 2, height, width))
        for b in range(2):
            for i in range(height):
                for j in range(width):
                    if boundary == "periodic" or i + 1 < height:
                        expected[b, 0, i, j] = x[b, 0, (i + 1) % height, j] - x[b, 0, i, j]
                    if boundary == "periodic" or j + 1 < width:
                        expected[b, 1, i, j] = x[b, 0, i, (j + 1) % width] - x[b, 0, i, j]
        np.testing.assert_array_equal(operator(x).numpy(), expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(["neumann", "periodic"]))
def test_every_shape(height: int, width: int, boundary: str) -> None:
    operator = FiniteDifferences((1, height, width), boundary)  # type: ignore[arg-type]
    assert_adjoint(operator)
    assert_bounds(operator, tightness=1e-12)


def test_norm_approaches_sqrt_8() -> None:
    assert math.sqrt(8) * (1 - 1e-4) < FiniteDifferences((1, 256, 256)).norm_bound < math.sqrt(8)
    assert FiniteDifferences((1, 16, 16), "periodic").norm_bound == pytest.approx(math.sqrt(8), rel=1e-13)


def test_constants_have_no_gradient() -> None:
    for boundary in ("neumann", "periodic"):
        operator = FiniteDifferences((1, 3, 4), boundary)  # type: ignore[arg-type]
        assert torch.equal(operator(torch.ones(1, 1, 3, 4)), torch.zeros(1, 2, 3, 4))


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="domain_shape"):
        FiniteDifferences((3, 4, 4))
    with pytest.raises(ValueError, match="boundary"):
        FiniteDifferences((1, 4, 4), "dirichlet")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positive"):
        FiniteDifferences((1, 0, 4))
