"""The ray transform (X-ray CT) behind one class: explicit matrix, ASTRA on the GPU, or ODL's own call."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from recon.errors import one_of
from recon.operators.checks import adjoint_mismatch, check_adjoint
from recon.operators.linear import LinearOperator, apply_linear
from recon.operators.symbol import NormalSymbol, impulse_symbol
from recon.operators.tomography.beams import Geometry
from recon.operators.tomography.cuda import CudaProjector
from recon.operators.tomography.matrix.build import import_astra
from recon.operators.tomography.matrix.projector import ProjectorMatrix

if TYPE_CHECKING:  # ODL takes seconds to import
    from odl.applications.tomo.operators.ray_trafo import RayTransform as ODLRayTransform

Backend = Literal["matrix", "astra_cuda", "odl"]
_SINGLE_TOLERANCE = 1e-5  # of the adjoint, for backends that compute in float32


class RayTransform(LinearOperator):
    """``(A x)[r] = integral of x along ray r``: attenuation in 1/mm, lengths in mm, data without unit.

    Images ``(batch, 1, H, W)`` go to sinograms ``(batch, 1, angles, detectors)``; cone beams take volumes
    ``(batch, D, H, W)`` to ``(batch, rows, angles, columns)``. Axes and angles:
    :mod:`recon.operators.tomography.beams`.

    Backends:

    * ``"matrix"``: ASTRA's CPU projector as an explicit sparse matrix with its explicit transpose
      (:mod:`recon.operators.tomography.matrix`), for batches at once, on the device and in the precision of the data.
      Adjoint exact, ``norm_bound`` proven (Collatz-Wielandt). Pixels of any shape. Takes 16 bytes for each entry, and
      stores one of rays that flips and quarter turns of the image make of one another: an eighth of equispaced views
      around a centred square image.
    * ``"astra_cuda"``: ASTRA's GPU projectors (:mod:`recon.operators.tomography.cuda`), in float32, for what does not
      fit and for cone beams. The back-projector is not the exact transpose: gradients are off by about
      :meth:`mismatch`, and no certificate holds. ``norm_bound`` is an estimate.
    * ``"odl"``: ODL's ``RayTransform`` with ``impl="astra_cpu"``, in float32, image by image: slow, for comparisons.
      Its CPU geometry has square pixels only and ignores the offset of a parallel detector, so both are refused.
      ``norm_bound`` is an estimate.

    The estimate is the same ratio ``max_i (A^T A v)_i / v_i`` after a few power iterations, which bounds ``||A||^2``
    for an exact nonnegative pair in exact arithmetic; of these backends neither is known entry by entry.

    Parameters
    ----------
    geometry
        the scan.
    backend
        "matrix", "astra_cuda" or "odl".
    projector
        of the matrix: "linear" (default of parallel beams), "line" (default of fan beams), "strip".
    cache
        whether the matrix is kept on disk, see :mod:`recon.operators.tomography.cache`.
    memory_limit
        bytes that the matrix and its transpose may take; by default what the machine has left.

    Raises
    ------
    ImportError
        ASTRA is not installed.
    ValueError
        the backend does not exist, lacks a GPU, or does not serve this geometry; or the matrix is too large.
    """

    def __init__(
        self,
        geometry: Geometry,
        backend: Backend = "matrix",
        *,
        projector: str | None = None,
        cache: bool = True,
        memory_limit: float | None = None,
    ) -> None:
        if not isinstance(geometry, Geometry):
            raise ValueError(f"expected a geometry (ParallelBeam, FanBeam, ConeBeam), got {type(geometry).__name__}")
        one_of(("matrix", "astra_cuda", "odl"), backend=backend)
        if projector is not None and backend != "matrix":
            raise ValueError(f'projector can be chosen for backend="matrix" only, got {projector!r} for {backend!r}')
        super().__init__(geometry.domain_shape, geometry.range_shape, norm_bound=0.0)
        self.geometry = geometry
        self.backend = backend
        self._symbol: NormalSymbol | None = None
        # Methods of the backend, and none of this object: a cycle would keep a large matrix until it is collected.
        self._matvec: Callable[[Tensor], Tensor]
        self._rmatvec: Callable[[Tensor], Tensor]
        if backend == "matrix":
            self.projector_matrix = ProjectorMatrix(geometry, projector, cache=cache, memory_limit=memory_limit)
            self._matvec, self._rmatvec = self.projector_matrix.forward, self.projector_matrix.backward
            self.norm_bound = self.projector_matrix.norm_bound
            return
        self.norm_bound_certified = False
        if backend == "odl":
            from recon.operators.odl import ODLOperator  # ODL takes long to import

            self._odl = ODLOperator(_odl_ray_transform(geometry), norm_bound=1.0, check_adjoint=False)
            self._matvec, self._rmatvec = self._odl.forward, self._odl.adjoint
            if not (found := check_adjoint(self)) <= _SINGLE_TOLERANCE:
                raise ValueError(f"ODL's back-projection is not the transpose of its projection: mismatch {found:.2g}")
        else:
            cuda = CudaProjector(geometry)
            self.adjoint_exact = False
            self._matvec, self._rmatvec = cuda.forward, cuda.backward
        self.norm_bound = self._estimate_norm()
        if backend == "odl":
            self.adjoint_mismatch = adjoint_mismatch(self)

    def unit_roundoff(self, dtype: torch.dtype) -> float:
        """That of single precision for all backends but the matrix."""
        own = super().unit_roundoff(dtype)
        return own if self.backend == "matrix" else max(own, super().unit_roundoff(torch.float32))

    def _forward(self, x: Tensor) -> Tensor:
        return apply_linear(x, self._matvec, self._rmatvec)

    def _adjoint(self, y: Tensor) -> Tensor:
        return apply_linear(y, self._rmatvec, self._matvec)

    def normal_symbol(self) -> NormalSymbol | None:
        """Measured at an impulse in the middle of the image, once: about c / |xi|. None for cone beams."""
        if self._symbol is None and self.geometry.ndim == 2:
            height, width = self.geometry.domain_shape[1:]
            self._symbol = impulse_symbol(lambda x: self._rmatvec(self._matvec(x)), (height, width))
        return self._symbol

    def mismatch(self) -> float:
        """Return the largest ``|<A x, y> - <x, A^T y>| / (||A x|| ||y||)`` over seeded random pairs.

        About 1e-15 for the matrix (float64), 1e-7 for ODL; for ``astra_cuda`` it is what the back-projector is off by.
        """
        return check_adjoint(self, device="cuda" if self.backend == "astra_cuda" else None)

    @torch.no_grad()
    def _estimate_norm(self) -> float:
        v = torch.ones(1, *self.geometry.domain_shape)
        for _ in range(10):
            w = self._rmatvec(self._matvec(v))
            ratio = float((w / v).max())
            if not ratio > 0:
                return 0.0
            v = (w / w.max()).clamp_min(1e-3)
        return math.sqrt(ratio) * 1.001  # rounding in float32

    def extra_repr(self) -> str:
        return f"{self.geometry.kind}, backend={self.backend}, {super().extra_repr()}"


def _odl_ray_transform(geometry: Geometry) -> ODLRayTransform:
    """Return ODL's operator with its CPU backend, or refuse what that gets wrong."""
    instead = 'use backend="matrix"'
    if geometry.ndim == 3:
        raise ValueError('ODL projects cone beams on a GPU only: use backend="astra_cuda"')
    if not math.isclose(*geometry.pixel_size, rel_tol=1e-9):
        raise ValueError(f"ODL's CPU projector needs square pixels, got {geometry.pixel_size} mm: {instead}")
    if geometry.kind == "parallel" and geometry.detector_offset != 0.0:
        raise ValueError(f"ODL's CPU projector ignores the detector offset of parallel beams: {instead}")
    if any(geometry.image_offset):
        raise ValueError(f"ODL's CPU projector is for images centred on the axis, got image_offset: {instead}")
    import_astra()
    from odl.applications.tomo.operators.ray_trafo import RayTransform as ODLRayTransform

    space, odl_geometry = geometry.to_odl()
    transform = ODLRayTransform(space, odl_geometry, impl="astra_cpu")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The 'astra_cpu' backend may be too slow")
        transform.get_impl()  # warns for large images, once
    return transform
