"""Functionals of saddle-point problems: proximal maps, derivatives, conjugates, and their constants."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from recon.lower_level import (
    Blocks,
    FairNorm,
    Functional,
    HuberNorm,
    HuberReLU,
    NotStronglyConvexError,
    SmoothedNorm,
    Squared,
    Vanishing,
)
from tests.lower_level.problems import normal

WEIGHT = torch.tensor([0.5, 1.3], dtype=torch.float64).view(1, 2, 1)
#: of 12 components, x ~ 1
MAKERS: dict[str, Callable[[], Functional]] = {
    "squared": lambda: Squared(12, normal(12).abs() + 0.1, normal(3, 12, seed=1)),
    "nonnegative": lambda: Squared(12, 0.7, normal(3, 12, seed=1), nonnegative=True),
    "norm": lambda: HuberNorm((3, 2, 2), WEIGHT),
    "huber": lambda: HuberNorm((3, 2, 2), WEIGHT, 0.6),
    "huber_last": lambda: HuberNorm((2, 2, 3), 0.8, 0.6, axis=-1, mu=0.4),
    "absolute": lambda: HuberNorm((12,), 0.8, axis=None, mu=0.4),
    "smoothed": lambda: SmoothedNorm((3, 2, 2), WEIGHT, 0.2),
    "smoothed_mu": lambda: SmoothedNorm((12,), 0.9, 0.3, axis=None, mu=0.5),
    "fair": lambda: FairNorm((3, 2, 2), WEIGHT, 0.2),
    "fair_mu": lambda: FairNorm((12,), 0.9, 0.3, axis=None, mu=0.5),
    "relu": lambda: HuberReLU((3, 2, 2), WEIGHT),
    "huber_relu": lambda: HuberReLU((3, 2, 2), WEIGHT, 0.7),
    "blocks": lambda: Blocks([Squared(5, 0.3), SmoothedNorm((2, 2), 0.8, 0.3), HuberReLU((3,), 1.1, 0.4)]),
}
SMOOTH = ("squared", "huber", "huber_last", "smoothed", "smoothed_mu", "fair", "fair_mu", "huber_relu", "blocks")
TWICE = ("squared", "smoothed", "smoothed_mu", "fair", "fair_mu")


def points(seed: int = 5, scale: float = 1.0) -> Tensor:
    return normal(3, 12, seed=seed, scale=scale)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("step", ["number", "image", "component"])
def test_prox_minimizes(name: str, step: str) -> None:
    """No other point has a smaller value of phi(x) + |x - v|^2 / (2t): tried around and along the segment to others."""
    phi, v = MAKERS[name](), points()
    t: Tensor | float = 0.8
    if step == "image":
        t = torch.tensor([[0.3], [0.8], [3.0]], dtype=torch.float64)
    elif step == "component" and name not in ("norm", "huber", "huber_last", "smoothed", "fair", "blocks"):
        t = normal(1, 12, seed=8).abs() + 0.2
    elif step == "component":
        t = torch.full((1, 12), 0.6, dtype=torch.float64)

    def objective(x: Tensor) -> Tensor:
        return phi.value(x) + ((x - v).square() / (2 * t)).sum(1)

    x = phi.prox(v, t)
    best = objective(x)
    assert bool(torch.isfinite(best).all())
    for seed in range(60):
        other = phi.prox(points(100 + seed), 0.1)  # in the domain
        for share in (1e-4, 1e-2, 0.3):
            assert bool((objective(x + share * (other - x)) >= best - 1e-12).all())


@pytest.mark.parametrize("name", SMOOTH)
def test_gradient_and_prox_belong_together(name: str) -> None:
    phi, v = MAKERS[name](), points()
    point = v.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(phi.value(point).sum(), point)
    torch.testing.assert_close(phi.grad(v), grad)
    x = phi.prox(v, 0.7)
    torch.testing.assert_close(x + 0.7 * phi.grad(x), v, rtol=0, atol=1e-12)
    difference = phi.grad(v) - phi.grad(-v)
    inner = (difference * (2 * v)).sum(1)
    assert bool((inner >= phi.convexity * (2 * v).square().sum(1) - 1e-12).all())
    assert bool((difference.norm(dim=1) <= phi.smoothness * (2 * v).norm(dim=1)).all())


@pytest.mark.parametrize("name", MAKERS)
def test_hessian_and_resolvent_are_derivatives(name: str) -> None:
    """H by differences of the gradient, (I + tH)^{-1} at prox(v) by differences of the proximal map."""
    phi, v, w = MAKERS[name](), points(), normal(3, 12, seed=6)
    x, h = phi.prox(v, 0.7), 1e-6
    slope = (phi.prox(v + h * w, 0.7) - phi.prox(v - h * w, 0.7)) / (2 * h)
    torch.testing.assert_close(phi.hessian(x).resolvent(w, 0.7), slope, rtol=0, atol=1e-7)
    steps = torch.full((1, 12), 0.7, dtype=torch.float64)
    torch.testing.assert_close(phi.hessian(x).resolvent(w, steps), slope, rtol=0, atol=1e-7)
    index = torch.tensor([2, 0])
    torch.testing.assert_close(phi.hessian(x).select(index).resolvent(w[index], 0.7), slope[index], rtol=0, atol=1e-7)
    if name in SMOOTH:
        slope = (phi.grad(x + h * w) - phi.grad(x - h * w)) / (2 * h)
        torch.testing.assert_close(phi.hessian(x)(w), slope, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", [n for n in MAKERS if n != "blocks"])
def test_fenchel_gap_against_the_supremum(name: str) -> None:
    """phi*(p) = sup <x, p> - phi(x), by maximization with many proximal steps, for p a subgradient at another point."""
    phi = MAKERS[name]()
    v = points(9)
    best = phi.prox(v, 0.5)
    p = (v - best) / 0.5  # a subgradient at best: phi*(p) = <best, p> - phi(best)
    x = phi.prox(points(), 0.3)
    expected = phi.value(x) - phi.value(best) - ((x - best) * p).sum(1)
    torch.testing.assert_close(phi.fenchel(x, p), expected, rtol=0, atol=1e-12)
    assert bool((phi.fenchel(best, p).abs() <= 1e-12).all())
    if name in ("norm", "huber", "smoothed", "relu", "huber_relu"):
        assert bool(torch.isinf(phi.fenchel(x, 3 + p.abs())).all())


def test_conjugates_of_the_table_live_where_they_should() -> None:
    """Moreau: prox of f* is a projection onto the ball, or onto the box."""
    v = points(scale=2.0)
    ball = v - 0.5 * MAKERS["norm"]().prox(v / 0.5, 1 / 0.5)
    z, r = v.view(3, 3, 2, 2), v.view(3, 3, 2, 2).norm(dim=1, keepdim=True)
    torch.testing.assert_close(ball.view_as(z), z * (WEIGHT / r).clamp_max(1))
    box = v - 0.5 * MAKERS["relu"]().prox(v / 0.5, 1 / 0.5)
    torch.testing.assert_close(box.view_as(z), torch.minimum(z.clamp_min(0), WEIGHT.expand_as(z)))
    eps = v - 0.5 * MAKERS["huber_relu"]().prox(v / 0.5, 1 / 0.5)
    torch.testing.assert_close(eps.view_as(z), torch.minimum((z / 1.35).clamp_min(0), WEIGHT.expand_as(z)))


@pytest.mark.parametrize("name", TWICE)
def test_constants_of_the_variation_of_the_hessian(name: str) -> None:
    phi = MAKERS[name]()
    reached = 0.0
    for seed in range(30):
        x, e, w = (normal(3, 12, seed=3 * seed + k, scale=0.4) for k in range(3))
        kappa, lipschitz = phi.variation(w)
        change = (phi.hessian(x)(w) - phi.hessian(x - e)(w)).norm(dim=1)
        assert bool((change <= lipschitz * e.norm(dim=1) + 1e-13).all())
        assert bool((lipschitz <= phi.hessian_lipschitz * w.norm(dim=1) + 1e-13).all())
        nodes = [phi.hessian(x - t * e) for t in torch.linspace(0, 1, 401).tolist()]
        bar_w, bar_e = (sum(h(u) for h in nodes[1:-1]) + (nodes[0](u) + nodes[-1](u)) / 2 for u in (w, e))
        middle = ((bar_w / 400 - phi.hessian(x)(w)) * e).sum(1)
        limit = kappa * (bar_e / 400 * e).sum(1)
        assert bool((middle.abs() <= limit + 1e-6).all())
        reached = max(reached, float((change / (lipschitz * e.norm(dim=1)).clamp_min(1e-9)).max()))
    assert reached > (0.03 if name != "squared" else -1)


def test_bounds_of_derivatives_in_the_tensors() -> None:
    """d_t <grad phi(x), w> by autograd, against N and V."""
    for name, count in (("squared", 1), ("smoothed", 2)):
        for seed in range(100):
            weight = (normal(1, 2, 1, seed=seed).abs() + 0.2).requires_grad_(True)
            nu = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
            flat = weight.expand(3, 2, 2)
            phi: Functional = SmoothedNorm((3, 2, 2), weight, nu)
            if name == "squared":
                phi = Squared(12, flat, 0.4, (3, 2, 2))
            x, e, w, u = (normal(2, 12, seed=4 * seed + k, scale=0.3) for k in range(4))
            radius = e.norm(dim=1)
            found = phi.tensors()
            assert len(found) == count
            for tensor, bound in found:
                n, v = (b.detach() for b in bound(x, w, radius))

                def derivative(x: Tensor, w: Tensor, tensor: Tensor = tensor, phi: Functional = phi) -> Tensor:
                    return torch.autograd.grad((phi.grad(x) * w).sum(), tensor, retain_graph=True)[0].detach()

                for i in range(2):
                    size = derivative(x[i : i + 1] + e[i : i + 1], u[i : i + 1]).norm()
                    assert float(size) <= float(n[i] * u[i].norm()) + 1e-12
                    moved = derivative(x[i : i + 1] + e[i : i + 1], w[i : i + 1]) - derivative(
                        x[i : i + 1], w[i : i + 1]
                    )
                    assert float(moved.norm()) <= float(v[i] * radius[i]) + 1e-12


def test_selection_of_images() -> None:
    phi = Blocks([Squared(12, 0.3, normal(3, 12)), Squared(12, 0.3)])
    x, index = normal(3, 24, seed=2), torch.tensor([2, 0])
    torch.testing.assert_close(phi.select(index).grad(x[index]), phi.grad(x)[index])


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"-1 .* not negative"):
        HuberNorm((2,), -1.0)
    with pytest.raises(ValueError, match="eps is -1"):
        HuberNorm((2,), 1.0, -1.0)
    with pytest.raises(ValueError, match="mu is -1"):
        SmoothedNorm((2,), 1.0, 0.1, mu=-1.0)
    with pytest.raises(ValueError, match=r"widths .* positive"):
        SmoothedNorm((2,), 1.0, 0.0)
    with pytest.raises(ValueError, match=r"squared distance .* not negative"):
        Squared(2, -0.1)
    with pytest.raises(NotStronglyConvexError, match="finite"):
        Squared(2, math.inf)
    with pytest.raises(ValueError, match="at least one"):
        Blocks([])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_groups_that_vanish_have_a_finite_hessian(dtype: torch.dtype) -> None:
    """Flat parts of an image: phi''(0) = (weight / nu + mu) I, or (1 / eps + mu) I."""
    x, v = torch.zeros(1, 6, dtype=dtype), torch.ones(1, 6, dtype=dtype)
    for norm, expected in ((SmoothedNorm((2, 3), 0.5, 0.1, mu=1.0), 6.0), (HuberNorm((2, 3), 0.5, 0.1, mu=1.0), 11.0)):
        torch.testing.assert_close(norm.hessian(x)(v), expected * v)


def test_the_constraint_to_zero() -> None:
    """f = indicator of {0}, f* = 0: Moreau gives prox_{sigma f*}(v) = v."""
    f, v = Vanishing(4), normal(2, 4)
    torch.testing.assert_close(v - 0.7 * f.prox(v / 0.7, 1 / 0.7), v)
    assert torch.equal(f.value(torch.tensor([[0.0, 0, 0, 0], [0, 1, 0, 0]])), torch.tensor([0.0, math.inf]).double())


def test_small_gaps_of_smoothed_norms_in_single_precision() -> None:
    """Near the minimizer the gap is far below its terms; a certificate must not be smaller than the truth."""
    phi = SmoothedNorm((2, 300), 0.1, 0.01, axis=0)
    x = 1e-3 * normal(3, 600)
    p = phi.grad(x) * (1 - 1e-4)
    exact = phi.fenchel(x.float().double(), p.float().double())
    torch.testing.assert_close(phi.fenchel(x.float(), p.float()), exact, rtol=1e-2, atol=0)


@pytest.mark.parametrize("name", ["smoothed", "fair"])
def test_the_variation_is_bounded_by_the_symmetric_bregman_distance(name: str) -> None:
    """|<(H - phi''(x)) w, e>| <= kappa <phi'(x) - phi'(x - e), e>, H the mean on the segment from x to x - e."""
    phi, reached = MAKERS[name](), 0.0
    for seed in range(60):
        x, e, w = (normal(3, 12, seed=3 * seed + k, scale=0.4 * 4.0 ** (-(seed % 5))) for k in range(3))
        mean = phi.grad(x) - phi.grad(x - e)  # H e, and H is symmetric
        middle = ((mean - phi.hessian(x)(e)) * w).sum(1).abs()
        limit = phi.variation(w)[0] * (mean * e).sum(1)
        assert bool((middle <= limit + 1e-13).all())
        reached = max(reached, float((middle / limit.clamp_min(1e-12)).max()))
    assert reached > 0.02
