"""Functionals of convex networks: projections against brute force, conjugates and proximal maps against definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from recon.lower_level.saddle.epigraph import Epigraph, ReLUSum, Shifted, _leaky, project_epigraph
from recon.lower_level.saddle.functionals import Functional
from tests.lower_level.problems import normal

CASES = [(0.0, 0.0), (0.2, 0.0), (0.9, 0.0), (1.0, 0.0), (0.0, 0.5), (0.2, 0.05), (0.2, 2.0), (0.7, 1.0)]


@pytest.mark.parametrize(("slope", "width"), CASES)
def test_projection_against_brute_force(slope: float, width: float) -> None:
    """Against the nearest of many points of the graph, for points on all sides of all its pieces."""
    u, z = 2.5 * normal(1, 100, seed=1), 2.5 * normal(1, 100, seed=2)
    a, b = project_epigraph(u, z, slope, width)
    assert bool((b >= _leaky(a, slope, width) - 1e-14).all())
    t = torch.linspace(-12, 12, 24_001, dtype=torch.float64)[:, None]
    graph = _leaky(t, slope, width)
    best = ((t - u).square() + (graph - z).square()).amin(0)
    inside = (z >= _leaky(u, slope, width))[0]
    mine = ((a - u).square() + (b - z).square())[0]
    assert 10 < int(inside.sum()) < 90
    assert bool((mine[inside] == 0).all())
    # the grid misses the nearest point by at most half of its spacing, 1e-3
    assert bool((mine <= best + 1e-12)[~inside].all())
    assert float((best - mine)[~inside].max()) <= 1e-2
    again = project_epigraph(a, b, slope, width)
    torch.testing.assert_close(again[0], a, rtol=0, atol=1e-12)
    torch.testing.assert_close(again[1], b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", [0.0, 1e-4, 0.3])
def test_projection_of_extreme_points(width: float) -> None:
    """Far away and close to the joints; single precision."""
    values = torch.tensor([-1e6, -1.0, -1e-9, 0.0, 1e-9, 1e-4, 0.3, 1.0, 1e6], dtype=torch.float64)
    u, z = (g.reshape(1, -1) for g in torch.meshgrid(values, values, indexing="ij"))
    a, b = project_epigraph(u, z, 0.2, width)
    # the normal cone: for every point of the epigraph <v - Pv, q - Pv> <= 0
    for t in values:
        other = _leaky(t, 0.2, width)
        inner = (u - a) * (t - a) + (z - b) * (other - b)
        assert bool((inner <= 1e-9 * (1 + u.abs() + z.abs()) ** 2).all())
    single = project_epigraph(u.float(), z.float(), 0.2, width)
    torch.testing.assert_close(single[0].double(), a, rtol=1e-5, atol=1e-5)
    assert all(t.isfinite().all() for t in single)


def functionals() -> dict[str, Functional]:
    weight = 0.2 + normal(3, 1, 1, seed=7).abs()
    bias = normal(3, 1, 1, seed=8)
    return {
        "epigraph": Epigraph(12, 0.2, 0.3, 0.4),
        "leaky": Epigraph(12, 0.2, 0.0, 0.4),
        "relu": ReLUSum((3, 2, 4), weight, 0.5),
        "kink": ReLUSum((3, 2, 4), weight, 0.0),
        "shifted": Shifted(ReLUSum((3, 2, 4), weight, 0.5), bias, (3, 2, 4)),
        "shifted epigraph": Shifted(Epigraph(12, 0.2, 0.3, 0.4), bias, (3, 2, 2)),
        "constraint": Epigraph(12, 0.2, 0.3),
    }


@pytest.mark.parametrize("name", list(functionals()))
def test_proximal_maps(name: str) -> None:
    """p = (v - prox)/t is a subgradient: Fenchel's equality holds, and no other point is better."""
    phi = functionals()[name]
    v = 1.5 * normal(3, 24, seed=3)
    for step in (0.1, 1.0, torch.tensor([[0.2], [3.0], [30.0]], dtype=torch.float64)):
        x = phi.prox(v, step)
        p = (v - x) / step

        def objective(point: Tensor, step: Tensor | float = step) -> Tensor:
            inverse = (1 / step)[:, 0] if isinstance(step, Tensor) else 1 / step
            return phi.value(point) + 0.5 * inverse * (point - v).square().sum(1)

        if name != "constraint":  # a computed point of the graph may lie below it, by rounding
            assert float(phi.fenchel(x, p).abs().max()) <= 1e-10
            for k in range(20):
                move = normal(3, 24, seed=k, scale=10.0 ** -(k % 4))
                assert bool((objective(x + move) >= objective(x) - 1e-12).all())
    if name in ("epigraph", "relu", "shifted", "shifted epigraph", "leaky"):
        # the gradient, and Fenchel's inequality away from it
        w, h = normal(3, 24, seed=5), 1e-6
        slope = (phi.value(v + h * w) - phi.value(v - h * w)) / (2 * h)
        torch.testing.assert_close((phi.grad(v) * w).sum(1), slope, rtol=1e-6, atol=1e-7)
        product = (phi.grad(v + h * w) - phi.grad(v - h * w)) / (2 * h)
        torch.testing.assert_close(phi.hessian(v)(w), product, rtol=1e-6, atol=1e-6)
        gradient = phi.grad(v)
        assert float(phi.fenchel(v, gradient).abs().max()) <= 1e-12
        other = phi.fenchel(v, phi.grad(v + w))
        assert bool((other > 1e-6).all())
        assert bool(torch.isfinite(other).all())
        rise = (phi.grad(v + w) - gradient).norm(dim=1)
        assert bool((rise <= phi.smoothness * w.norm(dim=1) * (1 + 1e-12)).all())


