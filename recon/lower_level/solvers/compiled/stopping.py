"""The stopping test by the compiled library: what :mod:`recon.lower_level.solvers.stopping` does with torch."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recon.native import address

if TYPE_CHECKING:
    from recon.lower_level.energy import Rounding
    from recon.lower_level.solvers.stopping import Stopping


class _Stop(ctypes.Structure):
    """``Stop`` of stopping.cpp."""

    _fields_ = (
        ("images", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("norms", "fixed", "pull")),
        *((name, ctypes.c_double) for name in ("data", "gain", "image", "gradient", "scale")),
        *((name, ctypes.c_void_p) for name in ("accuracy", "best", "stale")),
        ("patience", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("stalled", "evaluations")),
        ("most", ctypes.c_int64),
        ("status", ctypes.c_void_p),
    )


class StoppingTest:
    """That of images, which changes ``best`` and ``stale`` of ``stopping`` in place; others must not replace them.

    Parameters
    ----------
    kernel : CDLL
        The library.
    stopping : Stopping
        What is asked for, and how images have come along.
    model : Rounding
        Of the images' energy.
    """

    def __init__(self, kernel: ctypes.CDLL, stopping: Stopping, model: Rounding) -> None:
        fixed, pull = model.fixed.double().contiguous(), model.pull.double().contiguous()
        self.kernel, self._kept = kernel, (fixed, pull, stopping.accuracy, stopping.best, stopping.stale)
        self.task = task = _Stop(images=len(stopping.accuracy), scale=stopping.scale, patience=stopping.patience)
        task.data, task.gain, task.image, task.gradient = model.data, model.gain, model.image, model.gradient
        task.fixed, task.pull, task.accuracy, task.best, task.stale = map(address, self._kept)
        self.status = torch.empty(len(stopping.accuracy), dtype=torch.int64)
        task.status = address(self.status)
        self.reference = ctypes.byref(task)
        self._norms: Tensor | None = None
        self._spent: Tensor | None = None

    def __call__(self, norms: Tensor, stalled: Tensor | None, evaluations: Tensor | None, most: int) -> Tensor | None:
        """What :meth:`Stopping.status` returns; None where all go on."""
        task = self.task
        if norms is not self._norms or evaluations is not self._spent:  # some solvers change them in place
            if norms.shape != (task.images, 2) or norms.dtype != torch.float64:
                raise ValueError(f"norms of {task.images} images are ({task.images}, 2) in float64, not {norms.shape}")
            task.norms, task.evaluations = address(norms), address(evaluations)
            self._norms, self._spent = norms, evaluations
        task.stalled, task.most = address(stalled), most
        return self.status.clone() if self.kernel.solvers_stop(self.reference) else None
