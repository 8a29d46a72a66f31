"""Approximate inverse Hessians that are diagonal in frequency: how to be fast, never what is certified."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from recon.lower_level.regularizer import HessianMap

#: smallest symbol relative to the largest, so that P stays well conditioned whatever the estimates are
FLOOR = 1e-8


class Preconditioner:
    """P = F^* diag(s) F per image, symmetric positive definite; calling it applies P^{-1}.

    Parameters
    ----------
    symbol
        s, ``(batch, height, width)``, or 1 in place of the batch, on the grid of ``torch.fft.fft2``; floored at a small
        positive number.
    complex_pairs
        see :class:`recon.operators.symbol.NormalSymbol`.
    """

    def __init__(self, symbol: Tensor, complex_pairs: bool = False) -> None:
        top = symbol.flatten(1).amax(1)[:, None, None]
        self.symbol = torch.where(top > 0, torch.maximum(symbol, FLOOR * top), 1.0)  # of zero, the identity
        self.complex_pairs = complex_pairs

    def __call__(self, v: Tensor) -> Tensor:
        """P^{-1} v, of the shape of v."""
        symbol = self.symbol.to(v)
        if self.complex_pairs:
            z = torch.fft.ifft2(torch.fft.fft2(_to_complex(v)) / symbol)
            return torch.stack((z.real, z.imag), dim=1)
        half = symbol[:, None, :, : v.shape[-1] // 2 + 1]
        return torch.fft.irfft2(torch.fft.rfft2(v) / half, s=v.shape[-2:])

    def select(self, index: Tensor) -> Preconditioner:
        """That of the images ``index`` alone."""
        if len(self.symbol) == 1:
            return self
        part = copy.copy(self)
        part.symbol = self.symbol[index]
        return part


def hessian_symbol(hessian: HessianMap, x: Tensor, complex_pairs: bool) -> Tensor:
    """The diagonal of F H F^*, about, ``(batch, height, width)``: of the circulant matrix nearest to H.

    T. Chan's optimal circulant preconditioner, from one product with a vector v of random signs: conj(Fv) F(Hv) has
    the diagonal as its mean, and is averaged over neighbouring frequencies. v is always the same, so
    that results do not depend on the order of calls.
    """
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (1, *x.shape[1:]), generator=generator) * 2 - 1
    v = signs.to(x).expand_as(x).contiguous()
    hv = hessian(v)
    if complex_pairs:
        v, hv = _to_complex(v)[:, None], _to_complex(hv)[:, None]
    spectrum, image = torch.fft.fft2(v), torch.fft.fft2(hv)
    products = (spectrum.conj() * image).real.sum(1)
    return (_smoothed(products) / _smoothed(spectrum.abs().square().sum(1))).clamp_min(0.0)


def _smoothed(a: Tensor) -> Tensor:
    """Means over windows of about a twentieth of the periodic frequencies along each axis."""
    rows, cols = (min(max(1, n // 40), (n - 1) // 2) for n in a.shape[-2:])
    padded = F.pad(a[:, None], (cols, cols, rows, rows), mode="circular")
    return F.avg_pool2d(padded, (2 * rows + 1, 2 * cols + 1), stride=1)[:, 0]


def _to_complex(v: Tensor) -> Tensor:
    return torch.complex(v[:, 0], v[:, 1])
