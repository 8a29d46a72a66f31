"""Certified intervals contain the exact loss: for good and bad adjoints, accurate and crude solutions."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.regularizers.fields_of_experts import FieldsOfExperts
from models.regularizers.total_variation import TotalVariation
from recon.bilevel import SquaredError
from recon.bilevel.certificate import Interval, first_order, goal_oriented, middle_term
from recon.lower_level import LBFGS, Energy, HessianVariation, SquaredL2, WeightedSquaredL2
from recon.operators import Blur
from tests.lower_level.problems import Quadratic, exact_minimizer, make, normal, norms, smooth_image

BATCH = 4
LOSS = SquaredError()


def energy_of(name: str, seed: int) -> Energy:
    """Problems with moduli of strong convexity from 0.1 to 3, and a blur."""
    shape = (BATCH, 1, 5, 6)
    y = smooth_image(*shape, seed=seed) + normal(*shape, seed=seed + 50, scale=0.3)
    spread = 0.3 + 0.4 * (seed % 3)
    if name == "blur":
        return Energy(y, make("tv", seed, spread), Blur(0.6, shape[1:], "reflect"), mu=0.1)
    if name == "weights":
        weights = 0.2 + normal(*shape[1:], seed=seed).abs()
        return Energy(y, make("foe_log_cosh", seed, spread), fidelity=WeightedSquaredL2(weights))
    if name == "strong":
        return Energy(y, make("foe_l1", seed, spread), fidelity=SquaredL2(3.0))
    if name == "foe_student":
        regularizer = make(name, seed, 0.3)
        return Energy(y, regularizer, mu=0.2 + max(0.0, -1 - regularizer.convexity()))
    return Energy(y, make(name, seed, spread))


NAMES = ["foe_l1", "foe_log_cosh", "foe_weak_l1", "foe_weak_log_cosh", "foe_student", "tv", "crr", "wcrr"]
NAMES += ["multi_norm", "multi_weak_max"]
NAMES += ["blur", "weights", "strong"]


def intervals(energy: Energy, x: Tensor, w: Tensor, target: Tensor) -> tuple[Interval, Interval]:
    """The two certificates at x, from what is computed there."""
    residual, slope = energy.grad(x), LOSS.grad(x, target)
    norm = norms(residual)
    error = (norm + energy.rounding(x, norm)) / energy.strong_convexity
    loss = LOSS.value(x, target)
    adjoint = norms(slope - energy.hessian(x)(w))
    variation = energy.regularizer.hessian_variation(w)
    assert variation is not None
    second = goal_oriented(energy, variation, loss, 1.0, w, residual, adjoint, error, x)
    return first_order(loss, norms(slope), error, 1.0), second


def assert_contains(interval: Interval, exact: Tensor, slack: float = 1e-12) -> None:
    tolerance = slack * (1 + exact.abs())
    assert bool((interval.value - interval.below <= exact + tolerance).all())
    assert bool((exact <= interval.value + interval.above + tolerance).all())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 1])
def test_intervals_contain_the_exact_loss(name: str, seed: int) -> None:
    """11 problems x 2 parameters x 7 accuracies x 2 kinds of errors x 5 adjoints x 4 images."""
    energy = energy_of(name, seed)
    x_exact = exact_minimizer(energy, energy.y.clone())
    target = smooth_image(*energy.y.shape, seed=seed)
    exact = LOSS.value(x_exact, target)
    for accuracy in (10.0, 1.0, 0.3, 0.1, 1e-2, 1e-4, 1e-6):
        solved = LBFGS()(energy, energy.y, accuracy).x
        direction = normal(*x_exact.shape, seed=seed + 7)
        moved = x_exact + accuracy * direction / norms(direction).view(-1, 1, 1, 1)
        for x in (solved, moved):
            slope = LOSS.grad(x, target)
            zero = torch.zeros_like(x)
            good = energy.solve_adjoint(x, slope, zero, 1e-10, 10_000).w
            crude = energy.solve_adjoint(x, slope, zero, accuracy, 10_000).w
            for w in (good, crude, zero, slope, 3 * direction):
                for interval in intervals(energy, x, w, target):
                    assert_contains(interval, exact)


@pytest.mark.parametrize("name", NAMES)
def test_goal_oriented_interval_is_of_second_order(name: str) -> None:
    """A tenth of the errors: at most a fiftieth of the length, where the first-order interval has about a tenth."""
    energy = energy_of(name, 0)
    target = smooth_image(*energy.y.shape)
    x_exact = exact_minimizer(energy, energy.y.clone())
    lengths = []
    for accuracy in (1e-3, 1e-4):
        x = x_exact + accuracy * normal(*x_exact.shape, seed=1) / 6
        w = energy.solve_adjoint(x, LOSS.grad(x, target), torch.zeros_like(x), accuracy, 10_000).w
        crude, fine = intervals(energy, x, w, target)
        lengths.append((crude.below + crude.above, fine.below + fine.above))
        assert bool((lengths[-1][1] < 0.5 * lengths[-1][0]).all())
        together = crude.better(fine)
        assert torch.equal(together.value, fine.value)
    assert bool((lengths[1][1] <= lengths[0][1] / 50).all())
    assert bool((lengths[1][0] >= lengths[0][0] / 15).all())


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_intervals_are_attained(sign: float) -> None:
    """Constant errors lie in the kernel of the regularizer, where h'' is exactly mu: no bound can be any smaller."""
    y = smooth_image(2, 1, 5, 6)
    energy = Energy(y, make("foe_l1"))
    x_exact = exact_minimizer(energy, y)
    x = x_exact + 0.3
    target = x - sign * 0.5  # grad g is constant, too
    exact = LOSS.value(x_exact, target)
    crude, fine = intervals(energy, x, torch.zeros_like(x), target)
    for interval in (crude, fine):
        assert_contains(interval, exact)
    if sign < 0:
        torch.testing.assert_close(exact, crude.value + crude.above, rtol=1e-9, atol=0)
        torch.testing.assert_close(exact, fine.value + fine.above, rtol=1e-9, atol=0)
    else:  # from below a half ||e||^2 is given away by the convexity of g
        spare = 0.5 * norms(x - x_exact).square()
        torch.testing.assert_close(exact, crude.value - crude.below + spare, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(exact, fine.value - fine.below + spare, rtol=1e-9, atol=1e-12)


@given(
    relative=st.floats(0, 10),
    lipschitz=st.floats(0, 1e4),
    concavity=st.floats(0, 3),
    residual=st.floats(0, 10),
    modulus=st.floats(0, 3),
    error=st.floats(0, 10),
)
def test_middle_term_is_the_maximum_over_all_errors(
    relative: float, lipschitz: float, concavity: float, residual: float, modulus: float, error: float
) -> None:
    """kappa (||r|| s - (m - c) s^2) over 0 <= s <= eps by brute force, or T eps^2 / 2 if that is smaller."""

    def one(v: float) -> Tensor:
        return torch.tensor([v], dtype=torch.float64)

    variation = HessianVariation(one(relative), one(lipschitz), one(concavity))
    mine = float(middle_term(variation, one(residual), modulus, one(error)))
    s = torch.linspace(0, error, 20_001, dtype=torch.float64)
    first = float((relative * (residual * s - (modulus - concavity) * s * s)).max())
    assert mine == pytest.approx(min(first, 0.5 * lipschitz * error**2), rel=1e-5, abs=1e-7)


def test_middle_term_without_self_concordance_uses_the_lipschitz_constant() -> None:
    infinite, one = torch.full((1,), math.inf, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    variation = HessianVariation(infinite, 6 * one, 0 * one)
    assert float(middle_term(variation, one, 1.0, 0.1 * one)) == pytest.approx(0.03)
    assert float(middle_term(variation, 0 * one, 1.0, 0.1 * one)) == pytest.approx(0.03)
    both = HessianVariation(infinite, infinite, 0 * one)
    assert float(middle_term(both, one, 1.0, 0.1 * one)) == math.inf


def test_better_takes_the_shorter_interval_of_every_image() -> None:
    a = Interval(*(torch.tensor(v) for v in ([1.0, 2.0], [0.1, 9.0], [0.1, 9.0], [0.05, 0.1])))
    b = Interval(*(torch.tensor(v) for v in ([3.0, 4.0], [0.2, 0.2], [0.2, 0.2], [0.01, 0.2])))
    best = a.better(b)
    assert best.value.tolist() == [1.0, 4.0]
    assert best.below.tolist() == pytest.approx([0.1, 0.2])
    assert best.rounding.tolist() == pytest.approx([0.05, 0.2])
    unknown = Interval(*(torch.tensor([v] * 2) for v in (math.nan, math.nan, math.inf, math.nan)))
    assert b.better(unknown).value.tolist() == [3.0, 4.0]
    assert unknown.better(b).value.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("side", [16, 48])
@pytest.mark.parametrize("name", ["foe", "foe_sharp", "weak", "tv"])
def test_single_precision_intervals_contain_the_loss_of_exact_arithmetic(name: str, side: int) -> None:
    """At the floor of single precision, where rounding is all that is left of the error."""
    made = {
        "foe": FieldsOfExperts(24, 5, log_weight=-3, log_width=-4),
        "foe_sharp": FieldsOfExperts(24, 5, log_weight=-3, log_width=-6),
        "weak": FieldsOfExperts(24, 5, log_weight=-3, log_width=-4, weak_convexity=0.9),
        "tv": TotalVariation(-2.5, -4),
    }
    shape = (2, 1, side, side)
    target = 0.5 + 0.3 * smooth_image(*shape)
    y = (target + normal(*shape, scale=0.1)).float()
    regularizer, double = made[name], copy.deepcopy(made[name]).double()
    energy, exact_energy = Energy(y, regularizer), Energy(y.double(), double)
    x_exact = LBFGS()(exact_energy, y.double(), 1e-9).x
    exact = LOSS.value(x_exact, target.float())
    for accuracy in (1e-1, 1e-2, 1e-12):
        x = LBFGS()(energy, y, accuracy).x
        w = energy.solve_adjoint(x, LOSS.grad(x, target.float()), torch.zeros_like(x), accuracy, 10_000).w
        for interval in intervals(energy, x, w, target.float()):
            assert_contains(interval, exact, slack=1e-9)


def test_rounding_of_the_pairing_is_covered() -> None:
    """|<w, r in single - r in double precision>| at adjoint solutions, random and constant w."""
    shape = (2, 1, 64, 64)
    target = 0.5 + 0.3 * smooth_image(*shape, dtype=torch.float32)
    y = target + normal(*shape, scale=0.1, dtype=torch.float32)
    for log_width in (-4, -6):
        regularizer = FieldsOfExperts(24, 5, log_weight=-3, log_width=log_width)
        energy, double = Energy(y, regularizer), Energy(y.double(), copy.deepcopy(regularizer).double())
        for x in (y, LBFGS()(energy, y, 1e-2).x):
            residual = energy.grad(x)
            difference = residual.double() - double.grad(x.double())
            solved = energy.solve_adjoint(x, LOSS.grad(x, target), torch.zeros_like(x), 1e-3, 10_000).w
            for w in (solved, normal(*shape, dtype=torch.float32), torch.ones_like(x)):
                variation = regularizer.hessian_variation(w)
                none = torch.zeros(2, dtype=torch.float64)
                nothing = HessianVariation(none, none, none)
                assert variation is not None
                # no adjoint residual and no error: what is left of the interval is the rounding of the pairing
                interval = goal_oriented(energy, nothing, none, 1.0, w, residual, none, none, x)
                pairing = (w.double() * difference).flatten(1).sum(1).abs()
                assert bool((pairing <= interval.below).all()), (pairing / interval.below).tolist()


def test_exact_for_quadratic_energies() -> None:
    """For quadratic h and exact w the value f~ is exact up to half the squared error."""
    regularizer, y, target = Quadratic(), normal(3, 1, 3, 4), normal(3, 1, 3, 4, seed=1)
    energy = Energy(y, regularizer)
    x_exact, x = regularizer.solve(y), normal(3, 1, 3, 4, seed=2)
    w = torch.linalg.solve(torch.eye(12, dtype=torch.float64) + regularizer.h, (x - target).flatten(1).T).T.view_as(x)
    none = torch.zeros(3, dtype=torch.float64)
    residual = energy.grad(x)
    error = norms(residual) / energy.strong_convexity
    value = LOSS.value(x, target)
    interval = goal_oriented(energy, HessianVariation(none, none, none), value, 1.0, w, residual, none, error, x)
    exact = LOSS.value(x_exact, target)
    torch.testing.assert_close(exact - interval.value, 0.5 * norms(x - x_exact).square(), rtol=1e-9, atol=1e-12)
    assert_contains(interval, exact)


def test_rounding_of_the_weights_is_covered_for_large_images() -> None:
    """The weight of the regularizer, rounded once, changes <w, r> by a multiple of it for any number of pixels."""
    shape = (1, 1, 256, 256)
    x = normal(*shape, scale=0.3, dtype=torch.float32)
    none = torch.zeros(1, dtype=torch.float64)
    nothing = HessianVariation(none, none, none)
    for log_weight in (-2.1, -2.3, -2.7, -3.3):
        regularizer = TotalVariation(log_weight, 0.0)
        energy, double = Energy(x, regularizer), Energy(x.double(), copy.deepcopy(regularizer).double())
        residual = energy.grad(x)
        w = residual  # the worst one: parallel to the gradient of R, which is all of r at x = y
        interval = goal_oriented(energy, nothing, none, 1.0, w, residual, none, none, x)
        difference = residual.double() - double.grad(x.double())
        assert float((w.double() * difference).sum().abs()) <= float(interval.below)


def test_ends_of_intervals_are_rounded_outwards() -> None:
    """A large loss leaves no room for small distances in double precision; the ends still hold it."""
    value, small = torch.tensor([3e7], dtype=torch.float64), torch.tensor([1e-12], dtype=torch.float64)
    assert bool((value - small == value).all())
    interval = Interval(value, small, 2 * small, 3 * small).outwards()
    assert bool((interval.value - interval.below < value).all())
    assert bool((interval.value + interval.above > value).all())
    assert bool((interval.rounding <= torch.maximum(interval.below, interval.above)).all())
    assert bool((interval.below <= 1e-14 * value).all())


def test_a_regularizer_with_one_of_the_two_constants_has_an_interval() -> None:
    """kappa is enough: for rounding errors of x in the Hessian, T <= kappa (L + c) stands in."""
    energy = energy_of("foe_l1", 0)
    target = smooth_image(*energy.y.shape)
    exact = LOSS.value(exact_minimizer(energy, energy.y.clone()), target)
    x = LBFGS()(energy, energy.y, 1e-2).x
    slope = LOSS.grad(x, target)
    w = energy.solve_adjoint(x, slope, torch.zeros_like(x), 1e-4, 1000).w
    known = energy.regularizer.hessian_variation(w)
    assert known is not None
    without = HessianVariation(known.relative, torch.full_like(known.lipschitz, math.inf), known.concavity)
    residual = energy.grad(x)
    error = (norms(residual) + energy.rounding(x, norms(residual))) / energy.strong_convexity
    adjoint = norms(slope - energy.hessian(x)(w))
    interval = goal_oriented(energy, without, LOSS.value(x, target), 1.0, w, residual, adjoint, error, x)
    assert bool(torch.isfinite(interval.above).all())
    assert_contains(interval, exact)
    size = energy.adjoint_rounding(0 * x, w, adjoint, without.lipschitz)
    assert bool(torch.isfinite(size).all())
