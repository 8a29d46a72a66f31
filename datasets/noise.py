"""Noise that belongs to its picture: the same in every run, order, batch and floating-point type."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch


def keyed_generator(*keys: int) -> np.random.Generator:
    """A random number generator of its own for every tuple of integers 0 <= key < 2^64.

    NumPy's SeedSequence hashes the keys into 128 bits. A ``torch.Generator`` on the CPU keeps 32 bits of its seed, so
    that two of many pictures could share their noise.

    Raises
    ------
    ValueError
        a key is out of range.
    """
    if any(not 0 <= key < 2**64 for key in keys):
        raise ValueError(f"seed and index must be integers from 0 to 2^64 - 1; got {', '.join(map(str, keys))}")
    # SeedSequence pads short lists with zeros and splits large integers into words of 32 bits, so (5,) would equal
    # (5, 0): the number of keys and two words for each of them make the list unambiguous.
    words = [len(keys)] + [word for key in keys for word in (key & 0xFFFFFFFF, key >> 32)]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def derive_seed(*keys: int) -> int:
    """A seed out of several integers, so that parts of an experiment (training, test, ...) have independent noise."""
    return int(keyed_generator(*keys).integers(2**63))


def check_sigma(sigma: float) -> float:
    """Return ``sigma`` if it is a standard deviation.

    Raises
    ------
    ValueError
        it is negative or not finite.
    """
    if not (math.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"sigma is {sigma}; the standard deviation of the noise must be finite and at least 0")
    return sigma


def check_levels(sigma: float | tuple[float, float]) -> float | tuple[float, float]:
    """Return ``sigma`` if it is a standard deviation, or two that are the ends of a range.

    Raises
    ------
    ValueError
        it is neither.
    """
    if isinstance(sigma, (int, float)):
        return check_sigma(sigma)
    levels = tuple(check_sigma(s) for s in sigma)
    if len(levels) != 2 or levels[0] >= levels[1]:
        raise ValueError(f"sigma is {list(levels)}; a range of noise levels is two numbers, the smaller one first")
    return levels


def gaussian_noise(
    shape: Sequence[int],
    sigma: float,
    seed: int,
    index: int,
    dtype: torch.dtype = torch.float64,
) -> torch.Tensor:
    """White Gaussian noise σ n, n ~ N(0, I), of picture ``index``.

    It depends on (shape, sigma, seed, index) alone. It is drawn in float64 and then rounded, so that runs in float32
    and in float64 see the same noise.

    Parameters
    ----------
    shape
        shape of the data of one picture, without batch axis.
    sigma
        standard deviation, on the scale of the data; 0 gives zeros.
    seed
        of the data set, 0 to 2^64 - 1.
    index
        of the picture in the data set.
    dtype
        of the result.

    Raises
    ------
    ValueError
        sigma is negative or not finite, seed or index is out of range.
    """
    check_sigma(sigma)
    standard = keyed_generator(seed, index).standard_normal(tuple(shape))
    return (sigma * torch.from_numpy(standard)).to(dtype)
