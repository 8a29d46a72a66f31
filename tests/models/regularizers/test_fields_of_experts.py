"""Fields of Experts: derivatives and every constant that certificates rest on, also for extreme parameters."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.regularizers.fields_of_experts import FieldsOfExperts, concavity_budget
from models.regularizers.filter_bank import frequency_response
from recon.lower_level import Regularizer
from tests.lower_level.problems import make, normal, norms, perturb, regularizer_hessians
from tests.lower_level.regularizer_checks import (
    assert_hessian_bounds,
    assert_hessian_variation,
    assert_jacobian_bounds,
    variation_terms,
)

NAMES = ["foe_l1", "foe_log_cosh", "foe_student", "foe_weak_l1", "foe_weak_log_cosh"]
SHAPES = [(3, 1, 5, 7), (2, 2, 6, 5)]


@pytest.mark.parametrize("spread", [0.0, 1.0, 5.0, 20.0])
@pytest.mark.parametrize("potential", ["smoothed_l1", "log_cosh"])
@pytest.mark.parametrize("rho", [0.05, 0.9, 0.999])
def test_weak_convexity_holds_for_all_parameters(rho: float, potential: str, spread: float) -> None:
    for seed in range(4):
        regularizer = FieldsOfExperts(4, 3, potential, log_weight=0, log_width=-1, weak_convexity=rho).double()
        perturb(regularizer, seed, spread)
        x = torch.cat([normal(1, 1, 6, 6, seed=seed, scale=s) for s in (1e-3, 0.1, 1.0, 30.0)])
        dense = regularizer_hessians(regularizer, x)
        if bool(torch.isfinite(dense).all()):  # e^{60} is out of reach of any image
            low = float(torch.linalg.eigvalsh((dense + dense.mT) / 2).min())
            assert low >= -rho - 1e-13 * float(dense.abs().max())
        else:
            assert spread == 20.0


@given(seed=st.integers(0, 10_000), filters=st.integers(1, 5), size=st.integers(2, 4), spread=st.floats(0, 40))
def test_concavity_budget_is_never_exceeded(seed: int, filters: int, size: int, spread: float) -> None:
    kernels = normal(filters, size, size, seed=seed) * torch.exp(normal(filters, 1, 1, seed=seed + 1, scale=2))
    shares = normal(filters, seed=seed + 2, scale=spread)
    budget = concavity_budget(kernels, shares, 0.5)
    power = torch.fft.fft2(kernels, s=(67, 71)).abs().square().flatten(1)
    assert bool((budget > 0).all())
    top = float((budget @ power).max())
    assert top <= 0.5 * (1 + 1e-12)
    # and not wasted: the 64-norm costs a few percent, the grid four, coarse grids here a little
    assert top >= 0.5 * 0.8


def test_concavity_budget_is_differentiable() -> None:
    kernels, shares = normal(3, 3, 3).requires_grad_(), normal(3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda k, s: concavity_budget(k, s, 0.5), (kernels, shares))


def waves(amplitude: float) -> torch.Tensor:
    """The highest frequency along one axis: the response of horizontal differences is constant up to its sign."""
    return amplitude * (torch.arange(20, dtype=torch.float64) % 2).expand(1, 1, 3, 20).clone()


def one_difference(potential: str, rho: float, log_width: float) -> FieldsOfExperts:
    regularizer = FieldsOfExperts(1, 2, potential, 0.0, 0.0, log_width, weak_convexity=rho).double()
    with torch.no_grad():
        regularizer.weight.copy_(torch.tensor([[[0.5, -0.5], [0.5, -0.5]]]))
    return regularizer


@pytest.mark.parametrize(
    ("potential", "rho", "amplitude"), [("student_t", 0.0, 3**0.5), ("smoothed_l1", 0.9, 0.3), ("log_cosh", 0.9, 0.1)]
)
def test_convexity_is_not_far_below_the_smallest_eigenvalue(potential: str, rho: float, amplitude: float) -> None:
    """At the image that is worst for this filter: half of the modulus would be wrong."""
    log_width = 0.0 if potential == "student_t" else -6.0
    regularizer = one_difference(potential, rho, log_width)
    low, _ = assert_hessian_bounds(regularizer, waves(amplitude))
    assert low <= 0.7 * regularizer.convexity() < 0


@pytest.mark.parametrize("name", ["foe_l1", "foe_log_cosh", "foe_student"])
def test_smoothness_is_not_far_above_the_largest_eigenvalue(name: str) -> None:
    _, high = assert_hessian_bounds(make(name), torch.zeros(1, 1, 12, 12, dtype=torch.float64))
    assert high >= 0.8 * make(name).smoothness()


@pytest.mark.parametrize("name", NAMES)
@given(
    seed=st.integers(0, 10_000),
    spread=st.floats(0, 2),
    log_scale=st.floats(-5, 3),
    log_step=st.floats(-6, 3),
    peaked=st.booleans(),
)
def test_hessian_variation(
    name: str, seed: int, spread: float, log_scale: float, log_step: float, peaked: bool
) -> None:
    regularizer = make(name, seed, spread)
    assert isinstance(regularizer, FieldsOfExperts)
    x = normal(2, 1, 5, 6, seed=seed, scale=math.exp(log_scale))
    w = normal(2, 1, 5, 6, seed=seed + 1)
    e = normal(2, 1, 5, 6, seed=seed + 2)
    if peaked:  # concentrated at the peaks of c * w: e = C^T of the largest responses
        u = torch.nn.functional.conv2d(w, regularizer.kernels().detach()[:, None])
        top = torch.where(u.abs() >= 0.9 * u.abs().amax((2, 3), keepdim=True), u, 0)
        e = torch.nn.functional.conv_transpose2d(top, regularizer.kernels().detach()[:, None])
    assert_hessian_variation(regularizer, x, w, math.exp(log_step) * e / norms(e).view(-1, 1, 1, 1), rtol=1e-4)


def test_constants_of_the_variation_cannot_be_halved() -> None:
    """One filter, w and e alike: half of each bound would be violated."""
    used = 0.0
    for potential, at in (("log_cosh", 4.0), ("smoothed_l1", 1.0)):
        regularizer = one_difference(potential, 0.0, 0.0)
        w = waves(1.0)
        for factor in (-0.3, -1.0, -3.0, 3.0):
            relative, lipschitz = assert_hessian_variation(regularizer, waves(at), w, waves(factor))
            used = max(used, relative) if potential == "log_cosh" else used
    assert used > 0.5
    _, lipschitz = assert_hessian_variation(one_difference("log_cosh", 0.0, 0.0), waves(0.6585), w, waves(1e-3) - 5e-4)
    assert lipschitz > 0.5


def test_concave_part_is_needed_in_the_variation() -> None:
    """For a weakly convex regularizer the first term alone is violated somewhere: ``concavity`` is no ornament."""
    regularizer = one_difference("smoothed_l1", 0.9, -6.0)
    x, w, e = waves(0.5), waves(1.0), waves(0.4)
    assert_hessian_variation(regularizer, x, w, e)
    variation = regularizer.hessian_variation(w)
    middle, energy, _ = variation_terms(regularizer, x, w, e)
    assert float(middle.abs()) > float(variation.relative * energy)
    assert float(variation.concavity) > 0


@pytest.mark.parametrize("name", ["foe_l1", "foe_log_cosh", "foe_student"])
@pytest.mark.parametrize("radius", [1e-2, 1.0])
def test_jacobian_bounds(name: str, radius: float) -> None:
    for seed, scale, spread in ((0, 0.3, 0.3), (1, 5.0, 1.0)):
        regularizer = make(name, seed, spread)
        shape = (1, 2, 4, 4) if seed else (2, 1, 4, 5)
        x, w = normal(*shape, seed=seed, scale=scale) + 10 * seed, normal(*shape, seed=seed + 1)
        assert_jacobian_bounds(regularizer, x, w, radius)


def test_jacobian_bounds_are_estimates_for_the_weakly_convex_form() -> None:
    x = normal(2, 1, 5, 5)
    bounds = make("foe_weak_l1").jacobian_bounds(x, x, torch.ones(2, dtype=torch.float64))
    assert not bounds.certified


@pytest.mark.parametrize("potential", ["smoothed_l1", "log_cosh"])
def test_single_precision_survives_very_unequal_shares(potential: str) -> None:
    regularizer = FieldsOfExperts(4, 3, potential, weak_convexity=0.5)
    with torch.no_grad():
        regularizer.log_concavity[0] = -100.0
        regularizer.log_concavity[1] = 100.0
    x = normal(2, 1, 6, 6, dtype=torch.float32)
    value, grad = regularizer.value_and_grad(x)
    assert bool(torch.isfinite(value).all() and torch.isfinite(grad).all())
    assert bool(torch.isfinite(regularizer.hessian(x)(x)).all())
    assert all(bool(torch.isfinite(g).all()) for g in regularizer.parameter_vjp(x, x))


def test_frozen_parameters_are_left_out() -> None:
    regularizer = make("foe_weak_l1")
    regularizer.weight.requires_grad_(False)
    x, w = normal(1, 1, 5, 5), normal(1, 1, 5, 5, seed=1)
    mine, automatic = regularizer.parameter_vjp(x, w), Regularizer.parameter_vjp(regularizer, x, w)
    assert len(mine) == len(automatic) == 4
    for a, b in zip(mine, automatic, strict=True):
        torch.testing.assert_close(a, b)


def test_smallest_width_bounds_the_curvature() -> None:
    regularizer = FieldsOfExperts(2, 3, smallest_width=0.1, log_weight=0, log_width=-30).double()
    response = frequency_response(regularizer.kernels().detach())
    assert regularizer.smoothness() <= 1 / 0.1 * float(response.spectrum(torch.ones(2)).max()) * response.factor * (
        1 + 1e-12
    )
    x = normal(1, 1, 5, 5)
    for mine, automatic in zip(
        regularizer.parameter_vjp(x, x), Regularizer.parameter_vjp(regularizer, x, x), strict=True
    ):
        torch.testing.assert_close(mine, automatic)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"potential": "l0"}, "'l0'"),
        ({"weak_convexity": 1.0}, "weak_convexity is 1"),
        ({"weak_convexity": -0.1}, "weak_convexity is -0.1"),
        ({"smallest_width": -1.0}, "smallest_width is -1"),
        ({"smallest_width": math.nan}, "smallest_width is nan"),
        ({"potential": "student_t", "weak_convexity": 0.5}, "'student_t' is not"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FieldsOfExperts(2, 3, **arguments)  # type: ignore[arg-type]
