"""The ray transform as an explicit sparse matrix, and its explicitly stored transpose.

ASTRA's CPU projectors give the matrix. Their pixels must be square, so lengths are measured in pixels: with
``D = diag(pixel_size)``, the ray ``p + t d`` (|d| = 1, t in mm) is ``D^-1 p + t D^-1 d`` in pixels, and a piece that is
``l`` pixels long there is ``l / |D^-1 d|`` mm long. Row r of the matrix is hence ASTRA's, for the scaled ray, times
``1 / |D^-1 d_r|``: line integrals over mm, for pixels of any shape. The same code serves square pixels, detectors with
an offset (vector geometries) and both kinds of beam.

Values are stored in float32. The first product in float64 on the CPU converts them for good, and an entry then takes 24
bytes in place of 16. A and A^T hold the same numbers in both types, so the adjoint is exact.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.operators.tomography import cache as matrix_cache
from recon.operators.tomography.beams import FanBeam, Geometry, ParallelBeam
from recon.operators.tomography.norm import collatz_wielandt
from recon.operators.tomography.sparse import SparseMatrix, transpose_csr

if TYPE_CHECKING:  # scipy.sparse takes time to import
    from scipy.sparse import csr_matrix

_FORMAT = 1  # of the cached files: raise it whenever the numbers change
_BLOCK_ENTRIES = 16_000_000  # entries that ASTRA makes at once; scipy's copy takes 12 bytes each
# value and int32 index, in A and in A^T
_ENTRY_BYTES = {torch.float32: 16, torch.float64: 24}
# Converting both to float64 takes 8 bytes for A, gives up 4, and takes 8 for A^T before the last 4 are given up.
_CONVERSION_BYTES = 12
PROJECTORS = {"parallel": ("linear", "line", "strip"), "fan": ("line",)}


class ProjectorMatrix:
    """``A`` as CSR, ``A^T`` as CSR, and a proven bound of ``||A||``.

    Attributes
    ----------
    matrix, transpose
        :class:`recon.operators.tomography.sparse.SparseMatrix`, rays x pixels and pixels x rays.
    norm_bound
        see :func:`recon.operators.tomography.norm.collatz_wielandt`.
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
            bytes that A and A^T may take together, in whatever type they are used; by default what the machine has
            left.

        Raises
        ------
        ImportError
            ASTRA is not installed.
        ValueError
            no such projector for this geometry.
        ValueError
            the matrix would not fit in float32, the type it is built in. For float64 the same is raised at the first
            product in that type.
        """
        projector = check_projector(geometry, projector)
        check_memory(geometry, projector, memory_limit)
        self._memory_limit, self._has_double = memory_limit, False
        astra = import_astra()
        self.geometry = geometry
        description = _describe(geometry, projector)
        key = cache_key(geometry, projector, astra.__version__)
        stored = matrix_cache.load(key) if cache else None
        rays, pixels = math.prod(geometry.range_shape), math.prod(geometry.domain_shape)
        if stored is not None:
            header, arrays = stored
            self.norm_bound = header["norm_bound"]
        else:
            arrays = _build(geometry, projector)
        self.matrix = SparseMatrix(arrays["indptr"], arrays["indices"], arrays["values"], (rays, pixels))
        self.transpose = transpose_csr(self.matrix)
        if stored is None:
            self.norm_bound = collatz_wielandt(self.matrix, self.transpose)
            if cache:
                matrix_cache.store(key, {"norm_bound": self.norm_bound, "description": description}, arrays)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``A x``, ``(batch, *domain_shape) -> (batch, *range_shape)``.

        Raises
        ------
        ValueError
            the first product in float64, which the memory is too small for.
        """
        self._check_double(x)
        return self.matrix.apply(x.flatten(1)).reshape(len(x), *self.geometry.range_shape)

    def backward(self, y: Tensor) -> Tensor:
        """Return ``A^T y``, ``(batch, *range_shape) -> (batch, *domain_shape)``.

        Raises
        ------
        ValueError
            as :meth:`forward`.
        """
        self._check_double(y)
        return self.transpose.apply(y.flatten(1)).reshape(len(y), *self.geometry.domain_shape)

    def _check_double(self, x: Tensor) -> None:
        if self._has_double or x.dtype != torch.float64 or x.device.type != "cpu":
            return
        entries = len(self.matrix.indices)
        if self._memory_limit is None:
            needed, limit = float(_CONVERSION_BYTES * entries), available_memory()
        else:
            rays, pixels = self.matrix.shape
            needed, limit = _bytes(entries, rays + pixels, torch.float64), self._memory_limit
        if needed > limit:
            amount = f"{needed / 1e9:.3g} GB" + (" more" if self._memory_limit is None else "")
            raise ValueError(
                f"the projector matrix has {entries / 1e6:.0f} million entries; products in float64 take {amount} with "
                f"its transpose, and {limit / 1e9:.3g} GB are {_allowed(self._memory_limit)}. Use float32, fewer "
                "views, fewer detector or image pixels, or raise memory_limit"
            )
        self._has_double = True


