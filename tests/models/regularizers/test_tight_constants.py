"""Constants of the regularizers at images where they are attained: no factor of them can be made smaller."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.regularizers.fields_of_experts import FieldsOfExperts
from models.regularizers.potentials import POTENTIALS
from models.regularizers.total_variation import TotalVariation
from recon.lower_level import Regularizer
from tests.lower_level.problems import norms

SIZE = 96


def checkerboard(size: int = SIZE) -> Tensor:
    rows, cols = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return (1.0 - 2.0 * ((rows + cols) % 2)).double()[None, None]


def third(regularizer: Regularizer, x: Tensor, e: Tensor, w: Tensor, h: float = 1e-6) -> Tensor:
    """R'''(x)[e, w, .] by central differences of Hessian products."""
    return (regularizer.hessian(x + h * e)(w) - regularizer.hessian(x - h * e)(w)) / (2 * h)


def within(bound: float, truth: float, share: float) -> None:
    assert truth <= bound * (1 + 1e-6), f"the bound {bound:.9g} is below the truth {truth:.9g}"
    assert truth >= share * bound, f"{truth:.9g} attains only {truth / bound:.3f} of the bound"


# --- total variation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("log_weight", "log_smoothing"), [(-1.0, -0.5), (0.7, 0.4)])
def test_total_variation_attains_its_constants_on_a_checkerboard(log_weight: float, log_smoothing: float) -> None:
    """Where ||D|| = sqrt(8), and |Dx| = nu/2 everywhere inside, along De: the third derivative is largest there."""
    tv, e = TotalVariation(log_weight, log_smoothing).double(), checkerboard()
    nu, diagonal = math.exp(log_smoothing), 2 * math.sqrt(2)
    within(tv.smoothness(), float(norms(tv.hessian(0 * e)(e)) / norms(e)), 0.97)
    variation = tv.hessian_variation(e)
    assert variation is not None
    moved = third(tv, 0.5 * nu / diagonal * e, e, e)
    within(float(variation.lipschitz), float(norms(moved) / norms(e)), 0.97)
    # self-concordance, |R'''[w, e, e]| <= kappa <e, R'' e>, is attained where |Dx| = nu / sqrt(2)
    ratios = []
    for z in (0.4, math.sqrt(0.5), 1.0, 2.0):
        x = z * nu / diagonal * e
        ratios.append(float((third(tv, x, e, e) * e).sum().abs() / (tv.hessian(x)(e) * e).sum()))
    within(float(variation.relative), max(ratios), 0.97)
    assert float(variation.concavity) == 0


def test_the_columns_of_the_mixed_derivative_of_total_variation_move_as_said() -> None:
    """The weight's at x = 0, where R'' is largest; that of the width there, too: both at once, their joint norm."""
    tv, w = TotalVariation(-1.0, -0.5).double(), checkerboard()
    h = 1e-4
    bounds = tv.jacobian_bounds(0 * w, w, torch.full((1,), h * float(norms(w)), dtype=torch.float64))
    moved = torch.stack([g.double() for g in tv.parameter_vjp(h * w, w)])
    within(float(bounds.variation), float(moved.norm()) / (h * float(norms(w))), 0.96)
    columns = torch.stack([g / norms(w) for g in tv.parameter_vjp(h * w, w)])  # J is along w there
    within(float(bounds.norm), float(columns.norm()), 0.96)


# --- fields of experts -----------------------------------------------------------------------------------------------


def one_filter(**options: object) -> FieldsOfExperts:
    """A single filter of 2x2 pixels, a checkerboard: the image of the highest frequency attains its norm, 4 a."""
    regularizer = FieldsOfExperts(1, 2, **options).double()  # type: ignore[arg-type]
    with torch.no_grad():
        regularizer.weight.copy_(0.5 * torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]]))
    return regularizer


@pytest.mark.parametrize("rho", [0.3, 0.9])
@pytest.mark.parametrize("potential", ["smoothed_l1", "log_cosh"])
def test_weak_convexity_is_attained_between_the_widths(rho: float, potential: str) -> None:
    """Far beyond nu and far below omega, psi'' = -v: all of rho but for the bound of the filter's norm."""
    foe, e = one_filter(potential=potential, log_weight=0.0, log_width=-9.0, weak_convexity=rho), checkerboard()
    _, _, width, omega = (float(t.flatten()[0]) for t in foe.current())
    x = 0.5 * math.sqrt(width * omega) * e
    curvature = float((foe.hessian(x)(e) * e).sum() / norms(e).square())
    assert curvature < 0
    within(-foe.convexity(), -curvature, 0.92)
    within(foe.smoothness(), float((foe.hessian(0 * e)(e) * e).sum() / norms(e).square()), 0.95)


@pytest.mark.parametrize("potential", ["smoothed_l1", "log_cosh", "student_t"])
def test_the_variation_of_one_filter_is_attained(potential: str) -> None:
    foe, e = one_filter(potential=potential, log_weight=-0.7, log_width=-0.3), checkerboard()
    nu = math.exp(-0.3)
    variation = foe.hessian_variation(e)
    assert variation is not None
    lipschitz, ratios = [], []
    for u in torch.linspace(0.05, 3.0, 60).tolist():
        x = u * nu / 2 * e
        moved = third(foe, x, e, e)
        lipschitz.append(float(norms(moved) / norms(e)))
        ratios.append(float((moved * e).sum().abs() / (foe.hessian(x)(e) * e).sum()))
    within(float(variation.lipschitz), max(lipschitz), 0.95)
    if math.isfinite(POTENTIALS[potential].self_concordance):
        within(float(variation.relative), max(ratios), 0.95)


def test_student_t_is_as_concave_as_it_says() -> None:
    foe, e = one_filter(potential="student_t", log_weight=0.4, log_width=-0.6), checkerboard()
    x = math.sqrt(3) * math.exp(-0.6) / 2 * e
    curvature = float((foe.hessian(x)(e) * e).sum() / norms(e).square())
    within(-foe.convexity(), -curvature, 0.95)


def test_the_variation_of_the_weak_form_adds_both_parts() -> None:
    """At equal widths both third derivatives count alike in the bound, though they cancel in truth."""
    foe, w = one_filter(log_weight=0.0, log_width=-2.0, weak_convexity=0.5), checkerboard()
    plain = one_filter(log_weight=0.0, log_width=-2.0)
    weak, convex = foe.hessian_variation(w), plain.hessian_variation(w)
    assert weak is not None
    assert convex is not None
    nu, omega = (float(t.flatten()[0]) for t in foe.current()[2:])
    assert float(weak.lipschitz) == pytest.approx(float(convex.lipschitz) * (1 + (nu / omega) ** 2), rel=1e-6)
    assert float(weak.relative) == pytest.approx(float(convex.relative), rel=1e-9)
    assert float(weak.concavity) == pytest.approx(0.5 * (1 + nu / omega), rel=1e-6)
