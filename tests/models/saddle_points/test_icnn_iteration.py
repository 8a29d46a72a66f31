"""The iteration of convex networks, layer by layer: its bounds, the minimizers it finds, its steps, bad input."""

from __future__ import annotations

import math

import pytest
import torch

from models import ICNNSaddle, NetworkIteration
from recon.lower_level import LBFGS, Energy, SquaredL2
from tests.lower_level.problems import normal, norms
from tests.models.saddle_points.test_icnn_saddle import OPTIONS, SHAPE, DenseMatrix, network


@pytest.mark.parametrize("options", [*OPTIONS, {"width": 0.0}, {"width": 0.0, "layers": 2, "inner_size": 2}])
@pytest.mark.parametrize("adaptive", [True, False])
def test_converges_and_bounds_the_minimum(options: dict[str, object], adaptive: bool) -> None:
    """The interval of the energies holds the minimum from the start, and shrinks to it; so does x."""
    data, c, mu = normal(2, *SHAPE, seed=4), 0.7, 0.3
    model = ICNNSaddle(network(2, **options), SHAPE, mu=mu, data_weight=c)
    iteration = NetworkIteration(model, data, data, adaptive)
    upper, lower = iteration.bounds()
    intervals = [(upper, lower)]
    for k in range(3000):
        iteration.advance()
        if k in (3, 30, 300, 2999):
            intervals.append(iteration.bounds())
    upper, lower = intervals[-1]
    # where constraints are degenerate the multipliers are slow
    assert bool((upper - lower <= 1e-4 * upper.abs()).all())
    assert float(((upper - lower) / upper).min()) <= 1e-8
    for high, low in intervals:
        assert bool((high >= lower - 1e-10).all())
        assert bool((low <= upper + 1e-10).all())
    if model.network.hidden.width > 0:
        energy = Energy(data, model.network, mu=mu, fidelity=SquaredL2(c))
        best = LBFGS()(energy, data, 1e-9)
        assert best.converged
        value = energy.value_and_grad(best.x)[0]
        assert bool((lower - 1e-9 <= value).all())
        assert bool((value <= upper + 1e-9).all())
        # strong convexity: an error of x no larger than what the gap says
        gap = (upper - lower).clamp_min(0) + 1e-12 * upper.abs()
        assert bool((norms(iteration.image - best.x) <= (2 * gap / (c + mu)).sqrt() + 1e-9).all())


@pytest.mark.parametrize("options", [{"width": 0.0}, {"layers": 2}])
def test_bounds_agree_with_the_gap_of_the_saddle_point(options: dict[str, object]) -> None:
    """The same number as Fenchel's terms of the flat problem, at points that are feasible there."""
    data = normal(1, *SHAPE, seed=6)
    model = ICNNSaddle(network(5, **options), SHAPE)
    with torch.no_grad():
        saddle = model.saddle_point(data)
        # the first multipliers are feasible: those of the chain rule
        other = NetworkIteration(model, data, data + normal(1, *SHAPE, seed=9, scale=0.3))
        upper, lower = other.bounds()
        assert float(upper - lower) >= 1e-2
        blocks = []
        for p, q in zip(other.p, other.q, strict=False):
            blocks += [p.flatten(1), q.flatten(1)]
        y = torch.cat([*blocks, other.p[-1].flatten(1)], 1)
        x = model.hidden(other.image)
        # z without slack violates constraints by rounding; z_0 less than z_1
        first = saddle.pixels + other.x[1].numel()
        x[:, saddle.pixels : first] += 1e-13
        x[:, first:] += 1e-11
        kx, kty = saddle.operator(x), saddle.operator.transpose(y)
        assert float(kty[:, saddle.pixels :].abs().max()) <= 1e-12
        gap = saddle.f.fenchel(kx, y)
        image = saddle.g.parts[0].fenchel(x[:, : saddle.pixels], -kty[:, : saddle.pixels])  # type: ignore[attr-defined]
    assert float(gap + image) == pytest.approx(float(upper - lower), rel=1e-6, abs=1e-9)


def test_steps_are_safe_and_images_independent() -> None:
    """||diag(sigma)^(1/2) K diag(tau)^(1/2)|| <= 1, before and after balancing; a batch is its images one by one."""
    data = normal(2, *SHAPE, seed=4) * torch.tensor([1.0, 5.0], dtype=torch.float64)[:, None, None, None]
    model = ICNNSaddle(network(2, layers=2), SHAPE)
    both = NetworkIteration(model, data, data)
    single = [NetworkIteration(model, data[i : i + 1], data[i : i + 1]) for i in range(2)]
    with torch.no_grad():
        k = model.saddle_point(data).operator
        dense = k(torch.eye(k.domain_size, dtype=torch.float64)).T
        first = float(both.sigma[0][0])
        for count in range(61):
            if count % 30 == 0:
                tau = torch.cat([b.expand_as(x)[:1].flatten() for b, x in zip(both.tau, both.x, strict=True)])
                rows = []
                for layer, s in enumerate(both.sigma):
                    rows += [s.expand_as(both.p[layer])[:1].flatten()] * (1 if layer == 2 else 2)
                scaled = torch.cat(rows).sqrt()[:, None] * dense * tau.sqrt()
                assert 0.3 <= float(torch.linalg.matrix_norm(scaled, 2)) <= 1 + 1e-9
            for it in (both, *single):
                it.advance()
        assert float(both.sigma[0][0]) != first
    for i, it in enumerate(single):
        torch.testing.assert_close(both.image[i : i + 1], it.image, rtol=0, atol=1e-9)


def test_start_at_the_solution() -> None:
    """Distances of zero give steps all the same: a network that does not see the image."""
    flat = torch.ones(1, *SHAPE, dtype=torch.float64)
    iteration = NetworkIteration(ICNNSaddle(network(1, zero_mean=True, width=0.0), SHAPE), flat, flat)
    for _ in range(50):
        iteration.advance()
    upper, lower = iteration.bounds()
    assert bool(torch.isfinite(iteration.image).all())
    assert float(upper - lower) <= 1e-3 * float(upper)
    assert all(math.isfinite(float(s)) and float(s) > 0 for s in iteration.sigma)


def test_bad_input() -> None:
    y = normal(1, *SHAPE)
    with pytest.raises(ValueError, match="relaxation 0"):
        NetworkIteration(ICNNSaddle(network(), SHAPE, relaxation=0.1, z_convexity=0.1), y, y)
    matrix = DenseMatrix(normal(9, 36), SHAPE)
    with pytest.raises(ValueError, match="has an operator"):
        NetworkIteration(ICNNSaddle(network(), SHAPE, matrix, mu=1.0), normal(1, 9), y)
