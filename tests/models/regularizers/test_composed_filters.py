"""Filters that are compositions of small convolutions: what is learned are the factors."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import ConvexRidge, FieldsOfExperts, InitialFilters, WeaklyConvexRidge
from models.regularizers.initial import composed
from models.regularizers.ridge import RidgeRegularizer
from tests.lower_level.problems import normal, perturb
from tests.lower_level.regularizer_checks import (
    assert_batch,
    assert_derivatives,
    assert_hessian_bounds,
    assert_hessian_variation,
    assert_parameter_derivatives,
)

TWO = InitialFilters(channels=(2, 3))

MAKERS: dict[str, Callable[[], RidgeRegularizer]] = {
    "crr": lambda: ConvexRidge(4, 4, knots=6, spacing=0.15, log_weight=-0.5, log_width=-1, initial_filters=TWO),
    "wcrr": lambda: WeaklyConvexRidge(
        4, 4, knots=6, spacing=0.15, log_weight=-0.5, log_width=-1, weak_convexity=0.7, initial_filters=TWO
    ),
    "foe": lambda: FieldsOfExperts(4, 4, log_weight=-1, log_width=-1.5, initial_filters=TWO),
    "foe_unit": lambda: FieldsOfExperts(
        4, 3, "log_cosh", log_weight=-1, log_width=-1.5, unit_norm=True, initial_filters=InitialFilters(channels=(3,))
    ),
}


@pytest.fixture(params=MAKERS)
def regularizer(request: pytest.FixtureRequest) -> RidgeRegularizer:
    made = perturb(MAKERS[request.param]().double(), 1, 0.2)
    assert isinstance(made, RidgeRegularizer)
    return made


@pytest.fixture(params=["best", "off"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the compiled kernels, and without."""
    monkeypatch.setenv("RECON_KERNELS", request.param)
    return str(request.param)


@pytest.mark.parametrize("channels", [(), (2,), (3, 2), (2, 5, 3)])
@pytest.mark.parametrize("side", [2, 3])
def test_a_composition_is_one_convolution_after_another(channels: tuple[int, ...], side: int) -> None:
    factors, entering = [], 1
    for number, leaving in enumerate((*channels, 4)):
        factors.append(normal(leaving, entering, side, side, seed=number))
        entering = leaving
    x = normal(2, 1, 14, 13, seed=9)
    expected = x
    for number, factor in enumerate(factors):
        expected = F.conv2d(expected, factor - factor.mean((2, 3), keepdim=True) if number == 0 else factor)
    found = composed(factors)
    size = 1 + (side - 1) * len(factors)
    assert found.shape == (4, size, size)
    torch.testing.assert_close(F.conv2d(x, found[:, None]), expected, rtol=1e-12, atol=1e-12)


