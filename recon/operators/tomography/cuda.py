"""ASTRA's GPU projectors on torch tensors, without copies: 2D beams slice by slice or as one volume, and cone beams.

ASTRA >= 2 reads and writes CUDA tensors through DLPack (``astra.experimental.direct_FP3D``, ``direct_BP3D``: float32,
contiguous, volumes ``(z, y, x)``, projections ``(detector row, angle, detector column)``). With ASTRA's (X, Y, Z) = our
(y, x, z) volumes keep their order in memory.

* Parallel beams: a batch is one volume of slices, and the detector has a row for each, both of the same height.
* Fan beams: one volume of one slice for each image, with the kernel that weights as in 2D.
* Cone beams: one call for each volume.

ASTRA's back-projector interpolates in the detector, its projector in the image: they are not transposes of each other.
:meth:`recon.operators.RayTransform.mismatch` measures by how much.
"""

from __future__ import annotations

import threading
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.operators.tomography.beams import ConeBeam, FanBeam, Geometry

# ASTRA's objects are not made for threads, and autograd runs the backward of CUDA tensors in threads of its own.
_LOCK = threading.Lock()


def check_cuda() -> ModuleType:
    """Return the module ``astra``.

    Raises
    ------
    ValueError
        torch or ASTRA cannot use a GPU here.
    ImportError
        ASTRA is not installed.
    """
    from recon.operators.tomography.matrix.build import import_astra

    astra = import_astra()
    for name, works in (("torch", torch.cuda.is_available()), ("ASTRA", astra.use_cuda())):
        if not works:
            raise ValueError(
                f'backend="astra_cuda" needs an NVIDIA GPU, and {name} finds none (or was built without CUDA): '
                'use backend="matrix"'
            )
    return astra


class CudaProjector:
    """Forward and back-projection of batches in float32 on the GPU."""

    def __init__(self, geometry: Geometry) -> None:
        """Check that there is a GPU; ASTRA's objects are made at the first use.

        Raises
        ------
        ValueError
            there is none.
        """
        check_cuda()
        self.geometry = geometry
        self._handles: dict[int, int] = {}  # by the number of slices

    def forward(self, x: Tensor) -> Tensor:
        """Return the projections, ``(batch, *domain_shape) -> (batch, *range_shape)``; dtype and device of ``x``."""
        return self._run(x, self.geometry.range_shape, forward=True)

    def backward(self, y: Tensor) -> Tensor:
        """Return the back-projections, ``(batch, *range_shape) -> (batch, *domain_shape)``."""
        return self._run(y, self.geometry.domain_shape, forward=False)

    def _run(self, x: Tensor, target: tuple[int, ...], forward: bool) -> Tensor:
        device = x.device if x.is_cuda else torch.device("cuda", torch.cuda.current_device())
        data = x.detach().to(device, torch.float32).contiguous()
        result = torch.zeros((len(x), *target), dtype=torch.float32, device=device)
        if len(x) == 0:
            return result.to(x.device, x.dtype)
        if isinstance(self.geometry, FanBeam):  # and cone: one call for each
            for single, slot in zip(data, result, strict=True):
                self._call(single, slot, device, forward)
        else:
            # (batch, 1, H, W) is the volume (batch, H, W), and (batch, 1, views, pixels) its projections
            self._call(data[:, 0], result[:, 0], device, forward)
        return result.to(x.device, x.dtype)

    def _call(self, data: Tensor, result: Tensor, device: torch.device, forward: bool) -> None:
        """Fill ``result``, both ``(slices or rows, ., .)``."""
        import astra
        import astra.experimental

        slices = len(data) if self.geometry.kind == "parallel" else 0
        with _LOCK, torch.cuda.device(device):
            if slices not in self._handles:
                self._handles[slices] = self._projector(astra, max(slices, 1))
            astra.set_gpu_index(device.index)
            # ASTRA works on a stream of its own: what torch has queued must be done.
            torch.cuda.current_stream(device).synchronize()
            if forward:
                astra.experimental.direct_FP3D(self._handles[slices], data, result)
            else:
                astra.experimental.direct_BP3D(self._handles[slices], result, data)

    def _projector(self, astra: ModuleType, slices: int) -> int:
        geometry = self.geometry
        volume = geometry.image_shape if geometry.ndim == 3 else (slices, *geometry.image_shape)
        # Any height of slices will do in 2D, if the detector rows have the same.
        sizes = geometry.pixel_size if geometry.ndim == 3 else (geometry.pixel_size[0], *geometry.pixel_size)
        z, y, x = (0.5 * n * p for n, p in zip(volume, sizes, strict=True))
        box = astra.create_vol_geom(volume[1], volume[2], volume[0], -x, x, -y, y, -z, z)
        rows, columns = (volume[0], geometry.detector_pixels) if geometry.ndim == 2 else geometry.detector_pixels
        kind = "cone_vec" if isinstance(geometry, FanBeam) else "parallel3d_vec"
        beams = astra.create_proj_geom(kind, rows, columns, vectors_3d(geometry))
        options = {"ProjectionKernel": "2d_weighting"} if geometry.kind == "fan" else {}
        config = {"type": "cuda3d", "VolumeGeometry": box, "ProjectionGeometry": beams, "options": {}} | options
        return int(astra.projector3d.create(config))

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_handles": {}}  # handles belong to this object in this process

    def __del__(self) -> None:
        if handles := list(vars(self).get("_handles", {}).values()):
            import astra

            astra.projector3d.delete(handles)


def vectors_3d(geometry: Geometry) -> NDArray[np.float64]:
    """Return ASTRA's 12 numbers of each view in mm: ray or source, detector centre, step along and between rows.

    In 2D, rows are as far apart as the image's pixels of the first axis, the height that slices are given.
    """
    (e_s, e_t), (_, spacing, offset) = geometry.frames(), geometry.across()
    height, up = geometry.pixel_size[0], 0.0
    if isinstance(geometry, ConeBeam):
        height, up = geometry.detector_spacing[0], geometry.detector_offset[0]
    # the origin of the volume is its centre
    middle, middle_up = np.asarray(geometry.image_offset[-2:]), geometry.image_offset[0] if geometry.ndim == 3 else 0.0
    if isinstance(geometry, FanBeam):
        first = -geometry.source_distance * e_t - middle
        centre = geometry.detector_distance * e_t + offset * e_s - middle
    else:
        first, centre = e_t, offset * e_s - middle
    count = len(e_s)

    def lifted(v: NDArray[np.float64], z: float) -> NDArray[np.float64]:
        return np.column_stack([v[:, 1], v[:, 0], np.full(count, z)])

    nothing = np.zeros_like(e_s)
    below = -middle_up if isinstance(geometry, FanBeam) else 0.0  # the source; directions stay
    parts = [lifted(first, below), lifted(centre, up - middle_up), lifted(spacing * e_s, 0.0), lifted(nothing, height)]
    return np.hstack(parts)
