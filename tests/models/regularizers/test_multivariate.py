"""Potentials of four responses: their formulas, every constant, and the regularizers made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from models import FieldsOfExperts, InitialFilters, MultivariateFieldsOfExperts
from models.regularizers.group_potentials import GROUP_POTENTIALS, GroupPotential, SoftMaximum, packed_product
from models.regularizers.potentials import LogCosh, SmoothedL1
from models.training.callbacks import profile_curves
from tests.lower_level.problems import make, normal, norms, perturb, regularizer_hessians
from tests.lower_level.regularizer_checks import assert_hessian_bounds, assert_hessian_variation
from tests.models.regularizers.test_tight_constants import third, within

NAMES = ["multi_max", "multi_norm", "multi_weak_max", "multi_weak_norm"]
ROWS, COLUMNS = np.triu_indices(4)


def samples(count: int = 4000) -> Tensor:
    """Responses of four filters from 1e-3 to 30, ``(4, count)``: many alike, many apart."""
    size = torch.exp(torch.linspace(-7, 3.4, count, dtype=torch.float64))
    u = normal(4, count) * size
    u[1, ::2] = u[0, ::2] + 0.7 * normal(len(u[0, ::2]), seed=1)
    u[2:, ::3] = 0
    return u


def dense(potential: type[GroupPotential], u: Tensor, nu: Tensor) -> Tensor:
    """The Hessians, ``(count, 4, 4)``."""
    packed = potential.curvature(u, nu)
    full = torch.zeros(u.shape[1], 4, 4, dtype=u.dtype)
    full[:, ROWS, COLUMNS] = packed.T
    full[:, COLUMNS, ROWS] = packed.T
    return full


def one(u: Tensor, potential: type[GroupPotential], nu: float = 1.0) -> Tensor:
    return potential.value(u[:, None], torch.tensor([[nu]], dtype=u.dtype))[0, 0]


@pytest.mark.parametrize("name", GROUP_POTENTIALS)
@pytest.mark.parametrize("width", [0.3, 5.0])
def test_derivatives_are_those_of_automatic_differentiation(name: str, width: float) -> None:
    potential, nu = GROUP_POTENTIALS[name], torch.tensor([[width]], dtype=torch.float64)
    u = samples(300)
    slope, curvature = potential.slope(u, nu), dense(potential, u, nu)
    value, again = potential.value_and_slope(u, nu)
    torch.testing.assert_close(value, potential.value(u, nu), rtol=1e-13, atol=1e-300)
    torch.testing.assert_close(again, slope, rtol=0, atol=0)
    for i in range(u.shape[1]):
        at = u[:, i].requires_grad_()
        (grad,) = torch.autograd.grad(one(at, potential, width), at)
        torch.testing.assert_close(slope[:, i], grad, rtol=1e-11, atol=1e-14)
        hessian = torch.autograd.functional.hessian(lambda t: one(t, potential, width), at.detach())
        torch.testing.assert_close(curvature[i], hessian, rtol=1e-9, atol=1e-12)
    v = normal(1, 8, 6)
    packed = potential.curvature(normal(1, 8, 6, seed=3), nu.expand(2, 1))
    expected = [torch.einsum("nij,jn->in", dense(potential, normal(1, 8, 6, seed=3)[0, g], nu), v[0, g])
                for g in (slice(4), slice(4, 8))]  # fmt: skip
    torch.testing.assert_close(packed_product(packed, v)[0], torch.cat(expected), rtol=1e-12, atol=1e-14)


def test_special_cases_are_potentials_of_one_variable() -> None:
    """Of equal responses the soft maximum is nu log cosh; of one that is not zero the norm is the smoothed 1-norm."""
    t, nu = torch.logspace(-9, 3, 200, dtype=torch.float64)[None], torch.tensor([[0.7]], dtype=torch.float64)
    equal = torch.tensor([[1.0], [-1.0], [1.0], [1.0]], dtype=torch.float64) * t
    torch.testing.assert_close(SoftMaximum.value(equal, nu), LogCosh.value(t, nu), rtol=1e-13, atol=0)
    torch.testing.assert_close(SoftMaximum.slope(equal, nu)[1:2], -LogCosh.slope(t, nu) / 4, rtol=1e-13, atol=0)
    alone = torch.cat([0 * t, t, 0 * t, 0 * t])
    norm = GROUP_POTENTIALS["smoothed_norm"]
    torch.testing.assert_close(norm.value(alone, nu), SmoothedL1.value(t, nu), rtol=1e-13, atol=0)
    torch.testing.assert_close(norm.slope(alone, nu)[1:2], SmoothedL1.slope(t, nu), rtol=1e-13, atol=0)


def test_the_soft_maximum_is_near_the_max_norm() -> None:
    u, nu = samples(), torch.tensor([[0.3]], dtype=torch.float64)
    value, top = SoftMaximum.value(u, nu)[0], u.abs().amax(0)
    assert bool((value <= top).all())
    assert bool((value >= top - 0.3 * math.log(8) - 1e-12).all())
    far = torch.tensor([[2.0], [0.0], [0.1], [0.0]], dtype=torch.float64)
    assert float(SoftMaximum.value(far, nu / 10)) == pytest.approx(2 - 0.03 * math.log(8), rel=1e-12)


@pytest.mark.parametrize("name", GROUP_POTENTIALS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_responses_lose_nothing(name: str, dtype: torch.dtype) -> None:
    """A few units in the last place of psi', and of sup psi'' |u|, which the model of rounding errors rests on."""
    potential, eps = GROUP_POTENTIALS[name], torch.finfo(dtype).eps
    for width in (0.01, 1.0, 3e3):
        u, nu = samples().to(dtype), torch.tensor([[width]], dtype=dtype)
        found = potential.value_and_slope(u, nu)
        t = u.numpy().astype(np.longdouble) / np.longdouble(nu.item())
        if name == "soft_maximum":
            top = np.abs(t).max(0)
            total = ((np.exp(t - top) + np.exp(-t - top)) / 2).sum(0)
            excess = np.log1p(2 * (np.sinh(np.minimum(np.abs(t), 1) / 2) ** 2).mean(0))
            value = nu.item() * np.where(top < 1, excess, top + np.log(total / 4))
            slope = -np.sign(t) * np.exp(np.abs(t) - top) * np.expm1(-2 * np.abs(t)) / 2 / total
        else:
            square = (t**2).sum(0)
            root = np.sqrt(1 + square)
            value, slope = nu.item() * square / (root + 1), t / root
        assert bool((np.abs(found[0].numpy() - value) <= 20 * eps * value).all())
        bound = 8 * eps * np.maximum(np.abs(slope), potential.curvature_bound * np.abs(t))
        assert bool((np.abs(found[1].numpy() - slope) <= bound).all())


