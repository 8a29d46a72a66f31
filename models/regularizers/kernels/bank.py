"""Filters with profiles in the compiled library: tensors in, tensors out."""

from __future__ import annotations

import ctypes
import itertools
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from models.regularizers.filter_bank import thread_pool
from models.regularizers.kernels import library

_OPERATIONS = ("gradient", "curvature", "product", "maximum", "derivative")
KINDS = ("smoothed_l1", "log_cosh", "student_t", "spline")
_PRECISIONS = {torch.float32: 4, torch.float64: 8}
_LARGEST = 64  # side of filters


@dataclass(frozen=True)
class Profiles:
    """What the library needs to know of psi_1, ..., psi_K.

    Parameters
    ----------
    kind
        one of :data:`KINDS`.
    tables
        at most three, ``(K, columns)``: weights, widths and maybe second widths of potentials; psi'', psi' and psi at
        the knots of splines.
    spacing
        distance of the knots of splines.
    """

    kind: str
    tables: tuple[Tensor, ...]
    spacing: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"the compiled kernels have {', '.join(KINDS)}, but no {self.kind!r}")
        numbers = (3,) if self.kind == "spline" else (2, 3)
        shapes = [tuple(table.shape) for table in self.tables]
        if len(shapes) not in numbers or len(set(shapes)) > 1:
            raise ValueError(f"{self.kind} has {numbers} tables of one shape, but got {shapes}")


def compiled(x: Tensor, kernels: Tensor, profiles: Profiles) -> Bank | None:
    """The bank for images like x, ``(batch, channel, height, width)``; ``None`` where the code in torch has to do.

    The library takes images no smaller than the filters in single and double precision, the same for images and
    parameters, on a CPU. :func:`library.level` says whether it is there and wanted.
    """
    tensors = (x, kernels, *profiles.tables)
    if any(t.device.type != "cpu" or t.dtype != x.dtype or t.layout != torch.strided for t in tensors):
        return None
    size = kernels.shape[1]
    if x.dtype not in _PRECISIONS or not 2 <= size <= _LARGEST or x.ndim != 4 or min(x.shape[2:]) < size:
        return None
    level = library.level()
    if level is None:
        return None
    tables = tuple(table.contiguous() for table in profiles.tables)
    return Bank(kernels.contiguous(), Profiles(profiles.kind, tables, profiles.spacing), level)


@dataclass(frozen=True)
class Weights:
    """psi''(c_k * x) at the images x, ``(images, height, width)``, as the library lays it out."""

    stored: Tensor
    shape: torch.Size


@dataclass(frozen=True)
class Bank:
    """Filters ``(K, s, s)`` and profiles at a level of instructions, for images like those of :func:`compiled`."""

    kernels: Tensor
    profiles: Profiles
    level: int

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of psi_k(c_k * x) for every image, float64, and their gradient, for x ``(images, height, width)``."""
        out = torch.empty_like(x)
        return self._run("gradient", x, out=out)[:, 0], out

    def curvature(self, x: Tensor) -> Weights:
        """psi''(c_k * x), for :meth:`product`."""
        size = self._sizes(self._task("curvature", x))[2]
        stored = x.new_empty(size)
        self._run("curvature", x, weights=stored)
        return Weights(stored, x.shape)

    def product(self, v: Tensor, weights: Weights, order: Tensor | None) -> Tensor:
        """sum_k C_k^T psi''(c_k * x) C_k v, where v[i] belongs to the image order[i] of ``weights``."""
        images = weights.shape[0]
        if order is not None:
            order = (order + images * (order < 0)).to(torch.int64).contiguous()
            if bool(((order < 0) | (order >= images)).any()):
                raise IndexError(f"the Hessian is that at {images} images, but {order.tolist()} are asked for")
        expected = torch.Size((images if order is None else len(order), *weights.shape[1:]))
        if v.shape != expected or v.dtype != weights.stored.dtype or v.device.type != "cpu":
            raise RuntimeError(
                f"the Hessian takes {weights.stored.dtype} of shape {tuple(expected)} on the CPU, with channels as "
                f"images, but got {v.dtype} of shape {tuple(v.shape)} on {v.device}"
            )
        out = torch.empty_like(v)
        self._run("product", v, out=out, weights=weights.stored, order=order)
        return out

    def maximum(self, x: Tensor) -> Tensor:
        """max_p |(c_k * x)_p|, ``(images, K)``, float64."""
        return self._run("maximum", x)

    def derivative(self, x: Tensor, w: Tensor) -> tuple[Tensor, list[Tensor]]:
        """d/d(kernels, tables) of sum_k <psi_k'(c_k * x), c_k * w>, over all images."""
        total = torch.zeros(self._sizes(self._task("derivative", x))[1], dtype=torch.float64)
        for part in self._run("derivative", x, w=w):  # in this order
            total += part
        sizes = [self.kernels.numel(), *[self.profiles.tables[0].numel()] * 3]
        parts = [part.to(x.dtype) for part in total.split(sizes)]
        return parts[0].view_as(self.kernels), [
            part.view_as(table) for part, table in zip(parts[1:], self.profiles.tables, strict=False)
        ]

    # --- calls -------------------------------------------------------------------------------------------------------

    def _task(self, operation: str, x: Tensor) -> library.Task:
        tables = [table.data_ptr() for table in self.profiles.tables]
        return library.Task(
            operation=_OPERATIONS.index(operation),
            precision=_PRECISIONS[x.dtype],
            level=self.level,
            images=x.shape[0],
            height=x.shape[1],
            width=x.shape[2],
            filters=self.kernels.shape[0],
            size=self.kernels.shape[1],
            kind=KINDS.index(self.profiles.kind),
            columns=self.profiles.tables[0].shape[1],
            spacing=self.profiles.spacing,
            kernels=self.kernels.data_ptr(),
            tables=(ctypes.c_void_p * 3)(*tables, *[None] * (3 - len(tables))),
            x=x.data_ptr(),
        )

    def _sizes(self, task: library.Task) -> list[int]:
        sizes = (ctypes.c_int64 * 4)()
        _library().recon_kernels_layout(task, sizes)
        return list(sizes)

    def _run(self, operation: str, x: Tensor, **others: Tensor | None) -> Tensor:
        """Results per image, ``(images, results)``; units of work are shared among the threads of torch."""
        task = self._task(operation, x)
        units, per_unit, _, overhang = self._sizes(task)
        results = torch.zeros(units, per_unit, dtype=torch.float64)
        sums = torch.zeros(x.shape[0], per_unit, dtype=torch.float64)
        between = x.new_empty(overhang if "out" in others else 0)
        for name, tensor in (others | {"results": results, "overhang": between}).items():
            setattr(task, name, None if tensor is None else tensor.data_ptr())
        threads = max(1, min(torch.get_num_threads(), units))
        shares = list(itertools.pairwise(units * k // threads for k in range(threads + 1)))
        run = _library().recon_kernels_run

        def share(part: tuple[int, int]) -> int:
            return int(run(task, *part))

        pool = map if threads == 1 else thread_pool(torch.get_num_threads(), os.getpid()).map
        if any(list(pool(share, shares))):
            raise MemoryError(f"no memory for {self.kernels.shape[0]} filters of images of {x.shape[2]} columns")
        _library().recon_kernels_finish(task, sums.data_ptr())
        return sums


def _library() -> ctypes.CDLL:
    found = library.load()
    assert found is not None  # or there was no bank
    return found
