"""A regularizer that counts its evaluations."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from models.regularizers.total_variation import TotalVariation
from recon.lower_level import HessianMap


class CountingTV(TotalVariation):
    """Total variation that counts gradients and Hessian-vector products, image by image."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.count = 0

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.count += len(x)
        return super().value_and_grad(x)

    def hessian(self, x: Tensor) -> HessianMap:
        inner = super().hessian(x)

        def apply(v: Tensor, kept: Tensor | None) -> Tensor:
            self.count += len(v)
            return (inner if kept is None else inner.select(kept))(v)

        return HessianMap(apply)