# --- constants -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GROUP_POTENTIALS)
def test_constants_of_the_potentials(name: str) -> None:
    """|D^3[a, a, w]| <= M |w| D^2[a, a] and <= third_bound |w|, for the norm of w that `joint` says."""
    potential, nu, u = GROUP_POTENTIALS[name], torch.ones(1, 1, dtype=torch.float64), samples()
    assert float(potential.slope(u, nu).norm(dim=0).max()) <= potential.slope_bound * (1 + 1e-12)
    here, used = dense(potential, u, nu), {"third": 0.0, "relative": 0.0}
    values = torch.linalg.eigvalsh(here)
    assert float(values.min()) >= -1e-13
    assert 0.9 * potential.curvature_bound <= float(values.max()) <= potential.curvature_bound * (1 + 1e-12)
    for seed, h in enumerate([1e-5] * 12):
        w = normal(4, u.shape[1], seed=seed)
        w = w.sign() if seed % 2 else torch.where(torch.arange(4)[:, None] < 2, w, 0)
        w = w / potential.joint(w.abs().T)
        moved = (dense(potential, u + h * w, nu) - dense(potential, u - h * w, nu)) / (2 * h)
        used["third"] = max(used["third"], float(torch.linalg.eigvalsh(moved).abs().max()))
        sharp = potential.self_concordance * here
        for sign in (1, -1):
            assert float(torch.linalg.eigvalsh(sharp + sign * moved).min()) >= -1e-9
    assert 0.8 * potential.third_bound <= used["third"] <= potential.third_bound * (1 + 1e-7)


def two_directions(potential: str, log_width: float, rho: float = 0.0) -> MultivariateFieldsOfExperts:
    """c_1, c_2 = a +- b with horizontal and vertical differences a, b; the other two are zero."""
    made = MultivariateFieldsOfExperts(
        4, 2, potential, 0.0, 0.3, log_width, weak_convexity=rho, initial_filters=InitialFilters("normal")
    ).double()
    a = 0.25 * torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    with torch.no_grad():
        made.weight.zero_()
        made.weight[0], made.weight[1] = a + a.T, a - a.T
    return made