def test_conjugate_of_the_constraint() -> None:
    """Against the supremum over a grid of the graph; infinite outside of the polar cone."""
    for slope, width in ((0.2, 0.7), (0.0, 0.3), (0.4, 0.0)):
        phi = Epigraph(1, slope, width)
        t = torch.linspace(-50, 50, 200_001, dtype=torch.float64)
        for beta in (0.3, 2.0):
            for theta in (0.0, 0.2, 0.9, 1.0):
                alpha = beta * (slope + (1 - slope) * theta)
                p = torch.tensor([[alpha, -beta]], dtype=torch.float64)
                x = torch.tensor([[0.4, 3.0]], dtype=torch.float64)
                expected = float((alpha * t - beta * _leaky(t, slope, width)).max()) - float((x * p).sum())
                assert float(phi.fenchel(x, p)) == pytest.approx(expected, abs=1e-6)
        for wrong in ([1.5, -1.0], [-0.5, -1.0], [0.1, 1.0]):
            assert float(phi.fenchel(x, torch.tensor([wrong], dtype=torch.float64))) == math.inf


def test_kinks_and_constraints_have_infinite_curvature() -> None:
    v = torch.tensor([[0.3, -1.0, 2.0, 0.1, -0.5, 5.0]], dtype=torch.float64)
    curvature = Epigraph(3, 0.2, 0.0).hessian(v)
    w = normal(1, 6, seed=1)
    moved = curvature.resolvent(w, 1.0)
    # the first two pairs lie below the graph: what is left is along it; the third is inside
    for j, slope in ((0, 1.0), (1, 0.2)):
        if float(v[0, 3 + j]) < (slope * float(v[0, j])):
            assert float(moved[0, 3 + j]) == pytest.approx(slope * float(moved[0, j]), abs=1e-12)
    torch.testing.assert_close(moved[:, [2, 5]], w[:, [2, 5]])
    kink = torch.zeros(1, 2, dtype=torch.float64)
    assert float(ReLUSum((2,), 1.0).hessian(kink).resolvent(torch.ones_like(kink), 1.0).abs().max()) == 0


def test_bad_input() -> None:
    for slope in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="slope is"):
            Epigraph(2, slope)
    with pytest.raises(ValueError, match="width is -1"):
        Epigraph(2, 0.2, -1)
    with pytest.raises(ValueError, match="eps is"):
        Epigraph(2, 0.2, 0.0, -1.0)
    with pytest.raises(ValueError, match="weights of a sum of ReLUs"):
        ReLUSum((2,), -1.0)
