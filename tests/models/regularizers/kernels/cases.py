"""Regularizers of all profiles that the compiled kernels have, and everything that is computed of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from models.regularizers.convex_ridge import ConvexRidge, WeaklyConvexRidge
from models.regularizers.fields_of_experts import FieldsOfExperts
from models.regularizers.initial import InitialFilters
from models.regularizers.multivariate import MultivariateFieldsOfExperts
from models.regularizers.ridge import RidgeRegularizer

Maker = Callable[[int, int, InitialFilters], RidgeRegularizer]


def experts(potential: str, weak_convexity: float = 0.0) -> Maker:
    return lambda filters, size, initial: FieldsOfExperts(
        filters, size, potential, 0.0, 0.0, -1.0, 0.0, weak_convexity, initial
    )


def multivariate(weak_convexity: float = 0.0) -> Maker:
    """With the next larger number of filters that are groups of four."""
    return lambda filters, size, initial: MultivariateFieldsOfExperts(
        4 * -(-filters // 4),
        size,
        "soft_maximum",
        0.0,
        0.0,
        -1.0,
        0.0,
        weak_convexity,
        replace(initial, kind="normal", seed=1),  # of which there may be more than cosines
    )


def convex(knots: int) -> Maker:
    return lambda filters, size, initial: ConvexRidge(filters, size, knots, 0.1, -1.0, -1.0, initial)


MAKERS: dict[str, Maker] = {
    "smoothed_l1": experts("smoothed_l1"),
    "log_cosh": experts("log_cosh"),
    "student_t": experts("student_t"),
    "weakly convex smoothed_l1": experts("smoothed_l1", 0.6),
    "weakly convex log_cosh": experts("log_cosh", 0.6),
    "soft_maximum": multivariate(),
    "weakly convex soft_maximum": multivariate(0.6),
    "splines in registers": convex(21),
    "splines in memory": convex(40),
    "weakly convex splines": lambda k, s, initial: WeaklyConvexRidge(k, s, 9, 0.2, -1.0, -1.0, 0.9, initial),
}


def make(name: str, filters: int, size: int, dtype: torch.dtype, channels: int = 1) -> RidgeRegularizer:
    """A regularizer whose profiles all differ, with as many of the filters as there are cosines."""
    initial = InitialFilters(in_channels=channels)
    regularizer = MAKERS[name](min(filters, size**2 - 1), size, initial).to(dtype)
    generator = torch.Generator().manual_seed(filters + size)
    with torch.no_grad():
        for parameter in regularizer.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.3 * noise.to(dtype))
    return regularizer


def everything(regularizer: RidgeRegularizer, x: Tensor, v: Tensor) -> dict[str, Tensor]:
    """Values and derivatives at x, products with v."""
    value, grad = regularizer.value_and_grad(x)
    found = {"value": value, "gradient": grad, "Hessian": regularizer.hessian(x)(v)}
    found["maximum"] = regularizer.filtered_maximum(v)
    names = [name for name, _ in regularizer.named_parameters()]
    return found | dict(zip(names, regularizer.parameter_vjp(x, v), strict=True))