def stripes(size: int = 96) -> tuple[Tensor, Tensor]:
    """Images x, e with a * x = +-1, b * x = 0 and a * e = 0, b * e = +-1."""
    x = (0.5 - torch.arange(size, dtype=torch.float64) % 2).expand(1, 1, size, size).clone() * 2
    return x, x.mT.clone()


def test_the_curvature_of_the_soft_maximum_is_attained_where_two_responses_are_equal() -> None:
    regularizer, (x, e) = two_directions("soft_maximum", -1.0), stripes()
    curvature = float((regularizer.hessian(30 * x)(e) * e).sum() / norms(e).square())
    within(regularizer.smoothness(), curvature, 0.95)


def test_the_weak_convexity_of_the_soft_maximum_is_attained_between_the_widths() -> None:
    """|u_1| - |u_2| far beyond nu and far below omega, both far beyond omega: psi'' = -v along (1, -1)."""
    regularizer, (x, e) = two_directions("soft_maximum", -16.0, 0.9), stripes()
    _, _, width, omega = (float(t.flatten()[0]) for t in regularizer.current())
    at = 40 * omega * x + 0.5 * math.sqrt(width * omega) * e
    curvature = float((regularizer.hessian(at)(e) * e).sum() / norms(e).square())
    assert curvature < 0
    within(-regularizer.convexity(), -curvature, 0.9)


def test_the_variation_of_the_soft_maximum_is_attained() -> None:
    regularizer, (x, e) = two_directions("soft_maximum", -0.3), stripes()
    nu, variation = math.exp(-0.3), regularizer.hessian_variation(stripes()[1])
    assert variation is not None
    lipschitz, ratios = [], []
    for gap in torch.linspace(0.2, 6, 40).tolist():
        at = 30 * x + 0.5 * nu * gap * e
        moved = third(regularizer, at, e, e)
        lipschitz.append(float(norms(moved) / norms(e)))
        ratios.append(float((moved * e).sum().abs() / (regularizer.hessian(at)(e) * e).sum()))
    within(float(variation.lipschitz), max(lipschitz), 0.95)
    within(float(variation.relative), max(ratios), 0.95)


def test_the_constants_of_the_smoothed_norm_are_attained() -> None:
    """One filter that is not zero: the smoothed 1-norm, whose constants are those of the norm."""
    many = two_directions("smoothed_norm", -0.3)
    alone = FieldsOfExperts(1, 2, "smoothed_l1", 0.0, 0.3, -0.3).double()
    with torch.no_grad():
        many.weight[1] = 0
        alone.weight.copy_(many.weight[:1])
    w = stripes(12)[0]
    mine, known = many.hessian_variation(w), alone.hessian_variation(w)
    assert mine is not None
    assert known is not None
    assert many.smoothness() == pytest.approx(alone.smoothness(), rel=1e-12)
    torch.testing.assert_close(mine.lipschitz, known.lipschitz)
    torch.testing.assert_close(mine.relative, known.relative)
    with torch.no_grad():  # two equal filters: both count
        many.weight[1] = many.weight[0]
    twice = many.hessian_variation(w)
    assert twice is not None
    torch.testing.assert_close(twice.relative, 2**0.5 * known.relative)


