"""A proven bound of the spectral norm of a nonnegative matrix."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from recon.operators.tomography.matrix.sparse import SparseMatrix

_GAIN = 1e-6  # an iteration that lowers the bound by less is the last


class Pair(Protocol):
    """A matrix with its transpose, whose entries are those of ``stored`` and zeros."""

    @property
    def stored(self) -> SparseMatrix: ...

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def terms(self) -> int:
        """The most numbers that an entry of A x, and one of A^T y, add up, together."""
        ...

    def forward(self, x: Tensor) -> Tensor: ...

    def backward(self, y: Tensor) -> Tensor: ...


@torch.no_grad()
def collatz_wielandt(matrix: Pair, iterations: int = 50) -> float:
    """Return an upper bound of ``||A||`` for a matrix with nonnegative entries.

    ``M = A^T A`` is nonnegative, so for every vector v > 0 its spectral radius obeys (Collatz 1942, Wielandt 1950; Horn
    and Johnson, Matrix Analysis, 2nd ed., Corollary 8.1.31)

        ||A||^2 = rho(M) <= max_i (M v)_i / v_i,

    with equality at the Perron vector, which power iterations in float32 approach. Only the last product must be
    right: it is taken in float64, for the v at hand, whatever way that came about. Sums of k nonnegative numbers have a
    relative error of at most ``k eps``, so the bound is enlarged by that for k = ``matrix.terms``.

    A column of zeros has (M v)_i = 0 and does not count, and v_i is kept positive everywhere.

    Raises
    ------
    ValueError
        an entry is negative or not finite.
    """
    values = matrix.stored.values
    # NaN fails the comparison too
    if len(values) and not (float(values.min()) >= 0.0 and math.isfinite(float(values.max()))):
        raise ValueError("the matrix has entries that are negative or not finite")
    if not len(values) or not float(values.max()):
        return 0.0
    v = torch.ones(1, matrix.shape[1], dtype=torch.float32)
    bound = math.inf
    for _ in range(iterations):
        product = matrix.backward(matrix.forward(v))
        previous, bound = bound, float((product / v).max())
        if bound >= previous * (1.0 - _GAIN):
            break
        v = product
        # Far from 0 and from overflow: pixels that no ray meets would tend to 0.
        v = (v / v.max()).clamp_min_(1e-6)
    positive = v.double()
    squared = float((matrix.backward(matrix.forward(positive)) / positive).max())
    return math.sqrt(squared) * (1.0 + (matrix.terms + 8) * float(np.finfo(np.float64).eps))
