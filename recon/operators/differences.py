"""Finite differences: the discrete gradient of an image."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from recon.errors import one_of
from recon.operators.linear import LinearOperator, Shape


class FiniteDifferences(LinearOperator):
    """Forward differences ``(b, 1, H, W) -> (b, 2, H, W)``, per pixel (no division by a pixel size).

        (D x)[0, i, j] = x[i+1, j] - x[i, j]      (down the rows)
        (D x)[1, i, j] = x[i, j+1] - x[i, j]      (along the columns)

    ``boundary="neumann"``: the differences across the last row and column are zero. ``"periodic"``: indices wrap.

    The norm is exact. In one dimension with n pixels ``D^T D`` has the eigenvalues ``4 sin^2(pi k / (2n))``, k < n
    (Neumann, cosine basis) or ``4 sin^2(pi k / n)`` (periodic, Fourier basis); in two dimensions the eigenvalues of
    rows and columns add up, so ``||D||^2`` is the sum of the two largest, at most 8. Constants are in the kernel: the
    lower bound is 0.
    """

    def __init__(self, domain_shape: Shape, boundary: Literal["neumann", "periodic"] = "neumann") -> None:
        """Create the operator.

        Parameters
        ----------
        domain_shape
            ``(1, height, width)``.
        boundary
            "neumann" or "periodic".

        Raises
        ------
        ValueError
            for another shape or boundary.
        """
        if len(domain_shape) != 3 or domain_shape[0] != 1 or any(n < 1 for n in domain_shape):
            raise ValueError(f"expected a positive domain_shape (1, height, width), got {tuple(domain_shape)}")
        one_of(("neumann", "periodic"), boundary=boundary)
        _, height, width = domain_shape
        squared_norm = _largest_eigenvalue(height, boundary) + _largest_eigenvalue(width, boundary)
        # 1 + 1e-14 covers the rounding of this formula itself.
        super().__init__(domain_shape, (2, height, width), norm_bound=math.sqrt(squared_norm) * (1.0 + 1e-14))
        self.boundary = boundary

    def _forward(self, x: Tensor) -> Tensor:
        if self.boundary == "periodic":
            return torch.cat([x.roll(-1, dims) - x for dims in (-2, -1)], dim=1)
        down = pad(x[..., 1:, :] - x[..., :-1, :], (0, 0, 0, 1))
        right = pad(x[..., :, 1:] - x[..., :, :-1], (0, 1))
        return torch.cat([down, right], dim=1)

    def _adjoint(self, y: Tensor) -> Tensor:
        down, right = y[:, :1], y[:, 1:]
        if self.boundary == "periodic":
            return (down.roll(1, -2) - down) + (right.roll(1, -1) - right)
        # D^T p [i] = p[i-1] - p[i], where p[-1] = 0 and the last entry of p does not count.
        down, right = down[..., :-1, :], right[..., :, :-1]
        return (pad(down, (0, 0, 1, 0)) - pad(down, (0, 0, 0, 1))) + (pad(right, (1, 0)) - pad(right, (0, 1)))


def _largest_eigenvalue(n: int, boundary: str) -> float:
    """Largest eigenvalue of ``D^T D`` in one dimension with ``n`` pixels."""
    if n == 1:
        return 0.0
    if boundary == "periodic" and n % 2 == 0:
        return 4.0
    # Neumann: k = n - 1; periodic with odd n: k = (n - 1) / 2. Both give 4 sin^2(pi (n - 1) / (2n)).
    return 4.0 * math.sin(math.pi * (n - 1) / (2 * n)) ** 2
