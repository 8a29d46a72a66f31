"""Small saddle-point problems, with parameters in K, g and f, and reference solutions to rounding error."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon.lower_level import (
    PDHG,
    Blocks,
    Functional,
    HuberNorm,
    HuberReLU,
    SaddleMap,
    SaddleModel,
    SaddlePoint,
    SaddleSolution,
    SmoothedNorm,
    Squared,
)
from recon.operators import LinearOperator, stack
from tests.lower_level.problems import normal


class Matrix(LinearOperator):
    """A matrix that is its own parameter."""

    def __init__(self, matrix: Tensor) -> None:
        rows, columns = matrix.shape
        super().__init__((columns,), (rows,), float(torch.linalg.matrix_norm(matrix.detach(), 2)) * (1 + 1e-12))
        self.matrix = matrix

    def _forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T

    def _adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix

    def absolute_sums(self) -> tuple[Tensor, Tensor]:
        absolute = self.matrix.detach().abs()
        return absolute.sum(0), absolute.sum(1)

    def tensors(self) -> list[tuple[Tensor, float]]:
        return [(self.matrix, 1.0)]


class MatrixMap(SaddleMap):
    """K is a matrix, and its own parameter."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(Matrix(matrix))


class Convolution(LinearOperator):
    """K x = (c_k * x)_k within the image, kernels ``(channels, 1, s, s)``; x is flat."""

    def __init__(self, kernels: Tensor, shape: tuple[int, int]) -> None:
        rows, cols = (n - s + 1 for n, s in zip(shape, kernels.shape[2:], strict=True))
        norm = math.sqrt(float(kernels.detach().abs().sum((1, 2, 3)).square().sum()))
        super().__init__((math.prod(shape),), (len(kernels), rows, cols), norm)
        self.kernels, self.shape = kernels, shape

    def _forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x.view(-1, 1, *self.shape), self.kernels)

    def _adjoint(self, y: Tensor) -> Tensor:
        return F.conv_transpose2d(y, self.kernels).flatten(1)

    def tensors(self) -> list[tuple[Tensor, float]]:
        # every entry of a kernel is a shift, of norm at most one, between x and one part of y
        return [(self.kernels, math.sqrt(self.kernels[0].numel()))]


class FilterModel(SaddleModel):
    """Denoising, or 1/2||Ax - y||^2 as a second dual variable, with learned filters, weight, width and data weight."""

    def __init__(
        self, shape: tuple[int, int], smooth: bool = True, matrix: Tensor | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.shape, self.smooth, self.matrix = shape, smooth, matrix
        self.kernels = nn.Parameter(normal(2, 1, 2, 2, seed=seed, scale=0.5))
        self.log_weight = nn.Parameter(normal(1, seed=seed + 1, scale=0.3) - 1.5)
        self.log_width = nn.Parameter(normal(1, seed=seed + 2, scale=0.2) - 1.2)
        self.log_data = nn.Parameter(normal(1, seed=seed + 3, scale=0.2))
        if not smooth:
            self.log_width.requires_grad_(False)

    def saddle_point(self, y: Tensor) -> SaddlePoint:
        centred = self.kernels - self.kernels.mean((2, 3), keepdim=True)
        k: LinearOperator = Convolution(centred, self.shape)
        field = k.range_shape or ()
        weight, width = self.log_weight.exp(), self.log_width.exp()
        f: Functional = SmoothedNorm(field, weight, width)
        if not self.smooth:
            f = HuberNorm(field, weight, 0.3)
        size = math.prod(self.shape)
        g = Squared(size, self.log_data.exp(), y.flatten(1))
        if self.matrix is not None:
            k = stack([k, Matrix(self.matrix)])
            f = Blocks([f, Squared(len(self.matrix), self.log_data.exp(), y.flatten(1))])
            g = Squared(size, 0.1)
        return SaddlePoint(SaddleMap(k), g, f, (1, *self.shape), check=False)


class FieldModel(SaddleModel):
    """min over (u, v) of 1/2||u - y||^2 + smoothed norm of v + mu/2 ||v||^2 + smoothed norm of (Wu - Vv): blocks."""

    def __init__(self, pixels: int, seed: int = 0) -> None:
        super().__init__()
        self.pixels = pixels
        self.matrix = nn.Parameter(normal(6, 2 * pixels, seed=seed, scale=0.4))
        self.log_weights = nn.Parameter(normal(2, seed=seed + 1, scale=0.3) - 1.0)
        self.log_widths = nn.Parameter(normal(2, seed=seed + 2, scale=0.2) - 1.0)

    def saddle_point(self, y: Tensor) -> SaddlePoint:
        n, weights, widths = self.pixels, self.log_weights.exp(), self.log_widths.exp()
        g = Blocks([Squared(n, 1.0, y.flatten(1)), SmoothedNorm((2, n // 2), weights[0], widths[0], mu=0.5)])
        f = SmoothedNorm((2, 3), weights[1], widths[1])
        return SaddlePoint(MatrixMap(self.matrix), g, f, (1, 1, n), check=False)


class ReLUModel(SaddleModel):
    """1/2||x - y||^2 + sum_j a_j max(0, Wx + b x)_j smoothed: a layer of a convex network, f* lives in [0, a]."""

    def __init__(self, pixels: int, seed: int = 0) -> None:
        super().__init__()
        self.pixels = pixels
        self.matrix = nn.Parameter(normal(5, pixels, seed=seed, scale=0.6))
        self.log_a = nn.Parameter(normal(5, seed=seed + 1, scale=0.3) - 0.5)

    def saddle_point(self, y: Tensor) -> SaddlePoint:
        g = Squared(self.pixels, 1.0, y.flatten(1))
        f = HuberReLU((5,), self.log_a.exp(), 0.5)
        return SaddlePoint(MatrixMap(self.matrix), g, f, (1, 1, self.pixels), check=False)


def solved(saddle: SaddlePoint, accuracy: float = 1e-11) -> SaddleSolution:
    """The saddle point, to ``accuracy``."""
    g, operator = saddle.g, saddle.operator
    batch = next((len(t.centre) for t in parts(g) + parts(saddle.f) if isinstance(t.centre, Tensor)), 1)  # type: ignore[attr-defined]
    x = torch.zeros(batch, operator.domain_size, dtype=torch.float64)
    y = torch.zeros(batch, operator.range_size, dtype=torch.float64)
    return PDHG(1_000_000)(saddle, x, y, accuracy)


def parts(functional: Functional) -> list[Functional]:
    """The squared distances in a functional."""
    if isinstance(functional, Blocks):
        return [q for p in functional.parts for q in parts(p)]
    return [functional] if isinstance(functional, Squared) else []
