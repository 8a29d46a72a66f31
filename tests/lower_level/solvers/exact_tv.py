"""Dense references of exact total variation, which share nothing with its solver."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from recon.lower_level import TotalVariationProblem
from recon.operators import FiniteDifferences


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(height: int, width: int) -> np.ndarray:
    """D of one channel as a matrix, columns of both directions one below the other."""
    operator = FiniteDifferences((1, height, width))
    units = torch.eye(height * width, dtype=torch.float64).view(-1, 1, height, width)
    return operator(units).flatten(1).T.numpy()


def reference(problem: TotalVariationProblem, index: int, steps: int = 4000) -> tuple[np.ndarray, float]:
    """The minimizer in the norm of W by projected gradients on the dual, channel by channel, and a bound of its error.

    Plain FISTA with dense matrices, and the gap from its definition: nothing is shared with what is tested.
    """
    parts, square = [], 0.0
    alpha = float(torch.as_tensor(problem.alpha, dtype=torch.float64).expand(len(problem.y))[index])
    whole = torch.ones_like(problem.y) if problem.weights is None else problem.weights.expand(problem.y.shape)
    for y, w in zip(problem.y[index].double().numpy(), whole[index].double().numpy(), strict=True):
        matrix, y, w = dense(*y.shape), y.ravel(), w.ravel()
        lipschitz = 8 * alpha / w.min()
        p = np.zeros(len(matrix))
        q, t = p, 1.0

        def primal(p: np.ndarray, y: np.ndarray = y, w: np.ndarray = w, matrix: np.ndarray = matrix) -> np.ndarray:
            return np.clip(y - alpha * (matrix.T @ p) / w, problem.low, problem.high)

        for _ in range(steps):
            new = project(q + matrix @ primal(q) / lipschitz, problem.isotropic)
            t, before = (1 + math.sqrt(1 + 4 * t * t)) / 2, t
            p, q = new, new + (before - 1) / t * (new - p)
        x = primal(p)
        square += 2 * alpha * (variation(matrix @ x, problem.isotropic) - (matrix @ x) @ p)
        parts.append(x)
    shape = problem.y[index].shape
    return np.stack(parts).reshape(shape), math.sqrt(max(square, 0.0) + 1e-24)


def project(p: np.ndarray, isotropic: bool) -> np.ndarray:
    if not isotropic:
        return np.clip(p, -1, 1)
    pairs = p.reshape(2, -1)
    return (pairs / np.maximum(1, np.sqrt((pairs**2).sum(0)))).ravel()


def variation(z: np.ndarray, isotropic: bool) -> float:
    return float(np.sqrt((z.reshape(2, -1) ** 2).sum(0)).sum() if isotropic else abs(z).sum())


def objective(problem: TotalVariationProblem, x: Tensor) -> Tensor:
    """F, one channel after the other."""
    x, y = x.double(), problem.y.double()
    w = torch.ones_like(y) if problem.weights is None else problem.weights.double()
    total = 0.5 * (w * (x - y).square()).flatten(1).sum(1)
    alpha = torch.as_tensor(problem.alpha, dtype=torch.float64)
    for channel in range(x.shape[1]):
        z = FiniteDifferences((1, *x.shape[2:]))(x[:, channel : channel + 1])
        lengths = z.norm(dim=1) if problem.isotropic else z.abs().sum(1)
        total = total + alpha * lengths.flatten(1).sum(1)
    return total
