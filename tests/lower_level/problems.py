"""Small problems with dense reference solutions, for the tests of regularizers, solvers and certificates."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from models.regularizers.convex_ridge import ConvexRidge, WeaklyConvexRidge
from models.regularizers.fields_of_experts import FieldsOfExperts
from models.regularizers.multivariate import MultivariateFieldsOfExperts
from models.regularizers.total_variation import TotalVariation
from recon.lower_level import Energy, Regularizer

#: regularizers of a few parameters whose non-linearities matter for images with values of order one
REGULARIZERS: dict[str, Callable[[], Regularizer]] = {
    "foe_l1": lambda: FieldsOfExperts(3, 3, "smoothed_l1", log_weight=-1, log_width=-1.5),
    "foe_log_cosh": lambda: FieldsOfExperts(
        3, 3, "log_cosh", log_weight=-1, log_width=-1.5, smallest_width=0.05, unit_norm=True
    ),
    "foe_student": lambda: FieldsOfExperts(3, 3, "student_t", log_weight=-1, log_width=-1),
    "foe_weak_l1": lambda: FieldsOfExperts(3, 3, "smoothed_l1", log_weight=-1, log_width=-1.5, weak_convexity=0.7),
    "foe_weak_log_cosh": lambda: FieldsOfExperts(3, 3, "log_cosh", log_weight=-1, log_width=-1.5, weak_convexity=0.7),
    "multi_max": lambda: MultivariateFieldsOfExperts(
        8, 3, "soft_maximum", log_weight=-1, log_width=-1.5, smallest_width=0.05, unit_norm=True
    ),
    "multi_norm": lambda: MultivariateFieldsOfExperts(4, 3, "smoothed_norm", log_weight=-1, log_width=-1.5),
    "multi_weak_max": lambda: MultivariateFieldsOfExperts(
        8, 3, "soft_maximum", log_weight=-1, log_width=-2.5, weak_convexity=0.7
    ),
    "multi_weak_norm": lambda: MultivariateFieldsOfExperts(
        8, 3, "smoothed_norm", log_weight=-1, log_width=-1.5, weak_convexity=0.7
    ),
    "crr": lambda: ConvexRidge(3, 3, knots=6, spacing=0.15, log_weight=-0.5, log_width=-1),
    "wcrr": lambda: WeaklyConvexRidge(3, 3, knots=6, spacing=0.15, log_weight=-0.5, log_width=-1, weak_convexity=0.7),
    "tv": lambda: TotalVariation(-1.0, -1.5),
}


def make(name: str, seed: int = 0, scale: float = 0.3, dtype: torch.dtype = torch.float64) -> Regularizer:
    """One of the regularizers above, with normal noise of the given scale on all parameters."""
    return perturb(REGULARIZERS[name]().to(dtype), seed, scale)


def perturb(regularizer: Regularizer, seed: int, scale: float) -> Regularizer:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in regularizer.parameters():
            p += scale * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
    return regularizer


def normal(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Seeded normal noise."""
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def smooth_image(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Piecewise constant images with values of order one, and a little texture."""
    coarse = normal(*shape[:2], -(-shape[2] // 3), -(-shape[3] // 3), seed=seed, scale=0.5)
    image = coarse.repeat_interleave(3, 2).repeat_interleave(3, 3)[..., : shape[2], : shape[3]]
    return (image + normal(*shape, seed=seed + 1, scale=0.05)).to(dtype)


def norms(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def regularizer_hessians(regularizer: Regularizer, x: Tensor) -> Tensor:
    """The Hessians at the images x, dense: ``(batch, n, n)``."""
    batch, n = len(x), x[0].numel()
    basis = torch.eye(n, dtype=x.dtype).view(n, *x.shape[1:]).repeat(batch, 1, 1, 1)
    return regularizer.hessian(x.repeat_interleave(n, 0))(basis).view(batch, n, n)


def energy_hessians(energy: Energy, x: Tensor) -> Tensor:
    """The Hessians of the energies at the images x, dense: ``(batch, n, n)``."""
    batch, n = len(x), x[0].numel()
    basis = torch.eye(n, dtype=x.dtype).view(n, *x.shape[1:]).repeat(batch, 1, 1, 1)
    repeated = energy.select(torch.arange(batch).repeat_interleave(n))
    return repeated.hessian(x.repeat_interleave(n, 0))(basis).view(batch, n, n)


def exact_minimizer(energy: Energy, x0: Tensor, tolerance: float = 1e-12) -> Tensor:
    """The minimizers to a certified distance of ``tolerance``, by Newton's method with dense Hessians."""
    x = x0.clone()
    mu = energy.require_strong_convexity()
    value, grad = energy.value_and_grad(x)
    for _ in range(100):
        if float(norms(grad).max()) / mu <= 0.1 * tolerance:
            break
        step = torch.linalg.solve(energy_hessians(energy, x), grad.flatten(1)).view_as(x)
        slope = (step * grad).flatten(1).sum(1)
        factor = torch.ones(len(x), dtype=x.dtype)
        for _ in range(40):
            trial = x - factor.view(-1, 1, 1, 1) * step
            new_value, new_grad = energy.value_and_grad(trial)
            flat = (new_value - value).abs() <= 1e-11 * value.abs()  # then the gradient decides
            bad = torch.where(flat, norms(new_grad) > norms(grad), new_value > value - 1e-4 * factor * slope)
            if not bad.any():
                break
            factor = torch.where(bad, 0.5 * factor, factor)
        if float(norms(grad).max()) / mu <= tolerance and not bool((norms(new_grad) < norms(grad)).any()):
            break
        better = (~bad).view(-1, 1, 1, 1)
        x, grad = torch.where(better, trial, x), torch.where(better, new_grad, grad)
        value = torch.where(bad, value, new_value)
    assert float(norms(grad).max()) / mu <= tolerance, "the reference solution is not accurate"
    return x


def gauss_legendre(nodes: int) -> tuple[list[float], list[float]]:
    """Nodes and weights on [0, 1] (Golub and Welsch)."""
    k = torch.arange(1, nodes, dtype=torch.float64)
    beta = k / torch.sqrt(4 * k * k - 1)
    t, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    return ((1 + t) / 2).tolist(), vectors[0].square().tolist()


class Quadratic(Regularizer):
    r"""R(x) = 1/2 <x, H x> - <P theta, x>: the minimizer of 1/2||x - y||^2 + R is (1 + H)^{-1} (y + P theta).

    Only ``forward`` and the two moduli are given: everything else is the default of the interface.
    """

    def __init__(
        self, shape: tuple[int, ...] = (1, 3, 4), params: int = 3, seed: int = 0, smallest: float = 0.0
    ) -> None:
        super().__init__()
        n = math.prod(shape)
        q, _ = torch.linalg.qr(normal(n, n, seed=seed))
        self.h = (q * torch.linspace(smallest, 3.0, n, dtype=torch.float64)) @ q.T
        self.p = normal(n, params, seed=seed + 1, scale=0.5)
        self.theta = torch.nn.Parameter(torch.zeros(params, dtype=torch.float64))
        self.bounds = (smallest, 3.0)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return 0.5 * (flat * (flat @ self.h)).sum(1) - flat @ (self.p @ self.theta)

    def convexity(self) -> float:
        return self.bounds[0]

    def smoothness(self) -> float:
        return self.bounds[1]

    def solve(self, y: Tensor, theta: Tensor | None = None) -> Tensor:
        """The exact minimizer."""
        theta = self.theta.detach() if theta is None else theta
        a = torch.eye(len(self.h), dtype=torch.float64) + self.h
        return torch.linalg.solve(a, (y.flatten(1) + self.p @ theta).T).T.view_as(y)
