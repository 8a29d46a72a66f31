"""Mirrored data and cropped solutions."""

from __future__ import annotations

import numpy as np
import pytest

from recon.lower_level import LBFGS, Energy
from recon.reconstruction import cropped, mirrored
from tests.lower_level.problems import make, normal


@pytest.mark.parametrize(("shape", "margin"), [((7, 5), 4), ((6, 6), 0), ((4, 9), 3), ((3, 8), 5), ((1, 6), 2)])
def test_mirrored_is_numpys_reflection(shape: tuple[int, int], margin: int) -> None:
    y = normal(2, 3, *shape, seed=1)
    rows, cols = (min(margin, n - 1) for n in shape)
    expected = np.pad(y.numpy(), ((0, 0), (0, 0), (rows, rows), (cols, cols)), mode="reflect")
    np.testing.assert_array_equal(mirrored(y, margin).numpy(), expected)


def test_without_a_margin_data_of_any_shape_stay_what_they_are() -> None:
    y = normal(2, 3, 2, 4, 5)
    assert mirrored(y, 0) is y


@pytest.mark.parametrize("margin", [0, 2, 6])
def test_a_cropped_solution_keeps_its_certificate(margin: int) -> None:
    regularizer = make("foe_l1", seed=3)
    y = normal(2, 1, 7, 6, seed=4)
    energy = Energy(mirrored(y, margin), regularizer)
    solution = LBFGS()(energy, energy.y, 1e-2)
    part = cropped(solution, (7, 6))
    assert part.x.shape == part.gradient.shape == y.shape
    exact = cropped(LBFGS()(energy, energy.y, 1e-10), (7, 6)).x
    assert bool(((part.x - exact).flatten(1).norm(dim=1) <= part.error).all())


def test_mirroring_restores_the_boundary() -> None:
    """A constant image with noise: without mirrored data, pixels at the boundary keep more of the noise."""
    regularizer = make("foe_l1", seed=3, scale=0.0)
    assert regularizer.margin == 2
    y = normal(40, 1, 12, 12, seed=5, scale=0.1)
    plain = LBFGS()(Energy(y, regularizer), y, 1e-3).x
    data = mirrored(y, regularizer.margin)
    better = cropped(LBFGS()(Energy(data, regularizer), data, 1e-3), (12, 12)).x
    corner = (..., slice(0, 1), slice(0, 1))
    assert float(better[corner].square().mean()) < 0.9 * float(plain[corner].square().mean())
