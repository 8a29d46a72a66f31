"""What A^T A does to each frequency, approximately: what preconditioners are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NormalSymbol:
    """s >= 0 with A^T A about F^* diag(s) F, F the Fourier transform of periodic images.

    An approximation that solvers may be fast by, and that nothing they certify depends on.

    Attributes
    ----------
    values
        s on the grid of ``torch.fft.fft2``, ``(height, width)``, float64 on the CPU.
    complex_pairs
        whether the two channels of an image are the parts of one complex number, which F acts on; otherwise F acts on
        each channel, and s is symmetric, s(-xi) = s(xi).
    """

    values: Tensor
    complex_pairs: bool = False


@torch.no_grad()
def impulse_symbol(normal: Callable[[Tensor], Tensor], shape: tuple[int, int]) -> NormalSymbol:
    """The symbol of ``normal`` = A^T A from its response to an impulse in the middle of the image.

    The response is made symmetric about the impulse, so that its Fourier transform is real, and negative parts, which
    come from what is cut off at the boundary, are set to zero.
    """
    impulse = torch.zeros(1, 1, *shape, dtype=torch.float64)
    middle = (shape[0] // 2, shape[1] // 2)
    impulse[0, 0, middle[0], middle[1]] = 1.0
    response = torch.roll(normal(impulse)[0, 0].double().cpu(), (-middle[0], -middle[1]), dims=(0, 1))
    # the real part is the transform of the part that is symmetric under p -> -p
    return NormalSymbol(torch.fft.fft2(response).real.clamp_min(0.0))
