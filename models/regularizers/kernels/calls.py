"""Calls of the compiled library: tensors and threads."""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from models.regularizers.filter_bank import thread_pool
from models.regularizers.kernels import library

_OPERATIONS = ("gradient", "curvature", "product", "maximum", "derivative")
_PRECISIONS = {torch.float32: 4, torch.float64: 8}


def suitable(x: Tensor, size: int, *parameters: Tensor) -> bool:
    """Whether the library takes images x, ``(batch, channel, height, width)``, of ``size`` pixels a side or more."""
    tensors = (x, *parameters)
    if any(t.device.type != "cpu" or t.dtype != x.dtype or t.layout != torch.strided for t in tensors):
        return False
    return x.dtype in _PRECISIONS and x.ndim == 4 and min(x.shape[2:]) >= size


def task(operation: str, level: int, x: Tensor, kernels: Tensor, tables: Sequence[Tensor]) -> library.Task:
    """What all tasks have, for x ``(images, ..., height, width)``; kernels, tables and x must live as long as it does.

    Kernels are ``(filters, size, size)``, or ``(filters, channels, size, size)`` for images of so many channels.
    """
    addresses = [table.data_ptr() for table in tables]
    return library.Task(
        operation=_OPERATIONS.index(operation),
        precision=_PRECISIONS[x.dtype],
        level=level,
        images=x.shape[0],
        height=x.shape[-2],
        width=x.shape[-1],
        filters=kernels.shape[0],
        size=kernels.shape[-1],
        channels=1 if kernels.ndim == 3 else kernels.shape[1],
        kernels=kernels.data_ptr(),
        tables=(ctypes.c_void_p * 3)(*addresses, *[None] * (3 - len(addresses))),
        x=x.data_ptr(),
    )


def layout(task: library.Task) -> list[int]:
    """Units of work, results of each, numbers that are stored for products, and numbers that units add to others."""
    sizes = (ctypes.c_int64 * 4)()
    _library().recon_kernels_layout(task, sizes)
    return list(sizes)


def run(task: library.Task, x: Tensor, **others: Tensor | None) -> Tensor:
    """Results per image, ``(images, results)``; units of work are shared among the threads of torch."""
    units, per_unit, _, overhang = layout(task)
    results = torch.zeros(units, per_unit, dtype=torch.float64)
    sums = torch.zeros(x.shape[0], per_unit, dtype=torch.float64)
    between = x.new_empty(overhang if "out" in others else 0)
    for name, tensor in (others | {"results": results, "overhang": between}).items():
        setattr(task, name, None if tensor is None else tensor.data_ptr())
    threads = max(1, min(torch.get_num_threads(), units))
    shares = list(itertools.pairwise(units * k // threads for k in range(threads + 1)))
    function = _library().recon_kernels_run

    def share(part: tuple[int, int]) -> int:
        return int(function(task, *part))

    pool = map if threads == 1 else thread_pool(torch.get_num_threads(), os.getpid()).map
    if any(list(pool(share, shares))):
        raise MemoryError(f"no memory for {task.filters} filters of images of {task.width} columns")
    _library().recon_kernels_finish(task, sums.data_ptr())
    return sums


def over_images(results: Tensor) -> Tensor:
    """Their sum, in the order of the images."""
    total = torch.zeros(results.shape[1], dtype=torch.float64)
    for part in results:
        total += part
    return total


def checked_order(v: Tensor, dtype: torch.dtype, shape: Sequence[int], order: Tensor | None) -> Tensor | None:
    """To which of the images ``shape``, at which a Hessian is stored, those of v belong; ``None``: to their own.

    Raises
    ------
    IndexError
        for images that there are not.
    RuntimeError
        if v is not of their type and shape.
    """
    images = shape[0]
    if order is not None:
        order = (order + images * (order < 0)).to(torch.int64).contiguous()
        if bool(((order < 0) | (order >= images)).any()):
            raise IndexError(f"the Hessian is that at {images} images, but {order.tolist()} are asked for")
    expected = torch.Size((images if order is None else len(order), *shape[1:]))
    if v.shape != expected or v.dtype != dtype or v.device.type != "cpu":
        raise RuntimeError(
            f"the Hessian takes {dtype} of shape {tuple(expected)} on the CPU, with channels that are not coupled as "
            f"images, but got {v.dtype} of shape {tuple(v.shape)} on {v.device}"
        )
    return order


def _library() -> ctypes.CDLL:
    found = library.load()
    assert found is not None  # or there was no task
    return found
