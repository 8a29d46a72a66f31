"""One floating-point type for a whole module."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """As ``module.to(dtype)``, which would drop the imaginary parts of complex buffers.

    Raises
    ------
    ValueError
        unless ``dtype`` is float32 or float64.
    """
    if dtype not in _COMPLEX:
        raise ValueError(f"the data are {dtype}; valid are {', '.join(map(str, _COMPLEX))}")

    def convert(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(_COMPLEX[dtype])
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    apply: Callable[..., nn.Module] = module._apply
    apply(convert)
