"""Bounds of filters that couple channels: against dense matrices, on other grids, and where they are attained."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models import FieldsOfExperts, InitialFilters, NoiseConditioned
from models.regularizers.fields_of_experts import concavity_budget
from models.regularizers.filter_bank import frequency_response, spectral_bound
from recon.lower_level import Energy
from tests.lower_level.problems import normal, norms
from tests.lower_level.regularizer_checks import (
    assert_hessian_bounds,
    assert_hessian_variation,
    assert_jacobian_bounds,
)
from tests.models.regularizers.coupled import NAMES, coupled


def dense_norm(kernels: Tensor, weights: Tensor, height: int, width: int) -> float:
    r"""\|\|sum_k w_k C_k^T C_k\|\| for images of this size."""
    shape = (kernels.shape[1], height, width)
    basis = torch.eye(math.prod(shape), dtype=kernels.dtype).view(-1, *shape)
    rows = F.conv2d(basis, kernels * weights.sqrt().view(-1, 1, 1, 1)).flatten(1)
    return float(torch.linalg.matrix_norm(rows, 2)) ** 2


def symbols(kernels: Tensor, weights: Tensor, rows: int, cols: int) -> Tensor:
    """sum_k w_k conj(c^_k) c^_k^T on a full grid of frequencies, matrix by matrix."""
    waves = torch.fft.fft2(kernels, s=(rows, cols)).flatten(2)
    return torch.einsum("k,kax,kbx->xab", weights.to(waves.dtype), waves.conj(), waves)


@given(
    seed=st.integers(0, 10_000),
    filters=st.integers(1, 5),
    channels=st.integers(2, 4),
    size=st.integers(2, 3),
    height=st.integers(3, 6),
    width=st.integers(3, 6),
)
def test_spectral_bound_holds(seed: int, filters: int, channels: int, size: int, height: int, width: int) -> None:
    kernels, weights = normal(filters, channels, size, size, seed=seed), normal(filters, seed=seed + 1).exp()
    assert dense_norm(kernels, weights, height, width) <= float(spectral_bound(kernels, weights)) * (1 + 1e-12)


@pytest.mark.parametrize("kind", ["normal", "dct", "alike", "apart"])
def test_spectral_bound_is_tight_for_larger_images(kind: str) -> None:
    """Also where all channels add up (alike), and where none meets another (apart): neither norms nor traces do it."""
    kernels = InitialFilters("normal" if kind != "dct" else "dct", in_channels=3).make(6, 3)
    if kind == "alike":
        kernels = kernels[:, :1].repeat(1, 3, 1, 1)
    elif kind == "apart":
        kernels = torch.diag_embed(kernels[:2, 0].movedim(0, -1).repeat_interleave(3, -1)[..., :3]).permute(2, 3, 0, 1)
    weights = torch.linspace(1, 2, len(kernels), dtype=torch.float64)
    bound = float(spectral_bound(kernels, weights))
    assert bound / 1.13 <= dense_norm(kernels, weights, 13, 14) <= bound


@given(seed=st.integers(0, 10_000), channels=st.integers(2, 3), rows=st.integers(1, 4), cols=st.integers(1, 4))
def test_spectra_and_what_lies_between_the_frequencies(seed: int, channels: int, rows: int, cols: int) -> None:
    kernels, weights = normal(2, channels, rows, cols, seed=seed), normal(2, seed=seed + 1).exp()
    response = frequency_response(kernels)
    found = response.spectrum(weights)
    half = torch.fft.rfft2(kernels, s=(16 * rows, 16 * cols)).flatten(2)
    expected = torch.einsum("k,kax,kbx->xab", weights.to(half.dtype), half.conj(), half)
    torch.testing.assert_close(found.view(-1, channels), torch.linalg.eigvalsh(expected), atol=1e-11, rtol=1e-9)
    other = torch.linalg.eigvalsh(symbols(kernels, weights, 41 * rows, 41 * cols)).max()
    assert float(other) <= response.factor * float(found.max()) * (1 + 1e-12)


def test_spectra_of_several_weights_and_their_derivatives() -> None:
    kernels, weights = normal(3, 2, 2, 2), normal(2, 3, seed=1).exp().requires_grad_(True)
    kernels.requires_grad_(True)
    torch.testing.assert_close(
        frequency_response(kernels).spectrum(weights),
        torch.stack([frequency_response(kernels).spectrum(w) for w in weights]),
    )

    def power(k: Tensor, w: Tensor) -> Tensor:
        return frequency_response(k).spectrum(w).pow(4).sum()

    assert torch.autograd.gradcheck(power, (kernels, weights))


def test_weights_that_are_not_finite_spoil_no_others() -> None:
    kernels = normal(3, 2, 2, 2)
    weights = torch.tensor([[1.0, 2.0, 3.0], [1.0, math.nan, 1.0]])
    found = spectral_bound(kernels, weights)
    assert float(found[0]) == float(spectral_bound(kernels, weights[0]))
    assert math.isnan(float(found[1]))


@pytest.mark.parametrize("seed", range(3))
def test_the_budget_of_concavity_is_kept_and_used(seed: int) -> None:
    """The 64-norm of all eigenvalues of half the frequencies costs little of it."""
    kernels, shares = normal(4, 3, 3, 3, seed=seed), normal(4, seed=seed + 1)
    budget = concavity_budget(kernels, shares, 0.7)
    norm = dense_norm(kernels, budget, 14, 14)
    assert 0.75 * 0.7 <= norm <= 0.7
    kernels.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda k: concavity_budget(k, shares, 0.7), (kernels,))


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 10_000), spread=st.floats(0, 3), log_scale=st.floats(-5, 3))
def test_hessian_is_symmetric_and_within_its_bounds(name: str, seed: int, spread: float, log_scale: float) -> None:
    regularizer = coupled(name, seed, spread)
    assert_hessian_bounds(regularizer, normal(1, 3, 4, 4, seed=seed, scale=math.exp(log_scale)))


@pytest.mark.parametrize("name", ["foe_l1", "crr"])
def test_smoothness_is_not_far_above_the_largest_eigenvalue(name: str) -> None:
    _, high = assert_hessian_bounds(coupled(name), torch.zeros(1, 3, 11, 11, dtype=torch.float64))
    assert high >= 0.75 * coupled(name).smoothness()


def checkerboard(size: int = 64) -> Tensor:
    """Of all three channels, against each other."""
    rows, cols = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    plane = (1.0 - 2.0 * ((rows + cols) % 2)).double()
    return torch.stack([plane, -plane, plane])[None]


@pytest.mark.parametrize("rho", [0.3, 0.9])
def test_weak_convexity_is_attained_by_a_filter_of_all_channels(rho: float) -> None:
    """Far beyond nu and far below omega, psi'' = -v: all of rho but for the bound of the filter's norm."""
    foe = FieldsOfExperts(
        1, 2, "smoothed_l1", 0.0, 0.0, -9.0, 0.0, rho, InitialFilters("normal", in_channels=3)
    ).double()
    with torch.no_grad():
        foe.weight.copy_(
            0.5 * torch.tensor([[[[1.0, -1.0], [-1.0, 1.0]]]]) * torch.tensor([1.0, -1.0, 1.0])[:, None, None]
        )
    e = checkerboard()
    _, _, width, omega = (float(t.flatten()[0]) for t in foe.current())
    x = math.sqrt(width * omega) / 6 * e
    curvature = float((foe.hessian(x)(e) * e).sum() / norms(e).square())
    assert 0.9 * rho <= -curvature <= rho


