"""The profiles of the compiled kernels, to a few units in the last place of what extended precision says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.regularizers.convex_ridge import ConvexRidge
from models.regularizers.kernels import Bank, Profiles, library

Extended = NDArray[np.longdouble]
Triple = tuple[Extended, Extended, Extended]


def smoothed(u: Extended, nu: np.longdouble) -> Triple:
    root = np.sqrt(u * u + nu * nu)
    return u * u / (root + nu), u / root, nu * nu / root**3


def log_cosh(u: Extended, nu: np.longdouble) -> Triple:
    t = np.abs(u / nu)
    decay = np.expm1(-2 * t)
    small = np.log1p(2 * np.sinh(np.minimum(t, 1) / 2) ** 2)
    value = nu * np.where(t < 1, small, t + np.log1p(decay / 2))
    return value, np.tanh(u / nu), 4 * (1 + decay) / (2 + decay) ** 2 / nu


def student(u: Extended, nu: np.longdouble) -> Triple:
    q = (u / nu) ** 2
    return nu / 2 * np.log1p(q), u / nu / (1 + q), (1 - q) / (nu * (1 + q) ** 2)


POTENTIALS: dict[str, Callable[[Extended, np.longdouble], Triple]] = {
    "smoothed_l1": smoothed,
    "log_cosh": log_cosh,
    "student_t": student,
}


def evaluate(profiles: Profiles, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """psi(u), psi'(u) and psi''(u), by a filter of one pixel on images of 2x2 pixels."""
    kernel = torch.zeros(1, 2, 2, dtype=u.dtype)
    kernel[0, 0, 0] = 1
    level = library.level()
    assert level is not None
    bank, x, v = Bank(kernel, profiles, level), torch.zeros(len(u), 2, 2, dtype=u.dtype), torch.zeros(len(u), 2, 2)
    x[:, 0, 0], v[:, 0, 0] = u, 1
    value, grad = bank.value_and_grad(x)
    return value, grad[:, 0, 0], bank.product(v.to(u.dtype), bank.curvature(x), None)[:, 0, 0]


def points(dtype: torch.dtype) -> Tensor:
    size = torch.logspace(-12, 6, 1501, dtype=torch.float64)
    near = torch.linspace(0.05, 3, 1001, dtype=torch.float64)
    return torch.cat([-size, torch.zeros(1), size, near, -near]).to(dtype)


@pytest.mark.parametrize("name", POTENTIALS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [0.03, 1.0, 700.0])
def test_potentials(level: str, name: str, dtype: torch.dtype, width: float) -> None:
    u, nu = points(dtype), torch.tensor([[width]], dtype=dtype)
    found = evaluate(Profiles(name, (torch.ones_like(nu), nu)), u)
    exact = POTENTIALS[name](u.numpy().astype(np.longdouble), np.longdouble(nu.item()))
    eps = torch.finfo(dtype).eps
    # psi'' of log cosh and of Student's t is a small difference of numbers of size 1/nu far out, and near its zeros
    floors = (0.0, 0.0, 0.0 if name == "smoothed_l1" else 1 / width)
    for what, mine, right, floor in zip(("value", "slope", "curvature"), found, exact, floors, strict=True):
        error = np.abs(mine.double().numpy() - right)
        bound = 6 * eps * np.maximum(np.abs(right), floor) + torch.finfo(dtype).tiny
        worst = int(np.argmax(error / bound))
        assert (error <= bound).all(), (what, float(u[worst]), float(mine[worst]), float(right[worst]))


def together(profiles: Profiles, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """psi(u), its gradient and its Hessian times v, of four responses: the pixels of images of 2x2 pixels."""
    level = library.level()
    assert level is not None
    bank, x = Bank(torch.eye(4, dtype=u.dtype).view(4, 2, 2), profiles, level), u.T.reshape(-1, 2, 2).contiguous()
    value, grad = bank.value_and_grad(x)
    product = bank.product(v.T.reshape(-1, 2, 2).contiguous(), bank.curvature(x), None)
    return value, grad.flatten(1).T, product.flatten(1).T


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [0.03, 1.0, 700.0])
def test_soft_maximum(level: str, dtype: torch.dtype, width: float) -> None:
    size = torch.logspace(-9, 5, 2001, dtype=torch.float64)
    u = torch.randn(4, 2001, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * size
    u[1, ::2] = u[0, ::2] * 1.01
    u[2:, ::3] = 0
    u, v, nu = u.to(dtype), torch.tensor([[1.0, -0.5, 0.3, 2.0]]).T.expand_as(u).to(dtype), torch.tensor([[width]])
    nu = nu.to(dtype)
    found = together(Profiles("soft_maximum", (torch.ones_like(nu), nu)), u, v)
    t, wide = u.numpy().astype(np.longdouble) / np.longdouble(nu.item()), np.longdouble(nu.item())
    far, top = np.abs(t), np.abs(t).max(0)
    up, down = np.exp(far - top), np.exp(-far - top)
    total = (up + down).sum(0)
    small = np.log1p(2 * (np.sinh(np.minimum(far, 1) / 2) ** 2).mean(0))
    value = wide * np.where(top < 1, small, top + np.log(total / 8))
    slope = -np.sign(t) * up * np.expm1(-2 * far) / total
    along = v.numpy().astype(np.longdouble)
    product = ((up + down) / total * along - slope * (slope * along).sum(0)) / wide
    eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).tiny
    sizes = (np.abs(value), np.maximum(np.abs(slope), np.abs(t) / 2), 4 / wide)
    for what, mine, right, scale in zip(
        ("value", "slope", "product"), found, (value, slope, product), sizes, strict=True
    ):
        error = np.abs(mine.double().numpy() - right) / (eps * scale + tiny)
        assert float(error.max()) <= 10, (what, float(error.max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("knots", [2, 3, 21, 32, 50])
def test_splines(level: str, dtype: torch.dtype, knots: int) -> None:
    """psi'' interpolates the knots, psi' and psi are its integrals, and behind the last knot psi grows linearly."""
    ridge = ConvexRidge(1, 2, knots=knots, spacing=0.25, log_weight=0.0, log_width=0.0).to(dtype)
    with torch.no_grad():
        ridge.curvatures.add_(torch.randn(1, knots))
    tables = tuple(ridge.current()[1:])
    places = torch.cat([torch.linspace(-1.3, 1.3, 4001) * 0.25 * knots, 0.25 * torch.arange(knots + 2), torch.zeros(1)])
    u = places.to(dtype)
    found = evaluate(Profiles("spline", tables, 0.25), u)
    d, slopes, values = (t[0].double() for t in tables)
    position = (u.double().abs() / 0.25).clamp(max=knots)
    index = position.floor().clamp(max=knots - 1).long()
    f, beyond = position - index, u.double().abs() - 0.25 * position
    change = d[index + 1] - d[index]
    slope = slopes[index] + 0.25 * f * (d[index] + change * f / 2)
    value = values[index] + 0.25 * f * (slopes[index] + 0.25 * f * (d[index] / 2 + change * f / 6)) + beyond * slope
    for mine, right in zip(found, (value, slope * u.sign(), d[index] + change * f), strict=True):
        bound = 8 * knots * torch.finfo(dtype).eps * float(right.abs().max())
        assert float((mine.double() - right).abs().max()) <= bound