@pytest.mark.parametrize("potential", GROUP_POTENTIALS)
@pytest.mark.parametrize("rho", [0.05, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.0, 1.0, 5.0])
def test_weak_convexity_holds_for_all_parameters(rho: float, potential: str, spread: float) -> None:
    for seed in range(4):
        made = MultivariateFieldsOfExperts(8, 3, potential, log_weight=0, log_width=-1, weak_convexity=rho).double()
        perturb(made, seed, spread)
        x = torch.cat([normal(1, 1, 6, 6, seed=seed, scale=s) for s in (1e-3, 0.1, 1.0, 30.0)])
        hessians = regularizer_hessians(made, x)
        low = float(torch.linalg.eigvalsh((hessians + hessians.mT) / 2).min())
        assert low >= -rho - 1e-13 * float(hessians.abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_bounds_of_the_hessian_and_of_its_variation(name: str) -> None:
    for seed, (spread, scale, step) in enumerate([(0.3, 0.1, 0.1), (1.0, 1.0, 1.0), (0.3, 3.0, 0.1), (2.0, 0.3, 3.0)]):
        regularizer = make(name, seed, spread)
        x, w = normal(2, 2, 5, 6, seed=seed, scale=scale), normal(2, 2, 5, 6, seed=seed + 1)
        assert_hessian_bounds(regularizer, x)
        for e in (normal(2, 2, 5, 6, seed=seed + 2), w, x - w):
            move = step * e / norms(e).view(-1, 1, 1, 1)
            assert_hessian_variation(regularizer, x, w, move, rtol=1e-4)


def test_the_concave_part_is_needed_in_the_variation() -> None:
    regularizer, (x, e) = two_directions("soft_maximum", -6.0, 0.9), stripes(20)
    w, move = e, 0.4 * e
    at = 5 * x + 0.5 * e
    assert_hessian_variation(regularizer, at, w, move)
    variation = regularizer.hessian_variation(w)
    assert variation is not None
    without = FieldsOfExperts.hessian_variation(two_directions("soft_maximum", -6.0), w)
    assert without is not None
    assert float(variation.lipschitz) > float(without.lipschitz)
    assert float(variation.concavity) > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_the_mixed_derivative_is_estimated_and_says_so(name: str) -> None:
    x = normal(2, 1, 5, 5)
    assert not make(name).jacobian_bounds(x, x, torch.ones(2, dtype=torch.float64)).certified


# --- the class -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filters", [1, 3, 6, 13])
def test_numbers_of_filters_that_are_no_groups_are_refused(filters: int) -> None:
    with pytest.raises(ValueError, match=f"filters is {filters}, but must be a multiple of 4"):
        MultivariateFieldsOfExperts(filters, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"potential": "smoothed_l1"}, "'smoothed_l1'"), ({"weak_convexity": 1.0}, "weak_convexity is 1")],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultivariateFieldsOfExperts(4, 3, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'soft_maximum'"):
        FieldsOfExperts(4, 3, "soft_maximum")


def test_groups_have_unit_norm_in_the_mean_and_share_it_as_they_like() -> None:
    made = MultivariateFieldsOfExperts(8, 3, unit_norm=True).double()
    with torch.no_grad():
        made.weight[1] *= 5
    norm = made.kernels().detach().flatten(1).norm(dim=1)
    torch.testing.assert_close(norm.view(2, 4).square().mean(1), torch.ones(2, dtype=torch.float64))
    assert float(norm[1]) > 1.8 > 0.5 > float(norm[0])
    x = normal(1, 1, 6, 6)
    before = made(x).detach()
    with torch.no_grad():
        made.weight[:4] *= 7  # a common factor means nothing
    torch.testing.assert_close(made(x), before)


def test_who_is_in_a_group_matters_and_in_which_place_does_not() -> None:
    made, x = make("multi_max"), normal(1, 1, 6, 6)
    before = made(x).detach()
    with torch.no_grad():
        made.weight[:4] = made.weight[[2, 0, 3, 1]]
    torch.testing.assert_close(made(x), before)
    with torch.no_grad():
        made.weight[[0, 4]] = made.weight[[4, 0]]
    assert float((made(x).detach() - before).abs()) > 1e-3 * float(before)


def test_curves_of_profiles_are_those_of_one_response_alone() -> None:
    many = MultivariateFieldsOfExperts(8, 3, "smoothed_norm")
    alone = FieldsOfExperts(8, 3)  # of the same weights and widths
    u = torch.linspace(-1, 1, 9)
    torch.testing.assert_close(profile_curves(many, u), profile_curves(alone, u))
    torch.testing.assert_close(profile_curves(alone, u), alone.value(u.expand(1, 8, 9), alone.current()[1:])[0])


@pytest.mark.parametrize("kernels", ["best", "off"])
def test_gradients_in_single_precision_err_as_little_as_said(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled kernels and torch, where psi' is far smaller than its terms, and where it is not."""
    monkeypatch.setenv("RECON_KERNELS", kernels)
    for seed, scale in enumerate([1e-4, 0.1, 3.0]):
        single = make("multi_weak_max", seed, dtype=torch.float32)
        double = make("multi_weak_max", seed, dtype=torch.float32).double()
        x = normal(2, 1, 12, 13, seed=seed, scale=scale).float()
        error = norms(single.grad(x).double() - double.grad(x.double()))
        bound = 2**-24 * (single.rounding_gain() * norms(x.double()) + 8 * norms(double.grad(x.double())))
        assert bool((error <= bound).all()), (error / bound).tolist()