@pytest.mark.parametrize("name", NAMES)
def test_hessian_variation(name: str) -> None:
    """Along random directions, and along those in which the largest responses change most."""
    used = 0.0
    for seed, scale in enumerate([0.02, 0.3, 2.0]):
        regularizer = coupled(name, seed, 0.5)
        x, w = normal(2, 3, 5, 6, seed=seed, scale=scale), normal(2, 3, 5, 6, seed=seed + 1)
        kernels = regularizer.kernels().detach()
        u = F.conv2d(w, kernels)
        torch.testing.assert_close(regularizer.filtered_maximum(w), u.abs().amax((2, 3)))
        peaks = F.conv_transpose2d(torch.where(u.abs() >= 0.9 * u.abs().amax((2, 3), keepdim=True), u, 0), kernels)
        for e in (0.01 * peaks, peaks, normal(2, 3, 5, 6, seed=seed + 2)):
            used = max(used, *assert_hessian_variation(regularizer, x, w, e, rtol=1e-4))
    assert used > 0.02


@pytest.mark.parametrize("unit_norm", [False, True])
@pytest.mark.parametrize("radius", [1e-2, 1.0])
def test_jacobian_bounds(unit_norm: bool, radius: float) -> None:
    for seed, scale in ((0, 0.3), (1, 5.0)):
        regularizer = coupled("foe_l1_unit" if unit_norm else "foe_l1", seed, 0.3)
        x, w = normal(1, 3, 4, 4, seed=seed, scale=scale) + 10 * seed, normal(1, 3, 4, 4, seed=seed + 1)
        assert_jacobian_bounds(regularizer, x, w, radius)


@pytest.mark.parametrize("kernels", ["best", "off"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_in_single_precision_err_as_little_as_said(
    name: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECON_KERNELS", kernels)
    for seed, scale in enumerate([0.1, 1.0, 30.0]):
        single = coupled(name, seed, 0.3, dtype=torch.float32)
        double, x = copy.deepcopy(single).double(), normal(3, 3, 12, 13, seed=seed, scale=scale, dtype=torch.float32)
        energy = Energy(x, single, mu=1.0)
        mine, exact = energy.grad(x), Energy(x.double(), double, mu=1.0).grad(x.double())
        error, bound = norms(mine.double() - exact), energy.rounding(x, norms(mine.double()))
        assert bool((error <= bound).all()), (error / bound).tolist()
        assert bool((error > 0).all())


def test_rounded_gains_change_as_much_as_said_where_that_is_attained() -> None:
    """Filters of entries of one size whose errors all add up: the rows of a regular Hadamard matrix of order 16."""
    regular = torch.ones(4, 4, dtype=torch.float64) - 2 * torch.eye(4, dtype=torch.float64)
    kernels, u = torch.kron(regular, regular).view(16, 4, 2, 2), 2.0**-24
    ones = torch.ones(16, dtype=torch.float64)
    before = float(spectral_bound(kernels, ones))
    after = float(spectral_bound(kernels + u * kernels.abs(), (1 + u) ** 4 * ones))
    own = FieldsOfExperts(16, 2, initial_filters=InitialFilters("normal", in_channels=4))
    assert after / before - 1 == pytest.approx(own.gain_rounding(), rel=1e-6)
    weak = coupled("wcrr", dtype=torch.float32)
    assert NoiseConditioned(weak, 0.2).convexity() == -0.7 * (1 + weak.gain_rounding())
