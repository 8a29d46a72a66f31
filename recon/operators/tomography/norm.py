"""A proven bound of the spectral norm of a nonnegative matrix."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from recon.operators.tomography.sparse import SparseMatrix

_BLOCK_ENTRIES = 16_000_000
_GAIN = 1e-6  # an iteration that lowers the bound by less is the last


@torch.no_grad()
def collatz_wielandt(matrix: SparseMatrix, transpose: SparseMatrix, iterations: int = 50) -> float:
    """Return an upper bound of ``||A||`` for a matrix with nonnegative entries.

    ``M = A^T A`` is nonnegative, so for every vector v > 0 its spectral radius obeys (Collatz 1942, Wielandt 1950; Horn
    and Johnson, Matrix Analysis, 2nd ed., Corollary 8.1.31)

        ||A||^2 = rho(M) <= max_i (M v)_i / v_i,

    with equality at the Perron vector, which power iterations in float32 approach. Only the last product must be
    right: it is taken in float64, for the v at hand, whatever way that came about. Sums of k nonnegative numbers have a
    relative error of at most ``k eps``, so the bound is enlarged by that for k = the longest row of A and of A^T.

    A column of zeros has (M v)_i = 0 and does not count, and v_i is kept positive everywhere.

    Raises
    ------
    ValueError
        an entry is negative or not finite.
    """
    values = matrix.values
    # NaN fails the comparison too
    if len(values) and not (float(values.min()) >= 0.0 and math.isfinite(float(values.max()))):
        raise ValueError("the matrix has entries that are negative or not finite")
    if not len(values) or not float(values.max()):
        return 0.0
    v = torch.ones(1, matrix.shape[1], dtype=torch.float32)
    bound = math.inf
    for _ in range(iterations):
        product = transpose.apply(matrix.apply(v))
        previous, bound = bound, float((product / v).max())
        if bound >= previous * (1.0 - _GAIN):
            break
        v = product
        # Far from 0 and from overflow: pixels that no ray meets would tend to 0.
        v = (v / v.max()).clamp_min_(1e-6)
    positive = v[0].double()
    squared = float((_apply_double(transpose, _apply_double(matrix, positive)) / positive).max())
    terms = int(np.diff(matrix.indptr).max()) + int(np.diff(transpose.indptr).max()) + 8
    return math.sqrt(squared) * (1.0 + terms * float(np.finfo(np.float64).eps))


def _apply_double(matrix: SparseMatrix, x: Tensor) -> Tensor:
    """Return ``M x`` in float64 without a float64 copy of the whole matrix: in blocks of rows."""
    rows = []
    start = 0
    while start < matrix.shape[0]:
        first = int(matrix.indptr[start])
        stop = int(np.searchsorted(matrix.indptr, first + _BLOCK_ENTRIES, side="right")) - 1
        stop = min(max(stop, start + 1), matrix.shape[0])
        last = int(matrix.indptr[stop])
        shape = (stop - start, matrix.shape[1])
        indptr = matrix.indptr[start : stop + 1] - matrix.indptr[start]
        block = SparseMatrix(indptr, matrix.indices[first:last], matrix.values[first:last], shape)
        rows.append(block.apply(x[None])[0])
        start = stop
    return torch.cat(rows)
