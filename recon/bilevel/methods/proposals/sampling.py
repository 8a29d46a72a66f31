"""What a sample says of the mean of all images: the empirical Bernstein inequality, without replacement."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: of the range in the inequality
KAPPA = 7 / 3 + 3 / math.sqrt(2)


def deviation(sample: Tensor, count: int, width: float, delta: float) -> float:
    r"""By how much the mean of ``count`` numbers may exceed that of a ``sample`` of them, with probability 1 - delta.

    For a sample of n of N numbers in an interval of length R, drawn without replacement, with the standard deviation
    s of the sample (divided by n),

        mean of all <= mean of the sample + s sqrt(2 rho log(5/delta) / n) + kappa R log(5/delta) / n,
        rho = 1 - (n-1)/N for n <= N/2, (1 - n/N) (1 + 1/n) for larger n,   kappa = 7/3 + 3/sqrt(2)

    (Bardenet and Maillard, Bernoulli 21, 2015, theorem 4.3). Where all are in the sample, nothing is left to chance.

    Parameters
    ----------
    sample : tensor
        The n numbers, ``(n,)``.
    count : int
        N.
    width : float
        R.
    delta : float
        In (0, 1).

    Returns
    -------
    float
        The bound, at least 0.
    """
    n = len(sample)
    if n == count:
        return 0.0
    rho = 1 - (n - 1) / count if 2 * n <= count else (1 - n / count) * (1 + 1 / n)
    log = math.log(5 / delta)
    spread = float(sample.double().std(correction=0))
    return spread * math.sqrt(2 * rho * log / n) + KAPPA * width * log / n


def share_of(delta: float, check: int, stage: int) -> float:
    """The part of ``delta`` for the ``stage``-th look, 1, 2, ..., of the ``check``-th check: all add up to delta."""
    return delta * 6 / (math.pi * check) ** 2 * 2.0**-stage


def order(count: int, seed: int, check: int, drawn: int = 0) -> Tensor:
    """The images in a random order of this check: any first n are a sample without replacement."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + 1009 * check + drawn)
    return torch.randperm(count, generator=generator)
