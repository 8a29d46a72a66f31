"""Arithmetic in the precision of the tensors, and a first-order model of its rounding errors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

#: how many times u the norm of a gradient is wrong by its own summation, see :func:`recon.lower_level.batch`
SUMMATION = 8.0


def unit_roundoff(dtype: torch.dtype) -> float:
    """u = eps / 2: the largest relative error of one operation in ``dtype``."""
    return torch.finfo(dtype).eps / 2


def underflow(x: Tensor) -> float:
    """What may be lost of an image like x where its entries, or in double precision their squares, underflow."""
    smallest = max(torch.finfo(x.dtype).tiny, math.sqrt(torch.finfo(torch.float64).tiny))
    return smallest * math.sqrt(x[0].numel() if len(x) else 0)


@contextmanager
def full_precision() -> Iterator[None]:
    """No TensorFloat-32, no bfloat16 and no autocast inside: what is certified assumes the precision of the tensors.

    TensorFloat-32, which cuDNN's convolutions use by default, has 10 bits of mantissa where single precision has 23,
    and rounding models with the u of the dtype are wrong by a factor of 8000 then. Settings are restored afterwards.
    Also a decorator.
    """
    backends: Any = torch.backends
    operations = (
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
    )
    before = [operation.fp32_precision for operation in operations]
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        try:
            for operation in operations:
                operation.fp32_precision = "ieee"
            yield
        finally:
            for operation, precision in zip(operations, before, strict=True):
                operation.fp32_precision = precision
