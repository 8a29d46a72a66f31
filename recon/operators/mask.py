"""Inpainting: keep the pixels of a mask."""

from __future__ import annotations

import torch
from torch import Tensor

from recon.operators.linear import LinearOperator, kind_of


class Mask(LinearOperator):
    """``(A x)_p = x_p`` where the mask is true, 0 elsewhere. An orthogonal projection, hence ``A^T = A``.

    Norm 1 (0 if nothing is kept); lower bound 1 if everything is kept, otherwise 0: the removed pixels are its kernel.
    Removed values are never read, so they may be NaN.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        """Create the operator.

        Parameters
        ----------
        mask
            boolean tensor of the shape of one image, e.g. ``(1, height, width)``.

        Raises
        ------
        ValueError
            if the mask is not a boolean tensor with at least one axis.
        """
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.ndim == 0:
            raise ValueError(f"the mask must be a boolean tensor with the shape of one image, got {kind_of(mask)}")
        shape = tuple(mask.shape)
        super().__init__(shape, shape, norm_bound=float(mask.any()), lower_bound=float(mask.all()))
        # Not in the state dict: the mask belongs to the problem, not to what is learned.
        self.register_buffer("mask", mask.clone(), persistent=False)

    def _forward(self, x: Tensor) -> Tensor:
        return x.masked_fill(~self.mask.to(x.device), 0.0)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._forward(y)