def test_filters_are_the_compositions_of_the_factors(regularizer: RidgeRegularizer) -> None:
    """By hand: as maps of the images of one pixel, with the mean of the first factor taken away."""
    x = normal(2, 1, 8, 9)
    u = x
    for number, factor in enumerate(regularizer.factors):
        u = F.conv2d(u, factor - factor.mean((2, 3), keepdim=True) if number == 0 else factor)
    kernels = regularizer.kernels().detach()
    found = F.conv2d(x, kernels[:, None])
    norms = 1.0
    if regularizer.unit_norm:
        norms = (found.square().sum((0, 2, 3)) / u.square().sum((0, 2, 3))).sqrt()[:, None, None].detach()
        torch.testing.assert_close(kernels.flatten(1).norm(dim=1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(found, (u * norms).detach(), rtol=1e-10, atol=1e-12)


def test_filters_have_mean_zero_and_forget_constants(regularizer: RidgeRegularizer) -> None:
    with torch.no_grad():
        regularizer.factors[0].add_(3.0)
    assert float(regularizer.kernels().detach().sum((1, 2)).abs().max()) < 1e-12
    x = normal(2, 1, 6, 7)
    torch.testing.assert_close(regularizer(x + 3.0), regularizer(x), rtol=1e-10, atol=1e-11)


def test_derivatives(regularizer: RidgeRegularizer, kernels: str) -> None:
    for seed, scale in enumerate([0.1, 1.0]):
        x = normal(3, 1, 6, 7, seed=seed, scale=scale)
        assert_derivatives(regularizer, x, rtol=1e-9)
        assert_batch(regularizer, x)


@pytest.mark.parametrize("frozen", [0, 1, "profiles"])
def test_derivatives_where_a_part_is_frozen(regularizer: RidgeRegularizer, frozen: int | str) -> None:
    factors = {id(factor): number for number, factor in enumerate(regularizer.factors)}
    for p in regularizer.parameters():
        if factors.get(id(p), "profiles") == frozen:
            p.requires_grad_(False)
    left = list(regularizer.trainable())
    assert 0 < len(left) < len(list(regularizer.parameters()))
    assert_parameter_derivatives(regularizer, normal(2, 1, 6, 7), normal(2, 1, 6, 7, seed=1), rtol=1e-9)


def test_hessians_are_within_their_bounds(regularizer: RidgeRegularizer) -> None:
    for seed, scale in enumerate([0.01, 0.3, 3.0]):
        x = normal(2, 1, 5, 6, seed=seed, scale=scale)
        assert_hessian_bounds(perturb(copy.deepcopy(regularizer), seed, 0.7), x)
        assert_hessian_variation(regularizer, x, normal(*x.shape, seed=5), normal(*x.shape, seed=6, scale=0.1))


def test_the_spectral_bound_is_that_of_the_dense_operator(regularizer: RidgeRegularizer) -> None:
    """Above sum_k w_k C_k^T C_k on a finite image, and no more than a few percent above it on a larger one."""
    weights = torch.tensor([0.3, 1.0, 2.0, 0.1], dtype=torch.float64)
    kernels = regularizer.kernels().detach()
    bound = float(regularizer.spectral_bound(weights))
    found = []
    for n in (6, 24):
        basis = torch.eye(n * n, dtype=torch.float64).view(-1, 1, n, n)
        u = F.conv2d(basis, kernels[:, None]) * weights.sqrt()[:, None, None]
        found.append(float(torch.linalg.matrix_norm(u.flatten(1), 2)) ** 2)
    assert found[0] <= found[1] <= bound * (1 + 1e-12)
    assert found[1] >= 0.9 * bound


def test_no_bound_is_claimed_where_the_filters_are_no_parameters(regularizer: RidgeRegularizer) -> None:
    """The constants of J of Fields of Experts are in their filters, not in the factors: estimates have to do."""
    x, w = normal(2, 1, 6, 7), normal(2, 1, 6, 7, seed=1)
    bounds = regularizer.jacobian_bounds(x, w, torch.full((2,), 0.1, dtype=torch.float64))
    assert not bounds.certified


@pytest.mark.parametrize("how", ["in place", "data", "state", "optimizer"])
def test_results_follow_every_change_of_the_factors(regularizer: RidgeRegularizer, how: str) -> None:
    x = normal(1, 1, 6, 6)
    before, bound = regularizer.value_and_grad(x)[0], regularizer.smoothness()
    for factor in regularizer.factors:
        if how == "in place":
            with torch.no_grad():
                factor.add_(0.3 * normal(*factor.shape, seed=3))
        elif how == "data":
            factor.data += 0.3 * normal(*factor.shape, seed=3)
    if how == "state":
        state = {k: v + 0.3 * normal(*v.shape, seed=3) for k, v in regularizer.state_dict().items()}
        regularizer.load_state_dict(state)
    elif how == "optimizer":
        optimizer = torch.optim.SGD(regularizer.parameters(), lr=0.1)
        regularizer(x).sum().backward()
        optimizer.step()
    value = regularizer.value_and_grad(x)[0]
    assert float((value - before).abs()) > 1e-6
    torch.testing.assert_close(value, regularizer(x).detach())
    assert regularizer.smoothness() != bound


def test_parameters_are_the_factors(regularizer: RidgeRegularizer) -> None:
    names = {name for name, _ in regularizer.named_parameters()}
    assert {"factors.0", "factors.1"} <= names
    assert "weight" not in names
    other = MAKERS["crr"]()
    assert other.margin == 3
    assert [tuple(f.shape) for f in other.factors] == [(2, 1, 2, 2), (3, 2, 2, 2), (4, 3, 2, 2)]
    for factor in other.factors:
        torch.testing.assert_close(factor.detach().flatten(1).norm(dim=1), torch.ones(len(factor)))


def test_seeds_choose_the_random_factors() -> None:
    def factors(seed: int, kind: str = "dct") -> list[Tensor]:
        return InitialFilters(kind, seed=seed, channels=(2, 3)).factors(4, 4)

    for a, b in zip(factors(0), factors(0), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(factors(0)[0], factors(1)[0])  # cosines
    assert not torch.equal(factors(0)[1], factors(1)[1])
    assert not torch.equal(factors(0, "normal")[0], factors(1, "normal")[0])
    cosines = factors(0)[0]
    assert float(cosines.sum((2, 3)).abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("size", "channels", "message"),
    [
        (
            4,
            (2,),
            r"4x4 pixels are no compositions of 2 convolutions of one size: with 1 numbers of channels, size must be",
        ),
        (2, (2,), "1 plus a multiple of 2"),
        (3, (2, 2, 2), "1 plus a multiple of 4"),
        (9, (4, 8, 5), None),
        (9, (4, 8), "1 plus a multiple of 3"),
        (3, (9,), "2x2"),
    ],
)
def test_sizes_that_have_no_factors(size: int, channels: tuple[int, ...], message: str | None) -> None:
    filters = InitialFilters("normal" if message is None else "dct", channels=channels)
    if message is None:
        assert FieldsOfExperts(2, size, initial_filters=filters).kernels().shape == (2, size, size)
        return
    with pytest.raises(ValueError, match=message):
        FieldsOfExperts(2, size, initial_filters=filters)


def test_numbers_of_channels() -> None:
    assert InitialFilters(channels=[4, 8]).channels == (4, 8)  # type: ignore[arg-type]
    for wrong in ((0,), (3, -1)):
        with pytest.raises(ValueError, match=r"channels has (0|-1), but each number must be at least 1"):
            InitialFilters(channels=wrong)


def test_precision_follows_the_module(regularizer: RidgeRegularizer, kernels: str) -> None:
    x = normal(2, 1, 6, 7)
    value, grad = regularizer.value_and_grad(x)
    single_value, single_grad = copy.deepcopy(regularizer).float().value_and_grad(x.float())
    assert single_grad.dtype == torch.float32
    torch.testing.assert_close(single_value, value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(single_grad.double(), grad, rtol=1e-4, atol=1e-5)
    assert math.isfinite(regularizer.smoothness())