def import_astra() -> ModuleType:
    """Return the module ``astra``.

    Raises
    ------
    ImportError
        it is not installed; the message says how to get it.
    """
    try:
        import astra
    except ImportError as error:
        raise ImportError("computed tomography needs the ASTRA toolbox: pip install 'recon-bilevel[ct]'") from error
    return astra


def check_projector(geometry: Geometry, projector: str | None) -> str:
    """Return the name of the projector, the default one for None.

    Raises
    ------
    ValueError
        there is none of that name for the geometry.
    """
    valid = PROJECTORS.get(geometry.kind)
    if valid is None:
        raise ValueError(f'there is no matrix for {geometry.kind} beams: use backend="astra_cuda" (a GPU)')
    if projector is not None and projector not in valid:
        raise ValueError(f"projector for {geometry.kind} beams must be one of {', '.join(valid)}, got {projector!r}")
    return projector or valid[0]


def cache_key(geometry: Geometry, projector: str, astra_version: str) -> str:
    """Return the name under which the matrix is cached: a hash of all that it depends on."""
    facts = [_FORMAT, projector, astra_version, geometry.to_dict()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:40]


def estimate_entries(geometry: Geometry, projector: str | None = None) -> int:
    """Return about how many entries the matrix has, from the lengths of the rays within the image.

    In pixels, a ray that runs ``(l_x, l_y)`` inside the image meets ``2 max(l_x, l_y)`` pixels in Joseph's method and
    ``l_x + l_y`` lines of the grid in the line kernel; a strip of width w covers about ``w |l|`` more.
    """
    projector = check_projector(geometry, projector)
    points, directions = geometry.rays()
    sizes = np.asarray(geometry.pixel_size)
    points, directions = (points - geometry.image_offset) / sizes, directions / sizes
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        half = 0.5 * np.asarray(geometry.image_shape)
        ends = np.stack([(-half - points) / directions, (half - points) / directions])
    # fmin, fmax ignore the NaN of 0/0: a ray along the very edge
    length = np.fmin.reduce(ends.max(0), axis=-1) - np.fmax.reduce(ends.min(0), axis=-1)
    runs = np.abs(directions) * np.maximum(length, 0.0)[..., None]
    if projector == "linear":
        entries = 2 * runs.max(-1)
    else:
        entries = runs.sum(-1) + (length > 0)
        if projector == "strip":
            _, spacing, _ = geometry.across()
            entries += (1 + spacing / min(geometry.pixel_size)) * np.hypot(runs[..., 0], runs[..., 1])
    return int(entries.sum()) + 1


