"""Sparse matrices times vectors side by side, on the device and in the precision of the vectors."""

from __future__ import annotations

import ctypes
import itertools
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon import native

LIBRARY, VERSION = "_sparse", 1
#: numbers of vectors that the kernel takes at once, the largest first: eight fill a register, and are as fast as four
WIDTHS = (8, 4, 1)
#: entries that are worth a thread
THREAD = 1_000_000
#: entries that torch converts to float64 at once
BLOCK = 4_000_000


class SparseMatrix:
    """A matrix in CSR form: int32 indices, float32 values; 8 bytes for an entry.

    On the CPU a compiled kernel (sparse.cpp) adds up products in double precision, whatever the precision of the
    vectors; results depend neither on the number of threads nor on what other vectors there are. Where nothing has been
    compiled, and on other devices, torch computes in the precision of the vectors: on the CPU in blocks of rows, whose
    entries are converted to float64 each time, elsewhere with copies, which are made at the first use and kept.
    """

    def __init__(
        self,
        indptr: NDArray[np.int32],
        indices: NDArray[np.int32],
        values: NDArray[np.float32],
        shape: tuple[int, int],
    ) -> None:
        """Take over the arrays of CSR; columns within a row are sorted.

        Raises
        ------
        ValueError
            the arrays do not fit together.
        """
        if len(indptr) != shape[0] + 1 or int(indptr[-1]) != len(indices) or len(indices) != len(values):
            raise ValueError(f"these are no CSR arrays of a {shape[0]} x {shape[1]} matrix")
        if int(indptr[0]) != 0 or bool((np.diff(indptr) < 0).any()):
            raise ValueError("row pointers must begin with 0 and not decrease")
        if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= shape[1]):
            raise ValueError(f"column indices beyond the {shape[1]} columns")
        self.shape = shape
        self.indptr = np.ascontiguousarray(indptr, np.int32)
        self.indices = np.ascontiguousarray(indices, np.int32)
        self.values = np.ascontiguousarray(values, np.float32)
        self._copies: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes that the matrix takes on the CPU."""
        return self.indptr.nbytes + self.indices.nbytes + self.values.nbytes

    def product(self, x: Tensor) -> Tensor:
        """Return M times ``(columns, vectors)``, in new memory, in float64 where sums are, and else as x.

        Vectors are real, in float32 or float64.
        """
        if x.shape[1] == 0:
            return x.new_zeros(self.shape[0], 0)
        if x.device.type != "cpu":
            return self._on_device(x.dtype, x.device) @ x
        kernel = compiled()
        if kernel is None:
            return torch.cat([block @ x for block in self._blocks(x.dtype)])
        parts, first = [], 0
        while first < x.shape[1]:
            width = next(w for w in WIDTHS if w <= x.shape[1] - first)
            parts.append(self._compiled_product(kernel, x[:, first : first + width].contiguous()))
            first += width
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _compiled_product(self, kernel: ctypes.CDLL, x: Tensor) -> Tensor:
        out = x.new_empty(self.shape[0], x.shape[1], dtype=torch.float64)
        arrays = (self.indptr.ctypes.data, self.indices.ctypes.data, self.values.ctypes.data)

        def run(first: int, last: int) -> None:
            numbers = (x.element_size(), x.shape[1], first, last)
            kernel.sparse_rows(*numbers, *arrays, native.address(x), native.address(out))

        entries = len(self.indices)
        threads = max(1, min(torch.get_num_threads(), entries // THREAD))
        bounds = np.searchsorted(self.indptr, [entries * k // threads for k in range(1, threads)])
        shares = list(itertools.pairwise([0, *bounds.tolist(), self.shape[0]]))
        if threads == 1:
            run(*shares[0])
        else:  # the kernel lets other threads run
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(run, *zip(*shares, strict=True)))
        return out

    def apply(self, x: Tensor) -> Tensor:
        """Return ``M x`` for every row of a batch, ``(batch, columns) -> (batch, rows)``, in new memory."""
        # half precision has no sparse product
        dtype = torch.promote_types(x.dtype, torch.float32)
        return self.product(x.detach().to(dtype).T).T.to(x.dtype).contiguous()

    def dense(self) -> Tensor:
        """Return the matrix with all its zeros, float64."""
        return torch.cat([block.to_dense() for block in self._blocks(torch.float64)])

    def _blocks(self, dtype: torch.dtype) -> Iterator[Tensor]:
        """The matrix for torch, in blocks of rows; in float32, in which it is, as one block."""
        start, most = 0, len(self.indices) if dtype == torch.float32 else BLOCK
        while start < self.shape[0]:
            first = int(self.indptr[start])
            stop = int(np.searchsorted(self.indptr, first + most, side="right")) - 1
            stop = min(max(stop, start + 1), self.shape[0])
            last = int(self.indptr[stop])
            values = torch.from_numpy(self.values[first:last]).to(dtype)
            arrays = (self.indptr[start : stop + 1] - first, self.indices[first:last])
            indptr, indices = (torch.from_numpy(a) for a in arrays)
            yield _csr(indptr, indices, values, (stop - start, self.shape[1]))
            start = stop

    def _on_device(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        key = (dtype, device)
        if key not in self._copies:
            # Outside inference mode, even if called in it: autograd could not save an inference tensor later.
            with torch.inference_mode(False):
                arrays = (self.indptr, self.indices, self.values)
                indptr, indices, values = (torch.from_numpy(a).to(device) for a in arrays)
                other = next((m for (_, d), m in self._copies.items() if d == device), None)
                if other is not None:
                    indptr, indices = other.crow_indices(), other.col_indices()
                self._copies[key] = _csr(indptr, indices, values.to(dtype), self.shape)
        return self._copies[key]

    def __deepcopy__(self, memo: dict[int, object]) -> SparseMatrix:
        return self  # its numbers never change, and a second copy of some gigabytes is one too many

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_copies": {}}  # copies are made anew where it is unpickled


def compiled() -> ctypes.CDLL | None:
    """The kernel; None where it is switched off, or cannot be used (with a warning that says why)."""
    kernel = native.library(Path(__file__).parent, LIBRARY, VERSION) if native.wanted() else None
    if kernel is not None:
        kernel.sparse_rows.argtypes = [ctypes.c_int64] * 4 + [ctypes.c_void_p] * 5
        kernel.sparse_rows.restype = None
    return kernel


def describe() -> str:
    """What multiplies, in a sentence."""
    return native.describe(Path(__file__).parent, LIBRARY, VERSION)


def transpose_csr(matrix: SparseMatrix) -> SparseMatrix:
    """Return the transpose with the same values, also as CSR with sorted columns."""
    from scipy.sparse import csr_array

    arrays = (matrix.values, matrix.indices, matrix.indptr)
    turned = csr_array(arrays, shape=matrix.shape, copy=False).tocsc()  # columns of M one after the other: rows of M^T
    indptr, indices = turned.indptr.astype(np.int32, copy=False), turned.indices.astype(np.int32, copy=False)
    return SparseMatrix(indptr, indices, turned.data, (matrix.shape[1], matrix.shape[0]))


def _csr(indptr: Tensor, indices: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(indptr, indices, values, size=shape, check_invariants=False)  # checked above
