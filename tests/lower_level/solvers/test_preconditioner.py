"""Preconditioners against dense matrices; with them, solvers are faster and certify what they did before."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.regularizers.total_variation import TotalVariation
from recon.lower_level import LBFGS, Energy, HessianMap, KullbackLeibler, Status, WeightedSquaredL2, conjugate_gradients
from recon.lower_level.solvers.preconditioner import Preconditioner, hessian_symbol
from recon.lower_level.solvers.quasi_newton import InverseHessian
from recon.operators import Blur, CartesianMRI, LinearOperator, ParallelBeam, RayTransform, complex_to_channels
from recon.operators.symbol import impulse_symbol
from tests.lower_level.problems import energy_hessians, exact_minimizer, make, normal, norms, smooth_image


def dense(apply: Preconditioner, shape: tuple[int, ...]) -> Tensor:
    """The matrix of a map of one image, column by column."""
    n = math.prod(shape)
    return apply(torch.eye(n, dtype=torch.float64).view(n, *shape)).reshape(n, n).T


def symmetric_symbol(seed: int, height: int, width: int) -> Tensor:
    """Positive, with s(-xi) = s(xi)."""
    s = normal(1, height, width, seed=seed).exp()
    return 0.5 * (s + torch.roll(s.flip(1, 2), (1, 1), (1, 2)))


@pytest.mark.parametrize("shape", [(1, 4, 6), (1, 5, 3), (2, 4, 5)])
@pytest.mark.parametrize("pairs", [False, True])
def test_the_inverse_is_symmetric_positive_definite_and_diagonal_in_frequency(
    shape: tuple[int, int, int], pairs: bool
) -> None:
    if pairs:
        shape = (2, *shape[1:])
    symbol = normal(1, *shape[1:], seed=3).exp() if pairs else symmetric_symbol(3, *shape[1:])
    matrix = dense(Preconditioner(symbol, pairs), shape)
    torch.testing.assert_close(matrix, matrix.T, rtol=1e-12, atol=1e-14)
    eigenvalues = torch.linalg.eigvalsh(matrix)
    copies = symbol.flatten().repeat(2 if pairs else shape[0])  # a complex image has two real dimensions a pixel
    torch.testing.assert_close(eigenvalues, (1 / copies).sort().values, rtol=1e-10, atol=1e-12)


def test_symbols_with_zeros_are_floored_and_images_selected() -> None:
    symbol = torch.stack((torch.zeros(4, 4), torch.ones(4, 4), torch.eye(4) + torch.eye(4).T)).double()
    inverse, v = Preconditioner(symbol), normal(3, 1, 4, 4)
    assert bool(torch.isfinite(inverse(v)).all())
    torch.testing.assert_close(inverse.select(torch.tensor([2, 1]))(v[[2, 1]]), inverse(v)[[2, 1]])
    assert inverse(v.float()).dtype == torch.float32


# --- what the operators offer ----------------------------------------------------------------------------------------


def test_single_coil_mri_has_an_exact_symbol() -> None:
    mask = torch.rand(6, 5, generator=torch.Generator().manual_seed(2)) < 0.5
    operator, x = CartesianMRI(mask), normal(1, 2, 6, 5)
    symbol = operator.normal_symbol()
    spectrum = torch.fft.fft2(torch.complex(x[:, 0], x[:, 1]))
    expected = complex_to_channels(torch.fft.ifft2(symbol.values * spectrum))
    torch.testing.assert_close(operator.adjoint(operator(x)), expected, rtol=1e-12, atol=1e-12)
    assert symbol.complex_pairs


def test_symbol_of_the_ray_transform_predicts_what_it_does_to_waves() -> None:
    n, operator = 32, RayTransform(ParallelBeam.equispaced((32, 32), 1.0, 40))
    symbol = operator.normal_symbol()
    assert not symbol.complex_pairs
    assert bool((symbol.values >= 0).all())
    p = torch.arange(n, dtype=torch.float64)
    for row, column in ((2, 1), (0, 5), (6, 6), (11, 3)):
        phase = 2 * math.pi * (row * p[:, None] + column * p[None]) / n
        wave = torch.stack((phase.cos(), phase.sin()))[:, None]
        quotient = operator(wave).square().sum() / wave.square().sum()
        assert float(symbol.values[row, column]) == pytest.approx(float(quotient), rel=0.35)
    assert operator.normal_symbol() is symbol  # measured once


def test_impulse_symbol_of_a_periodic_convolution_is_exact() -> None:
    spectrum = symmetric_symbol(5, 7, 6)[0]
    symbol = impulse_symbol(lambda x: torch.fft.ifft2(spectrum * torch.fft.fft2(x)).real, (7, 6))
    torch.testing.assert_close(symbol.values, spectrum, rtol=1e-12, atol=1e-12)


def test_symbol_of_total_variation_where_the_image_is_flat() -> None:
    n, tv = 48, TotalVariation(0.3, -1.0).double()
    flat = torch.zeros(1, 1, n, n, dtype=torch.float64)
    found = hessian_symbol(tv.hessian(flat), flat, False)[0]
    angle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    steps = 2 - 2 * angle.cos()
    expected = math.exp(1.3) * (steps[:, None] + steps[None])
    high = expected > 0.5 * math.exp(1.3)
    assert float((found / expected - 1).abs()[high].max()) < 0.4
    assert float((found / expected - 1).abs()[high].mean()) < 0.06
    pairs = hessian_symbol(tv.hessian(flat.repeat(1, 2, 1, 1)), flat.repeat(1, 2, 1, 1), True)[0]
    assert float((pairs / expected - 1).abs()[high].max()) < 0.4
    assert float((pairs / expected - 1).abs()[high].mean()) < 0.06


# --- L-BFGS and conjugate gradients ----------------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), pairs=st.integers(0, 7))
def test_compact_form_with_a_matrix_equals_the_two_loop_recursion(seed: int, pairs: int) -> None:
    n, memory = 6, 4
    first = torch.diag(normal(n, seed=seed).exp())
    turn, _ = torch.linalg.qr(normal(n, n, seed=seed + 1))
    first = turn @ first @ turn.T
    b = normal(n, n, seed=seed + 2)
    b = b @ b.T + torch.eye(n, dtype=torch.float64)
    history, kept = InverseHessian(torch.zeros(1, n, dtype=torch.float64), memory), []
    for j in range(pairs):
        s = normal(n, seed=seed + 3 + j)
        y = b @ s
        history.update(torch.tensor([0]), s[None], y[None], (first @ y)[None])
        kept = [*kept, (s, y)][-memory:]
    g, gamma = normal(n, seed=seed + 50), 0.7
    mine = history.apply(g[None], torch.tensor([gamma]), (first @ g)[None])[0]
    q, factors = g.clone(), []
    for s, y in reversed(kept):
        factors.append((s @ q) / (s @ y))
        q = q - factors[-1] * y
    if kept:
        s, y = kept[-1]
        gamma = float((s @ y) / (y @ first @ y))
    r = gamma * first @ q
    for (s, y), a in zip(kept, reversed(factors), strict=True):
        r = r + s * (a - (y @ r) / (s @ y))
    torch.testing.assert_close(mine, r, rtol=1e-6, atol=1e-7)


@given(seed=st.integers(0, 10_000), log_accuracy=st.floats(-8, 1))
def test_preconditioned_conjugate_gradients_certify_the_euclidean_residual(seed: int, log_accuracy: float) -> None:
    symbol = torch.cat([symmetric_symbol(seed + i, 4, 5) for i in range(3)])
    noise = normal(3, 20, 20, seed=seed + 3, scale=0.1)
    a = torch.linalg.inv(dense(Preconditioner(symbol[:1]), (1, 4, 5))) + noise @ noise.mT
    hessian = HessianMap(lambda v, kept: ((a if kept is None else a[kept]) @ v.flatten(1)[..., None]).view_as(v))
    b, accuracy = normal(3, 1, 4, 5, seed=seed + 4), 10**log_accuracy
    solved = conjugate_gradients(hessian, b, torch.zeros_like(b), accuracy, preconditioner=Preconditioner(symbol))
    assert solved.converged
    residual = norms(b.flatten(1) - (a @ solved.w.flatten(1)[..., None])[..., 0])
    assert bool((residual <= accuracy).all())
    assert bool((residual <= solved.residual_norm * (1 + 1e-9) + 1e-14).all())
    exact = torch.linalg.solve(a, b.flatten(1)[..., None])[..., 0]
    smallest = torch.linalg.eigvalsh(a)[:, 0]
    assert bool((norms(solved.w.flatten(1) - exact) <= accuracy / smallest * (1 + 1e-6)).all())


def ct(seed: int = 0, n: int = 12, views: int = 9, log_weight: float = 0.0, mu: float = 0.5) -> Energy:
    operator = RayTransform(ParallelBeam.equispaced((n, n), 1.0, views))
    y = operator(smooth_image(3, 1, n, n, seed=seed)) + normal(3, *operator.range_shape, seed=seed + 1, scale=0.3)
    return Energy(y, TotalVariation(log_weight, -3.0).double(), operator, mu=mu)


def mri(mu: float = 0.05) -> Energy:
    generator = torch.Generator().manual_seed(1)
    maps = torch.polar(
        0.5 + torch.rand(2, 8, 7, generator=generator, dtype=torch.float64), torch.ones(2, 8, 7, dtype=torch.float64)
    )
    operator = CartesianMRI(torch.rand(8, 7, generator=generator) < 0.5, maps)
    y = operator(smooth_image(3, 2, 8, 7)) + operator(normal(3, 2, 8, 7, scale=0.1))
    return Energy(y, make("tv"), operator, mu=mu)


def others() -> dict[str, Energy]:
    energy = ct(n=10)
    weights = 0.1 + normal(*energy.operator.range_shape, seed=5).abs()
    counts = energy.y.abs()
    return {
        "ct": energy,
        "mri": mri(),
        "weighted": Energy(energy.y, make("crr"), energy.operator, WeightedSquaredL2(weights), mu=0.3),
        "counts": Energy(counts, make("foe_log_cosh"), energy.operator, KullbackLeibler(1.0), mu=0.5),
    }


@pytest.mark.parametrize("name", ["ct", "mri", "weighted", "counts"])
def test_certified_error_is_true_with_preconditioning(name: str) -> None:
    energy = others()[name]
    assert energy.preconditioner(energy.operator.adjoint(energy.y)) is not None
    start = torch.zeros_like(energy.operator.adjoint(energy.y))
    exact = exact_minimizer(energy, start, 1e-10)
    for accuracy in (1.0, 1e-3, 1e-7):
        solution = LBFGS()(energy, start, torch.tensor([accuracy, 1e-2, accuracy]))
        assert solution.converged
        assert bool((norms(solution.x - exact) <= solution.error).all())
        assert bool((norms(energy.grad(solution.x)) / energy.strong_convexity <= solution.error).all())
        assert bool((solution.error <= torch.tensor([accuracy, 1e-2, accuracy])).all())


@pytest.mark.parametrize("name", ["ct", "mri"])
def test_adjoint_systems_against_dense_solves(name: str) -> None:
    energy = others()[name]
    x = energy.operator.adjoint(energy.y)
    b = normal(*x.shape, seed=8)
    solved = energy.solve_adjoint(x, b, torch.zeros_like(b), 1e-7, 1000)
    assert solved.converged
    hessians = energy_hessians(energy, x)
    residual = norms(b.flatten(1) - (hessians @ solved.w.flatten(1)[..., None])[..., 0])
    assert bool((residual <= 1e-7).all())
    exact = torch.linalg.solve(hessians, b.flatten(1)[..., None])[..., 0]
    assert bool((norms(solved.w.flatten(1) - exact) <= 1e-7 / energy.strong_convexity).all())


def test_fewer_evaluations_in_tomography() -> None:
    energy = ct(n=48, views=20, log_weight=1.0, mu=1e-3)
    start = torch.zeros_like(energy.operator.adjoint(energy.y))
    goal = 1e-5 * float(norms(energy.grad(start)).min())
    counts = {}
    for precondition in (False, True):
        solution = LBFGS(certified=False, precondition=precondition)(energy, start, goal)
        assert solution.status.tolist() == [Status.CONVERGED] * 3
        assert bool((norms(energy.grad(solution.x)) <= goal).all())
        counts[precondition] = int(solution.evaluations.max())
    assert counts[True] <= 0.75 * counts[False]
    b, hessian, inverse = normal(*start.shape, seed=3), energy.hessian(solution.x), energy.preconditioner(start)
    plain = conjugate_gradients(hessian, b, torch.zeros_like(b), 1e-5)
    fast = conjugate_gradients(hessian, b, torch.zeros_like(b), 1e-5, preconditioner=inverse)
    assert int(fast.evaluations.max()) <= 0.85 * int(plain.evaluations.max())


def test_nothing_changes_where_operators_offer_nothing() -> None:
    y = smooth_image(2, 1, 6, 5)
    for operator in (None, Blur(0.7, (1, 6, 5), "reflect")):
        energy = Energy(y, make("tv"), operator, mu=0.1)
        assert energy.preconditioner(y) is None
        first, second = (LBFGS(precondition=p)(energy, y, 1e-8) for p in (False, True))
        assert torch.equal(first.x, second.x)
    assert LinearOperator(None, None, 1.0).normal_symbol() is None
