"""Sparse matrices times batches of vectors, on the device and in the precision of the vectors."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_DOUBLE = (torch.float64, torch.device("cpu"))


class SparseMatrix:
    """A matrix in CSR form: int32 indices, float32 values.

    int32 because the CPU kernels (MKL) are three times slower with int64. Copies for other devices and for float64 are
    made at the first use and kept; in float64 the indices are shared with float32. The indices stay on the CPU. So do
    the values, but once there are float64 values on the CPU, those in float32 are given up: they are the same numbers,
    and come back, beside the others, if they are asked for. An entry takes 8 bytes in float32, 12 in float64 and 16 in
    both.
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
        self.indptr, self.indices = indptr, indices
        self._values: NDArray[np.float32] | None = values
        self._copies: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    @property
    def values(self) -> NDArray[np.float32]:
        """The entries, row by row."""
        values = self._values
        if values is None:
            values = self._copies[_DOUBLE].values().numpy().astype(np.float32)  # exact: they came from float32
            self._values = values
        return values

    @property
    def nbytes(self) -> int:
        """Bytes that the matrix takes on the CPU, in the types it has been used in so far."""
        single = 0 if self._values is None else self._values.nbytes
        double = 8 * len(self.indices) if _DOUBLE in self._copies else 0
        return self.indptr.nbytes + self.indices.nbytes + single + double

    def apply(self, x: Tensor) -> Tensor:
        """Return ``M x`` for every row of a batch, ``(batch, columns) -> (batch, rows)``, in new memory."""
        if len(x) == 0:
            return x.new_zeros(0, self.shape[0])
        # Half precision has no sparse product: compute in float32.
        dtype = torch.promote_types(x.dtype, torch.float32)
        matrix = self._like(dtype, x.device)
        return (matrix @ x.detach().to(dtype).T).T.contiguous().to(x.dtype)

    def dense(self) -> Tensor:
        """Return the matrix with all its zeros, float64."""
        return self._like(torch.float64, torch.device("cpu")).to_dense()

    def _like(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        key = (dtype, device)
        if key not in self._copies:
            # Outside inference mode, even if called in it: autograd could not save an inference tensor later.
            with torch.inference_mode(False):
                values = torch.from_numpy(self.values).to(device, dtype)
                other = next((m for (_, d), m in self._copies.items() if d == device), None)
                if other is None:
                    indptr, indices = (torch.from_numpy(a).to(device) for a in (self.indptr, self.indices))
                else:
                    indptr, indices = other.crow_indices(), other.col_indices()
                self._copies[key] = _csr(indptr, indices, values, self.shape)
                if key == _DOUBLE:
                    self._copies.pop((torch.float32, device), None)
                    self._values = None
        return self._copies[key]

    def __deepcopy__(self, memo: dict[int, object]) -> SparseMatrix:
        return self  # its numbers never change, and a second copy of some gigabytes is one too many

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_copies": {}, "_values": self.values}  # copies are made anew where it is unpickled


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
