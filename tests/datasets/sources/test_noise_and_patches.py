"""Random parts of the data: reproducible, independent of order, batch and type, and distributed as promised."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datasets.noise import derive_seed, gaussian_noise, keyed_generator
from datasets.readers.pictures import DataError
from datasets.sources.patches import random_patches

SEEDS = st.integers(0, 2**64 - 1)


@given(seed=SEEDS, index=st.integers(0, 10**6), height=st.integers(1, 9), width=st.integers(1, 9))
def test_noise_is_a_function_of_its_arguments(seed: int, index: int, height: int, width: int) -> None:
    noise = gaussian_noise((1, height, width), 0.1, seed, index)
    torch.randn(3)  # the global generator plays no part
    torch.testing.assert_close(gaussian_noise((1, height, width), 0.1, seed, index), noise, rtol=0, atol=0)
    single = gaussian_noise((1, height, width), 0.1, seed, index, torch.float32)
    torch.testing.assert_close(single, noise.float(), rtol=0, atol=0)


def test_noise_has_its_distribution_and_differs_between_pictures() -> None:
    noise = torch.stack([gaussian_noise((64, 64), 0.2, seed=3, index=i) for i in range(50)]).flatten(1)
    assert noise.mean().abs() < 4 * 0.2 / math.sqrt(noise.numel())
    assert noise.std().item() == pytest.approx(0.2, rel=0.01)
    correlation = torch.corrcoef(noise) - torch.eye(50)
    assert correlation.abs().max() < 6 / 64


def test_noise_without_noise_is_zero() -> None:
    assert not gaussian_noise((3, 3), 0.0, 0, 0).any()


def test_keys_do_not_collide() -> None:
    # (5,) and (5, 0), or 2^32 + 1 and (1, 1), are the same to a plain SeedSequence.
    keys = [(5,), (5, 0), (5, 0, 0), (0, 5), (1, 1), (2**32 + 1,), (1, 1, 0, 0)]
    assert len({derive_seed(*key) for key in keys}) == len(keys)


@pytest.mark.parametrize("sigma", [-0.1, math.nan, math.inf])
def test_sigma_out_of_range(sigma: float) -> None:
    with pytest.raises(ValueError, match=f"sigma is {sigma}; .* at least 0"):
        gaussian_noise((2, 2), sigma, 0, 0)


def test_seed_out_of_range() -> None:
    with pytest.raises(ValueError, match="got -1"):
        keyed_generator(-1)
    with pytest.raises(ValueError, match="got 0, -2"):
        gaussian_noise((2, 2), 0.1, 0, -2)


def _coordinates(height: int, width: int) -> torch.Tensor:
    """A picture whose pixels tell where they are."""
    return (torch.arange(height)[:, None] * 1000.0 + torch.arange(width))[None]


@given(
    height=st.integers(4, 12),
    width=st.integers(4, 12),
    side=st.integers(1, 4),
    count=st.integers(1, 12),
    seed=SEEDS,
)
def test_patches_are_pieces_of_their_picture(height: int, width: int, side: int, count: int, seed: int) -> None:
    image = _coordinates(height, width)
    patches = random_patches([image], side, count, seed)
    assert patches.shape == (count, 1, side, side)
    for patch in patches:
        top, left = divmod(int(patch[0, 0, 0]), 1000)
        torch.testing.assert_close(patch, image[:, top : top + side, left : left + side], rtol=0, atol=0)


@given(seed=SEEDS, few=st.integers(1, 10), more=st.integers(0, 10))
def test_more_patches_only_append(seed: int, few: int, more: int) -> None:
    images = [_coordinates(8, 8) + 1e6 * i for i in range(4)]
    patches = random_patches(images, 3, few + more, seed)
    torch.testing.assert_close(random_patches(images, 3, few, seed), patches[:few], rtol=0, atol=0)


def test_patches_use_all_pictures_and_all_positions() -> None:
    images = [_coordinates(6, 7) + 1e6 * i for i in range(5)]
    patches = random_patches(images, 4, 1000, seed=1)
    picture = patches[:, 0, 0, 0].div(1e6, rounding_mode="floor")
    assert torch.bincount(picture.int()).tolist() == [200] * 5
    positions = patches[:, 0, 0, 0].remainder(1e6).unique()
    assert positions.tolist() == [1000 * top + left for top in range(3) for left in range(4)]


def test_patches_that_do_not_fit_name_the_picture() -> None:
    images = [torch.zeros(1, 9, 9), torch.zeros(1, 5, 9)]
    with pytest.raises(DataError, match=r"b: the picture has 5x9 pixels.*patch_size 6.*1 to 5"):
        random_patches(images, 6, 2, 0, names=["a", "b"])


def test_patches_out_of_range() -> None:
    with pytest.raises(ValueError, match="patch_size is 0"):
        random_patches([torch.zeros(1, 4, 4)], 0, 1, 0)
    with pytest.raises(ValueError, match="n_patches is -1"):
        random_patches([torch.zeros(1, 4, 4)], 2, -1, 0)
    with pytest.raises(DataError, match="no picture"):
        random_patches([], 2, 1, 0)
    with pytest.raises(DataError, match="gray and in colour"):
        random_patches([torch.zeros(1, 4, 4), torch.zeros(3, 4, 4)], 2, 2, 0)