def check_memory(
    geometry: Geometry,
    projector: str | None = None,
    memory_limit: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Return how many bytes A and A^T will take together when they are used in float32, or in float64.

    Raises
    ------
    ValueError
        more than ``memory_limit``, or than the machine has left, or more entries than int32 can count.
    """
    entries = estimate_entries(geometry, projector)
    rays, pixels = math.prod(geometry.range_shape), math.prod(geometry.domain_shape)
    needed = _bytes(entries, rays + pixels, dtype)
    limit = available_memory() if memory_limit is None else memory_limit
    if needed > limit or max(entries, rays, pixels) >= 2**31:
        reason = f"{limit / 1e9:.1f} GB are {_allowed(memory_limit)}" if needed > limit else "the limit is 2^31 entries"
        raise ValueError(
            f"the projector matrix ({_describe(geometry, projector or '')}) has about {entries / 1e6:.0f} million "
            f'entries and takes {needed / 1e9:.1f} GB with its transpose; {reason}. Use backend="astra_cuda" (a GPU) '
            'or "odl", fewer views, fewer detector or image pixels, or raise memory_limit'
        )
    return needed


def _bytes(entries: int, pointers: int, dtype: torch.dtype) -> float:
    return float(_ENTRY_BYTES[dtype] * entries + 4 * pointers)


def _allowed(memory_limit: float | None) -> str:
    return "left on this machine" if memory_limit is None else "allowed (memory_limit)"


def available_memory() -> float:
    """Return the bytes that this process may still take; infinite where the system does not tell."""
    left = [math.inf]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        left += [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
        group = Path("/sys/fs/cgroup")  # containers
        allowed = (group / "memory.max").read_text().strip()
        if allowed != "max":
            left.append(float(allowed) - float((group / "memory.current").read_text()))
    except (OSError, ValueError, IndexError):
        pass  # no Linux, or no such control group
    return min(left)


def _describe(geometry: Geometry, projector: str) -> str:
    sizes = "x".join(map(str, geometry.image_shape))
    return f"{geometry.kind} {projector} {sizes}, {len(geometry.angles)} views, {geometry.detector_pixels} detectors"


def _build(geometry: Geometry, projector: str) -> matrix_cache.Arrays:
    """Return CSR arrays, built in blocks of views: ASTRA and scipy keep only a block in memory beside the result."""
    views = len(geometry.angles)
    guess = estimate_entries(geometry, projector)
    step = max(1, int(views * _BLOCK_ENTRIES / guess))
    capacity = int(1.02 * guess) + 1024
    indices, values = np.empty(capacity, np.int32), np.empty(capacity, np.float32)
    indptr = np.zeros(math.prod(geometry.range_shape) + 1, np.int32)
    filled, row = 0, 0
    for start in range(0, views, step):
        block = _astra_block(geometry.select(slice(start, start + step)), projector)
        end = filled + block.nnz
        if end >= 2**31:
            raise ValueError("the projector matrix has more than 2^31 entries")
        if end > len(values):
            indices.resize(end + guess // 10, refcheck=False)
            values.resize(end + guess // 10, refcheck=False)
        indices[filled:end], values[filled:end] = block.indices, block.data
        indptr[row + 1 : row + 1 + block.shape[0]] = block.indptr[1:] + filled
        filled, row = end, row + block.shape[0]
    indices.resize(filled, refcheck=False)
    values.resize(filled, refcheck=False)
    return {"indptr": indptr, "indices": indices, "values": values}


def _astra_block(geometry: Geometry, projector: str) -> csr_matrix:
    """Return ASTRA's matrix of some views in mm, scipy CSR with sorted columns and no zeros."""
    astra = import_astra()
    kind, beam = (projector, "parallel_vec") if isinstance(geometry, ParallelBeam) else ("line_fanflat", "fanflat_vec")
    beams = astra.create_proj_geom(beam, geometry.detector_pixels, astra_vectors(geometry))
    handle = astra.create_projector(kind, beams, astra.create_vol_geom(*geometry.image_shape))
    try:
        matrix_handle = astra.projector.matrix(handle)
        try:
            matrix = astra.matrix.get(matrix_handle)
        finally:
            astra.matrix.delete(matrix_handle)
    finally:
        astra.projector.delete(handle)
    _, directions = geometry.rays()
    weights = 1.0 / np.linalg.norm(directions / np.asarray(geometry.pixel_size), axis=-1)
    matrix.data *= np.repeat(weights.ravel(), np.diff(matrix.indptr))
    matrix.sum_duplicates()  # sorts, too
    matrix.eliminate_zeros()
    return matrix


def astra_vectors(geometry: Geometry) -> NDArray[np.float64]:
    """Return ASTRA's vectors of each view in pixels: parallel (ray, detector centre, step), fan (source, centre, step).

    ASTRA's X is our y (columns), its Y is our -x (rows, from the top), its origin the centre of the image.
    """
    e_s, e_t = geometry.frames()
    _, spacing, offset = geometry.across()
    if isinstance(geometry, FanBeam):
        source, centre = -geometry.source_distance * e_t, geometry.detector_distance * e_t + offset * e_s
        parts = [source - geometry.image_offset, centre - geometry.image_offset, spacing * e_s]
    else:
        parts = [e_t, offset * e_s - geometry.image_offset, spacing * e_s]
    rows, columns = geometry.pixel_size
    return np.concatenate([np.stack([v[:, 1] / columns, -v[:, 0] / rows], -1) for v in parts], -1)
