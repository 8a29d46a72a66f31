"""The ray transform as an explicit sparse matrix, and its explicitly stored transpose.

Of the rows only those S are stored, in float32, that symmetries of the scan do not make of others, see
:mod:`recon.operators.tomography.matrix.folding`. A and A^T hold the same numbers, so the adjoint is exact.
"""

from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import torch
from torch import Tensor

from recon.operators.tomography import cache as matrix_cache
from recon.operators.tomography.beams import Geometry
from recon.operators.tomography.matrix import memory, sparse
from recon.operators.tomography.matrix.build import build, import_astra
from recon.operators.tomography.matrix.folding import Folding
from recon.operators.tomography.matrix.norm import collatz_wielandt
from recon.operators.tomography.matrix.sparse import SparseMatrix, transpose_csr

_FORMAT = 2  # of the cached files: raise it whenever the numbers change


class FoldedMatrix:
    """``A`` and ``A^T``, from the stored rows S and the folding.

    Attributes
    ----------
    stored, transpose
        S and S^T, :class:`recon.operators.tomography.matrix.sparse.SparseMatrix`.
    folding
        where the other rows are.
    """

    def __init__(self, stored: SparseMatrix, folding: Folding) -> None:
        self.stored, self.transpose, self.folding = stored, transpose_csr(stored), folding
        self._slots = torch.from_numpy(folding.slots.astype(np.int32))
        moved = folding.moved
        self._there = torch.from_numpy(moved.T.astype(np.int32).copy())
        self._back = torch.from_numpy(np.argsort(moved, axis=1).astype(np.int32))

    @property
    def shape(self) -> tuple[int, int]:
        """Rays, pixels."""
        return len(self.folding.slots), self.stored.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes on the CPU, in the types that were used so far."""
        indices = (self._slots, self._there, self._back)
        return self.stored.nbytes + self.transpose.nbytes + sum(a.nbytes for a in indices)

    @property
    def terms(self) -> int:
        """The most numbers that an entry of A x, and one of A^T y, add up, together."""
        longest = [int(np.diff(matrix.indptr).max(initial=0)) for matrix in (self.stored, self.transpose)]
        return longest[0] + len(self.folding.motions) * longest[1]

    def forward(self, x: Tensor) -> Tensor:
        """Return ``A x``, ``(batch, pixels) -> (batch, rays)``."""
        motions, slots = len(self.folding.motions), self._slots.to(x.device)
        there = self._there.to(x.device).reshape(-1)
        found = []
        for part in self._parts(x):
            moved = part.index_select(1, there).view(len(part), -1, motions)
            z = self.stored.product(_side_by_side(moved))
            found.append(_one_by_one(z, len(part)).index_select(1, slots).to(x.dtype))
        return torch.cat(found) if found else x.new_zeros(0, self.shape[0])

    def backward(self, y: Tensor) -> Tensor:
        """Return ``A^T y``, ``(batch, rays) -> (batch, pixels)``."""
        motions, slots, back = len(self.folding.motions), self._slots.to(y.device).long(), self._back.to(y.device)
        found = []
        for part in self._parts(y):
            sparse_rays = y.new_zeros(len(part), self.stored.shape[0] * motions, dtype=part.dtype)
            sparse_rays[:, slots] = part
            z = self.transpose.product(_side_by_side(sparse_rays.view(len(part), -1, motions)))
            z = z.view(-1, len(part), motions)
            total = z[:, :, 0].T.contiguous()  # the identity
            for motion in range(1, motions):
                total += z[:, :, motion].T.index_select(1, back[motion])
            found.append(total.to(y.dtype))
        return torch.cat(found) if found else y.new_zeros(0, self.shape[1])

    def _parts(self, vectors: Tensor) -> list[Tensor]:
        """So many of a batch that, with their motions, they are what the kernel takes at once; in float32 or float64.

        Half precision has no sparse product.
        """
        size = max(1, sparse.WIDTHS[0] // len(self.folding.motions)) if vectors.device.type == "cpu" else len(vectors)
        vectors = vectors.detach().to(torch.promote_types(vectors.dtype, torch.float32))
        return list(vectors.split(size)) if len(vectors) else []

    def dense(self) -> Tensor:
        """Return A with all its zeros, float64."""
        return self.forward(torch.eye(self.shape[1], dtype=torch.float64)).T.contiguous()

    def __deepcopy__(self, memo: dict[int, object]) -> FoldedMatrix:
        return self  # its numbers never change


def _side_by_side(x: Tensor) -> Tensor:
    """``(batch, n, motions)`` as ``(n, batch * motions)``."""
    return x.permute(1, 0, 2).reshape(x.shape[1], -1)


def _one_by_one(x: Tensor, batch: int) -> Tensor:
    """``(n, batch * motions)`` as ``(batch, n * motions)``."""
    return x.view(len(x), batch, -1).permute(1, 0, 2).reshape(batch, -1)


class ProjectorMatrix:
    """``A`` and ``A^T`` of a scan, and a proven bound of ``||A||``.

    Attributes
    ----------
    matrix
        :class:`FoldedMatrix`, rays x pixels.
    norm_bound
        see :func:`recon.operators.tomography.matrix.norm.collatz_wielandt`.
    """

    def __init__(
        self,
        geometry: Geometry,
        projector: str | None = None,
        *,
        cache: bool = True,
        memory_limit: float | None = None,
    ) -> None:
        """Load the matrix from the cache, or build and store it.

        Parameters
        ----------
        geometry
            parallel or fan beam.
        projector
            "linear" (Joseph's method; default for parallel beams, as in ODL), "line" (lengths of intersection; the only
            one for fan beams) or "strip" (areas; parallel beams).
        cache
            whether to use the cache on disk, see :mod:`recon.operators.tomography.cache`.
        memory_limit
            bytes that A and A^T may take together; by default what the machine has left.

        Raises
        ------
        ImportError
            ASTRA is not installed.
        ValueError
            no such projector for this geometry.
        ValueError
            the matrix would not fit.
        """
        projector = memory.check_projector(geometry, projector)
        folding = memory.fold_for(geometry, projector)
        memory.check_memory(geometry, projector, memory_limit, folding=folding)
        astra = import_astra()
        self.geometry = geometry
        key = cache_key(geometry, projector, astra.__version__, folding)
        stored = matrix_cache.load(key) if cache else None
        if stored is not None:
            header, arrays = stored
            self.norm_bound = header["norm_bound"]
        else:
            arrays = build(geometry, projector, folding)
        shape = len(folding.rows), math.prod(geometry.domain_shape)
        self.matrix = FoldedMatrix(SparseMatrix(arrays["indptr"], arrays["indices"], arrays["values"], shape), folding)
        if stored is None:
            self.norm_bound = collatz_wielandt(self.matrix)
            if cache:
                description = memory.describe(geometry, projector)
                matrix_cache.store(key, {"norm_bound": self.norm_bound, "description": description}, arrays)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``A x``, ``(batch, *domain_shape) -> (batch, *range_shape)``."""
        return self.matrix.forward(x.flatten(1)).reshape(len(x), *self.geometry.range_shape)

    def backward(self, y: Tensor) -> Tensor:
        """Return ``A^T y``, ``(batch, *range_shape) -> (batch, *domain_shape)``."""
        return self.matrix.backward(y.flatten(1)).reshape(len(y), *self.geometry.domain_shape)


def cache_key(geometry: Geometry, projector: str, astra_version: str, folding: Folding) -> str:
    """Return the name under which the matrix is cached: a hash of all that it depends on."""
    facts = [_FORMAT, projector, astra_version, geometry.to_dict(), folding.digest]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:40]
