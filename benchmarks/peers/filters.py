"""sum_k C_k^T psi'(C_k x) of Fields of Experts, psi' = u / sqrt(u^2 + nu^2): one gradient, as others compute it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.peers.turns import AbsentError, Array, Distance, Problem

if TYPE_CHECKING:
    from torch import Tensor

WIDTH = 0.05


def reference(x: Array, kernels: Array) -> Array:
    """In float64, by one shifted copy for every entry of a filter."""
    rows, cols = kernels.shape[1:]
    x = x.astype(np.float64)
    height, width = x.shape[-2] - rows + 1, x.shape[-1] - cols + 1
    found = np.zeros_like(x)
    for kernel in kernels.astype(np.float64):
        u = np.zeros((*x.shape[:-2], height, width))
        for (i, j), weight in np.ndenumerate(kernel):
            u += weight * x[..., i : i + height, j : j + width]
        u /= np.sqrt(u * u + WIDTH**2)
        for (i, j), weight in np.ndenumerate(kernel):
            found[..., i : i + height, j : j + width] += weight * u
    return found


def _tensors(problem: Problem) -> tuple[Tensor, Tensor]:
    import torch

    x, kernels = torch.from_numpy(problem["x"]), torch.from_numpy(problem["kernels"])
    return x.reshape(-1, 1, *x.shape[-2:]), kernels[:, None]


def _pair(x: Tensor, kernels: Tensor) -> Tensor:
    import torch
    import torch.nn.functional as F

    u = F.conv2d(x, kernels)
    return F.conv_transpose2d(u / torch.sqrt(u * u + WIDTH**2), kernels)


def conv2d_pair(problem: Problem, goal: float, distance: Distance) -> Callable[[], Array]:
    """``conv2d``, the profile, ``conv_transpose2d``."""
    x, kernels = _tensors(problem)
    return lambda: np.asarray(_pair(x, kernels)).reshape(problem["x"].shape)


def compiled_pair(problem: Problem, goal: float, distance: Distance) -> Callable[[], Array]:
    """The same through ``torch.compile``."""
    import torch

    x, kernels = _tensors(problem)
    function = torch.compile(_pair)
    try:
        function(x, kernels)
    except Exception as error:  # no compiler, or none that torch can use: this says which
        raise AbsentError(f"torch.compile: {str(error).splitlines()[0]}") from error
    return lambda: np.asarray(function(x, kernels)).reshape(problem["x"].shape)


def two_products(problem: Problem, goal: float, distance: Distance) -> Callable[[], Array]:
    """Only the two matrix products, of patches that are there already: what no program of this kind undercuts.

    Its result is no gradient.
    """
    import torch

    x, kernels = _tensors(problem)
    size = kernels.shape[-2:]
    windows = x[:, 0].unfold(1, size[0], 1).unfold(2, size[1], 1)
    columns = windows.permute(0, 3, 4, 1, 2).reshape(len(x), size[0] * size[1], -1).contiguous()
    analysis = kernels.flatten(1)
    synthesis = analysis.t().contiguous()
    u, back = analysis @ columns, torch.empty_like(columns)

    def run() -> Array:
        torch.matmul(analysis, columns, out=u)
        torch.matmul(synthesis, u, out=back)
        return np.full(problem["x"].shape, np.nan)

    return run


def recon(problem: Problem, goal: float, distance: Distance) -> Callable[[], Array]:
    """``FieldsOfExperts.value_and_grad`` with these filters."""
    import torch

    from models import FieldsOfExperts, InitialFilters

    x, kernels = _tensors(problem)
    size = kernels.shape[-1]
    initial = InitialFilters("normal")
    regularizer = FieldsOfExperts(
        len(kernels), size, log_weight=0.0, log_width=float(np.log(WIDTH)), initial_filters=initial
    )
    with torch.no_grad():
        regularizer.weight.copy_(kernels[:, 0])
    regularizer.to(x).requires_grad_(False)
    return lambda: np.asarray(regularizer.value_and_grad(x)[1]).reshape(problem["x"].shape)
