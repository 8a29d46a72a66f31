"""The entries of the matrix, by ASTRA's CPU projectors.

Their pixels must be square, so lengths are measured in pixels: with ``D = diag(pixel_size)``, the ray ``p + t d``
(|d| = 1, t in mm) is ``D^-1 p + t D^-1 d`` in pixels, and a piece that is ``l`` pixels long there is ``l / |D^-1 d|``
mm long. Row r of the matrix is hence ASTRA's, for the scaled ray, times ``1 / |D^-1 d_r|``: line integrals over mm, for
pixels of any shape. The same code serves square pixels, detectors with an offset (vector geometries) and both kinds of
beam.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recon.operators.tomography.beams import FanBeam, Geometry, ParallelBeam
from recon.operators.tomography.cache import Arrays
from recon.operators.tomography.matrix.folding import Folding
from recon.operators.tomography.matrix.memory import estimate_entries

if TYPE_CHECKING:  # scipy.sparse takes time to import
    from scipy.sparse import csr_matrix

_BLOCK_ENTRIES = 4_000_000  # entries that ASTRA makes at once; scipy's copy takes 12 bytes each


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


def build(geometry: Geometry, projector: str, folding: Folding) -> Arrays:
    """Return CSR arrays of the stored rays.

    They are built in blocks of views: ASTRA and scipy keep only a block in memory beside the result.

    Raises
    ------
    ValueError
        there are more entries than int32 counts.
    """
    entries, detectors = estimate_entries(geometry, projector), geometry.detector_pixels
    guess = int(entries[folding.rows].sum()) + 1
    capacity = int(1.02 * guess) + 1024
    indices, values = np.empty(capacity, np.int32), np.empty(capacity, np.float32)
    indptr = np.zeros(len(folding.rows) + 1, np.int32)
    filled, row = 0, 0
    for views in _blocks(np.unique(folding.rows // detectors), entries.reshape(-1, detectors).sum(1)):
        numbers = (views[:, None] * detectors + np.arange(detectors)).reshape(-1)
        block = _astra_block(geometry.select(views.tolist()), projector)[np.isin(numbers, folding.rows)]
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


def _blocks(views: NDArray[np.int64], entries: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    """The views in parts of about as many entries as are made at once, one at least."""
    part = (np.cumsum(entries[views]) // _BLOCK_ENTRIES).astype(int)
    return np.split(views, np.flatnonzero(np.diff(part)) + 1)


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
