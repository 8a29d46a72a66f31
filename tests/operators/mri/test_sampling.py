"""Sampling masks: acceleration, centre, distances, reproducibility."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recon.operators.mri.sampling import (
    _RADIUS_OFFSET,
    PATTERNS,
    Pattern,
    _throw_darts,
    equispaced,
    poisson_disc,
    radial,
    random_lines,
)

names = st.sampled_from(sorted(PATTERNS))
sides = st.integers(8, 33)
LINES = ("random_lines", "equispaced")


@given(names, sides, sides, st.floats(1, 6), st.integers(0, 99))
def test_acceleration_centre_and_seed(name: Pattern, height: int, width: int, acceleration: float, seed: int) -> None:
    shape = (height, width)
    mask = PATTERNS[name](shape, acceleration, 1, seed)
    assert mask.shape == shape
    assert mask.dtype == torch.bool
    assert mask[height // 2, width // 2]
    sampled = int(mask.sum())
    if name in LINES:
        assert sampled == height * round(width / acceleration)
        assert bool((mask == mask[:1]).all())
    elif name == "radial":
        assert abs(sampled - height * width / acceleration) <= max(shape)
    else:
        assert sampled == round(height * width / acceleration)
    assert torch.equal(mask, PATTERNS[name](shape, acceleration, 1, seed))


@given(names, sides, sides, st.integers(1, 4))
def test_centre_is_full(name: Pattern, height: int, width: int, calibration: int) -> None:
    mask = PATTERNS[name]((height, width), 2.0, calibration, 0)
    rows = slice(None) if name in LINES else slice(height // 2 - calibration // 2, None)
    columns = slice(width // 2 - calibration // 2, None)
    block = mask[rows, columns][:, :calibration]
    assert bool((block if name in LINES else block[:calibration]).all())


@pytest.mark.parametrize("name", PATTERNS)
def test_seeds_differ_and_everything_can_be_sampled(name: Pattern) -> None:
    first, second = (PATTERNS[name]((32, 31), 4.0, None, seed) for seed in (0, 1))
    assert not torch.equal(first, second)
    assert bool(PATTERNS[name]((9, 8), 1.0, None, 0).all())


def test_default_centre_of_lines_is_that_of_fastmri() -> None:
    def width_of_centre(mask: torch.Tensor) -> int:
        columns = mask[0].tolist()
        left = right = len(columns) // 2
        while columns[left - 1]:
            left -= 1
        while columns[right + 1]:
            right += 1
        return right - left + 1

    # 8 % and 4 % of 350; at least, as drawn lines may touch the centre
    assert 28 <= width_of_centre(random_lines((2, 350), 4)) <= 32
    assert width_of_centre(equispaced((2, 350), 8)) == 14


def test_equispaced_lines_are_equispaced() -> None:
    mask = equispaced((1, 128), 4.0, calibration=8, seed=3)[0]
    left = torch.nonzero(mask[: 64 - 4]).flatten().diff()
    right = torch.nonzero(mask[64 + 4 :]).flatten().diff()
    # 24 of the 120 columns outside of the centre
    assert torch.equal(torch.cat([left, right]).unique(), torch.tensor([5]))


def test_spokes_pass_through_the_centre_and_reach_the_boundary() -> None:
    mask = radial((33, 33), 20.0, seed=2)
    rings = np.maximum(*np.abs(np.indices((33, 33)) - 16))
    on_ring = [int(mask.numpy()[rings == r].sum()) for r in range(17)]
    assert on_ring[0] == 1
    # two spokes, each crossing every square ring twice, though rounding may make them meet near the centre
    assert all(n == 4 for n in on_ring[4:])


def test_poisson_disc_keeps_distances() -> None:
    shape, slope = (40, 50), 6.0
    rng = np.random.default_rng(0)
    jitter = rng.random((2, *shape)) - 0.5
    mask = _throw_darts(slope, rng.permutation(40 * 50), jitter, np.zeros(shape, dtype=bool))
    points = np.argwhere(mask)
    positions = points + jitter[:, points[:, 0], points[:, 1]].T - np.array(shape) // 2
    radius = slope * (np.linalg.norm(positions / np.array([20, 25]), axis=1) + _RADIUS_OFFSET)
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (distance >= np.minimum(radius[:, None], radius[None])).all()
    # and nothing more fits in: every position is within the radius of a sample
    i, j = np.indices(shape)
    everywhere = np.stack([i + jitter[0] - 20, j + jitter[1] - 25], axis=-1).reshape(-1, 2)
    to_samples = np.linalg.norm(everywhere[:, None] - positions[None], axis=2)
    assert (to_samples < radius).any(1).all()


def test_poisson_disc_is_denser_in_the_centre() -> None:
    mask = poisson_disc((64, 64), 6.0).double()
    assert mask[24:40, 24:40].mean() > 3 * mask.mean()
    assert mask[:, :8].sum() > 0


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0, 8), 2.0, 1, 0), r"shape is \(0, 8\)"),
        (((8,), 2.0, 1, 0), r"shape is \(8,\)"),
        (((8, 8), 0.5, 1, 0), "acceleration is 0.5"),
        (((8, 8), math.nan, 1, 0), "acceleration is nan"),
        (((8, 8), 1000.0, 1, 0), "none would be sampled"),
        (((8, 8), 2.0, 0, 0), "calibration is 0"),
        (((8, 8), 2.0, 9, 0), "calibration is 9"),
        (((8, 8), 2.0, 7, 0), "the fully sampled centre has .* leaves .*; lower calibration or acceleration"),
        (((8, 8), 2.0, 1, -1), "seed is -1"),
    ],
)
def test_wrong_arguments(name: Pattern, arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PATTERNS[name](*arguments)


def test_one_spoke_may_be_too_much() -> None:
    with pytest.raises(ValueError, match="spoke"):
        radial((32, 32), 1000.0)
