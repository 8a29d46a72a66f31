"""Certificates where they are attained: no term of a bound can be left out or made smaller (benchmarks.mutations)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from recon.bilevel import Accuracy, BilevelObjective, NegativePSNR, SquaredError
from recon.bilevel.certificate import Interval, first_order, goal_oriented, middle_term
from recon.bilevel.evaluation import Adjoint
from recon.bilevel.hypergradient import (
    ErrorBound,
    Errors,
    _estimated_lipschitz,
    descent_step,
    error_bound,
    truncated_adjoint,
)
from recon.lower_level import Energy, HessianVariation, JacobianBounds, KullbackLeibler, Solution, Status
from recon.lower_level.grade import Grade
from recon.operators import LinearOperator
from tests.bilevel.methods.line import Exponential, Line, number, pixel

TIGHT = 1e-9
LOSS = SquaredError()


def within(bound: float, truth: float, share: float = 1.0) -> None:
    """The bound holds, and ``share`` of it is attained."""
    assert truth <= bound * (1 + TIGHT), f"the bound {bound:.9g} is below the truth {truth:.9g}"
    assert truth >= share * bound * (1 - TIGHT), f"{truth:.9g} attains only {truth / bound:.3f} of the bound"


# --- hypergradients --------------------------------------------------------------------------------------------------


def omega_and_truth(line: Line, eps: float, w: float, residual: float, mu: float) -> tuple[float, float, float]:
    """omega at x = eps for the minimizer 0 (of h with h'' = 1 + mu there), the true error, and the bound of |z|."""
    x, modulus = pixel(eps), 1 + mu
    energy = Energy(pixel(0.0), line, mu=mu)
    assert float(energy.grad(pixel(0.0)).abs()) == 0
    curvature = float(energy.hessian(x)(pixel(1.0)))
    target = eps - curvature * w - residual  # r_w = grad g(x) - B(x) w
    exact = -target / modulus  # w^ = grad g(0) / B(0)
    found = error_bound(energy, 1.0, x, pixel(w), number(eps), number(abs(residual)))
    assert found.basis is Grade.PROVED
    truth = abs((line.c - line.k * eps) * w - line.c * exact)
    return float(found.omega), truth, float(found.size)


@pytest.mark.parametrize("mu", [0.0, 0.5])
@pytest.mark.parametrize(
    ("k", "t", "eps", "w", "residual"),
    [
        (0.0, 0.0, 0.1, -2.0, 0.0),  # (L_g eps) ||J|| / mu alone
        (0.0, 0.0, 1e-9, -2.0, -0.1),  # r_w
        (0.0, 2.0, 0.1, -50.0, 0.0),  # T(w) eps, fifty times as large as L_g eps
        (0.5, 0.0, 0.1, -50.0, 0.0),  # L_J(w) eps
        (0.5, 2.0, 0.1, -2.0, -0.1),  # all of them
    ],
)
def test_every_term_of_omega_is_attained(k: float, t: float, eps: float, w: float, residual: float, mu: float) -> None:
    omega, truth, size = omega_and_truth(Line(3.0, k, t), eps, w, residual, mu)
    within(omega, truth, 1.0)
    within(size, 3.0 * abs(w), 1.0)


def one_image(loss: NegativePSNR | SquaredError, eps: float, residual: float) -> tuple[float, float]:
    """omega of the objective of one pixel, x^ = 0, x = eps, x* = eps - 1, and the true error of z."""
    line, target = Line(3.0), pixel(eps - 1)
    objective = BilevelObjective(line, target, pixel(0.0), loss=loss)
    x, w = pixel(eps), pixel(1 - residual)
    value = loss.value(x, target)
    at = replace(
        objective.start(),
        x=x,
        adjoint=Adjoint(w, number(residual), number(residual)),
        error=number(eps),
        slope=number(1.0),
        weight=loss.outer_slope(value, target),
    )
    found = objective.hypergradient(at, Accuracy(1.0, 1.0), bound=True)
    exact = loss.outer_slope(loss.value(pixel(0.0), target), target) * 3.0 * (1 - eps)
    return found.error, abs(float(found.z) + float(exact))


def test_the_change_of_the_outer_slope_is_part_of_omega() -> None:
    """Not attained: where dg/dq grows, w^ shrinks by as much as L_g eps counts. Without it omega is too small."""
    error, truth = one_image(NegativePSNR(), 0.2, 1.0)
    within(error, truth, 0.6)
    assert truth > 1.04 * 20 / math.log(10) * 3.0 * (0.2 + 1.0)  # |dg/dq| omega alone
    error, truth = one_image(SquaredError(), 1e-12, 0.1)
    within(error, truth, 1.0)


def test_the_bound_of_a_product_is_attained() -> None:
    """|W^ z^ - W z| for W^ = W + 0.5, z^ = z + 1, and the mean over the images."""
    errors, one = Errors(), number(1.0)
    for size, omega in ((2.0, 1.0), (4.0, 3.0)):
        found = ErrorBound(omega * one, size * one, 0.25 * one, Grade.PROVED, 0 * one)
        errors.add(found, 3.0 * one, torch.stack([0.5 * one, 0.5 * one]), torch.float64)
    result = errors.hypergradient(torch.zeros(1), BilevelObjective(Line(), pixel(0.0), pixel(0.0)).start())
    assert result.error == pytest.approx(((3.5 * 3 - 3 * 2) + (3.5 * 7 - 3 * 4)) / 2, rel=1e-12)
    assert result.rounding == pytest.approx(3.5 * 0.25, rel=1e-12)


def test_the_outer_slope_is_bounded_on_the_whole_interval() -> None:
    """dg/dq at the lower end of the interval of q, and at the upper one for a loss whose slope falls there."""
    line, target = Line(), pixel(-1.0)
    loss = NegativePSNR()
    objective = BilevelObjective(line, target, pixel(0.0), loss=loss)
    for eps in (1e-6, 1e-3, 0.2):
        x = pixel(0.0)
        weight = loss.outer_slope(loss.value(x, target), target)
        at = replace(objective.start(), x=x, error=number(eps), slope=number(1.0), weight=weight)
        bound = float(objective._weight_error(slice(0, 1), at)[0])
        truth = max(
            abs(float(loss.outer_slope(loss.value(pixel(s * eps), target), target) - weight)) for s in (-1.0, 1.0)
        )
        within(bound, truth, 1 - 2 * eps)


def test_steps_of_descent_are_no_longer_than_one_over_the_smoothness() -> None:
    for t in (0.9, 1.0, 2.0, 2.9, 3.0, 6.9):
        energy = Energy(pixel(0.0), Line(t=t))
        step = descent_step(energy)
        assert 0.5 / energy.smoothness < step <= 1 / energy.smoothness


def test_the_truncated_adjoint_is_as_biased_as_it_says() -> None:
    """||w - B^{-1} b|| = (1 - mu/L)^K ||b|| / mu where B = mu."""
    energy = Energy(pixel(0.0), Line(t=3.0))
    w = truncated_adjoint(energy, pixel(0.0), pixel(1.0), 5).w
    assert abs(1 - float(w)) == pytest.approx((1 - 1 / 4) ** 5, rel=1e-12)


# --- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("smoothness", [1.0, 4.0])
def test_first_order_intervals_are_attained(sign: float, smoothness: float) -> None:
    """g = L/2 (x - x*)^2, x^ = x + sign eps."""
    slope, eps = 3.0, 1e-6 if sign < 0 else 0.5
    value = slope**2 / (2 * smoothness)
    exact = 0.5 * smoothness * (slope / smoothness + sign * eps) ** 2
    interval = first_order(number(value), number(slope), number(eps), smoothness)
    if sign > 0:
        assert value + float(interval.above) == pytest.approx(exact, rel=1e-12)
    else:
        within(float(interval.below), value - exact, 1 - 1e-5)


def second_order(
    energy: Energy, x: float, minimizer: float, w: float, residual: float
) -> tuple[float, float, float, float]:
    """f - f~ for the exact loss f and the centre f~ of the interval, low, high, and (L_g/2) eps^2."""
    at, adjoint = pixel(x), pixel(w)
    eps = abs(x - minimizer)
    target = pixel(x - float(energy.hessian(at)(adjoint)) - residual)
    variation = energy.regularizer.hessian_variation(adjoint)
    assert variation is not None
    interval = goal_oriented(
        energy, variation, LOSS.value(at, target), 1.0, adjoint, energy.grad(at), number(abs(residual)), number(eps), at
    )
    exact = LOSS.value(pixel(minimizer), target)
    return float(exact - interval.value), float(interval.below), float(interval.above), 0.5 * eps**2


@pytest.mark.parametrize(
    ("t", "w", "residual"), [(0.0, 0.0, -0.7), (2.0, -3.0, 0.0), (2.0, -3.0, -0.7), (0.0, -0.5, 0.0)]
)
def test_goal_oriented_intervals_are_attained(t: float, w: float, residual: float) -> None:
    """Above, term by term: ||r_w|| eps, T(w) eps^2 / 2, (L_g/2) eps^2, of R'' that is a straight line."""
    energy = Energy(pixel(0.0), Line(t=t))
    difference, _, above, _ = second_order(energy, 0.4, 0.0, w, residual)
    assert above == pytest.approx(difference, rel=1e-12)


@pytest.mark.parametrize(("t", "w", "residual"), [(0.0, 0.0, 5e3), (2.0, 3e3, 0.0), (2.0, 2e3, 3e3)])
def test_goal_oriented_intervals_are_attained_below(t: float, w: float, residual: float) -> None:
    """The same with the other signs, large against (L_g/2) eps^2, which is above only."""
    energy = Energy(pixel(0.0), Line(t=t))
    difference, below, _, curved = second_order(energy, 0.4, 0.0, w, residual)
    within(below, -difference + curved, 0.99999)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_self_concordant_bound_is_attained_by_exponentials(sign: float) -> None:
    """|R'''| = m R'': <(B_bar - B) w, e> tends to kappa <e, B_bar_R e> where m |e| is large: 0.95 of it at 20."""
    a, m = 1e-6, 20.0
    energy = Energy(pixel(a / m), Exponential(a, m, 1.0))
    assert abs(float(energy.grad(pixel(0.0)))) < 1e-20
    difference, below, above, curved = second_order(energy, 1.0, 0.0, sign * 1e3, 0.0)
    if sign > 0:
        within(below, -difference + curved, 0.94)
    else:
        within(above, difference, 0.94)


@pytest.mark.parametrize("concavity", [0.0, 0.3, 0.9, 1.0, 1.5])
@pytest.mark.parametrize("error", [0.2, 2.0, 50.0])
@pytest.mark.parametrize("lipschitz", [math.inf, 0.3])
def test_the_middle_term_is_the_supremum(concavity: float, error: float, lipschitz: float) -> None:
    """sup over s <= error of kappa (||r|| s - (q - c) s^2), or T error^2 / 2."""
    kappa, residual, modulus = 2.0, 1.5, 0.9
    s = torch.linspace(0, error, 2_000_001, dtype=torch.float64)
    largest = float((kappa * (residual * s - (modulus - concavity) * s.square())).max())
    expected = min(largest, 0.5 * lipschitz * error**2)
    variation = HessianVariation(number(kappa), number(lipschitz), number(concavity))
    found = float(middle_term(variation, number(residual), modulus, number(error)))
    assert found == pytest.approx(expected, rel=1e-9)


class Given:
    """A solver that returns a given point, with the error that is certified there."""

    def __init__(self, x: float) -> None:
        self.x = x

    def __call__(self, energy: Energy, x0: Tensor, accuracy: float | Tensor) -> Solution:
        x = torch.full_like(x0, self.x)
        grad = energy.grad(x)
        error = grad.flatten(1).norm(dim=1) / energy.require_strong_convexity()
        zero = torch.zeros(len(x0), dtype=torch.int64)
        return Solution(x, grad, error, zero + int(Status.CONVERGED), zero)


@pytest.mark.parametrize("loss", [SquaredError(), NegativePSNR()])
@pytest.mark.parametrize("goal_oriented", [False, True])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_interval_of_the_objective_is_attained(loss: SquaredError, goal_oriented: bool, sign: float) -> None:
    """x = 0.1, x^ = 0, two images with x* = -+2: the mean of both ends, mapped to decibels where g = PSNR."""
    target = pixel(-2.0 * sign).repeat(2, 1, 1, 1)
    objective = BilevelObjective(Line(), target, pixel(0.0).repeat(2, 1, 1, 1), loss=loss, solver=Given(0.1))
    at = objective.evaluate(Accuracy(1.0, 1e-9), None, goal_oriented)
    exact = float(loss.outer(loss.value(pixel(0.0), target), target).mean())
    assert at.lower <= exact + TIGHT
    assert exact <= at.upper + TIGHT
    size = float(pixel(0.1) - target[0])
    if goal_oriented:  # above attained; below, the half of the squared error is given away
        assert at.upper == pytest.approx(exact, rel=1e-9)
        assert at.lower == pytest.approx(outer(loss, 0.5 * 2.0**2 - 0.5 * 0.1**2, target), rel=1e-9)
    else:
        q, slope = 0.5 * size**2, abs(size)
        assert at.lower == pytest.approx(outer(loss, q - slope * 0.1, target), rel=1e-9)
        assert at.upper == pytest.approx(outer(loss, q + slope * 0.1 + 0.5 * 0.1**2, target), rel=1e-9)
        if sign < 0:  # the minimizer is further from x* than x is
            assert at.upper == pytest.approx(exact, rel=1e-9)


def outer(loss: SquaredError, q: float, target: Tensor) -> float:
    return float(loss.outer(number(q), target[:1]))


# --- what rounding errors add, and what is certified -----------------------------------------------------------------


class Coarse(LinearOperator):
    """A x = 2 x, in arithmetic of unit roundoff 1e-6."""

    def __init__(self) -> None:
        super().__init__((1, 1, 1), (1, 1, 1), norm_bound=2.0, lower_bound=2.0)

    def _forward(self, x: Tensor) -> Tensor:
        return 2 * x

    def _adjoint(self, y: Tensor) -> Tensor:
        return 2 * y

    def unit_roundoff(self, dtype: torch.dtype) -> float:
        return 1e-6


def test_rounding_is_part_of_omega() -> None:
    """||J|| (u ||A||^2 ||w|| + 4 u T(w) ||x||) / mu, and 8 u ||J|| ||w|| + u L_J(w) ||x|| of z itself."""
    energy, zero, x, w = Energy(pixel(0.0), Line(3.0, 0.5, 2.0), Coarse()), number(0.0), pixel(0.3), pixel(-7.0)
    found = error_bound(energy, 1.0, x, w, zero, zero)
    norm = 3.0 - 0.5 * 0.3
    adjoint = 1e-6 * (4 * 7.0 + 4 * 2.0 * 7.0 * 0.3)
    expected = norm * adjoint / 4 + 1e-6 * (8 * norm * 7.0 + 0.5 * 7.0 * 0.3)
    assert float(found.omega) == float(found.rounding) == pytest.approx(expected, rel=1e-6)


def test_rounding_is_part_of_goal_oriented_intervals() -> None:
    """Of r in the middle term and beside w, of r_w times eps, and of <w, r>, whose errors are partly systematic."""
    y, x, w, kappa, eps, computed, adjoint = 9.0, 4.6, -7.0, 2.0, 0.06, 0.4, 0.02
    energy = Energy(pixel(y), Line(t=2.0), Coarse())
    variation = HessianVariation(number(kappa), number(1e3), number(0.0))
    r, unit = pixel(computed), 1e-6
    interval = goal_oriented(
        energy,
        variation,
        number(1.0),
        1.0,
        pixel(w),
        r,
        number(adjoint),
        number(eps),
        pixel(x),
        number(0.0),
        number(0.0),
    )
    rounding = unit * max(4 * x, 2 * y)
    norm = computed + rounding
    middle = kappa * norm**2 / 16
    turned = adjoint + unit * (4 * abs(w) + 4 * 1e3 * x)
    pairing = abs(w) * (8 * rounding + 4 * unit * (norm + abs(2 * (2 * x - y))))
    low = turned * eps + middle + pairing
    assert float(interval.below) == pytest.approx(low, rel=1e-9)
    assert float(interval.above) == pytest.approx(low + 0.5 * eps**2, rel=1e-9)
    assert float(interval.rounding) == pytest.approx(low - adjoint * eps - kappa * computed**2 / 16, rel=1e-6)


def test_modelled_parts_of_squares() -> None:
    interval = first_order(number(0.0), number(3.0), number(0.5), 4.0, number(0.1))
    assert float(interval.rounding) == pytest.approx(0.5 * 4 * (0.5**2 - 0.4**2) + 0.3)


def test_ends_go_outwards_and_the_shorter_interval_is_taken() -> None:
    interval = Interval(number(1e6), number(1e-3), number(2e-3), number(0.0))
    assert float(interval.outwards().below - interval.below) == pytest.approx(8 * 2.0**-53 * 1e6, rel=1e-6)
    assert float(interval.outwards().above - interval.above) == pytest.approx(8 * 2.0**-53 * 1e6, rel=1e-6)
    other = Interval(number(5.0), number(1e-3), number(1e-3), number(0.0))
    assert float(interval.better(other).value) == float(other.better(interval).value) == 5.0


def test_what_is_not_proved_is_not_called_certified() -> None:
    class Guessed(Line):
        def jacobian_bounds(self, x: Tensor, w: Tensor, radius: Tensor) -> JacobianBounds:
            return replace(super().jacobian_bounds(x, w, radius), certified=False)

    zero, x = number(0.0), pixel(0.5)
    for energy in (
        Energy(pixel(0.0), Guessed()),
        Energy(pixel(1.0), Line(), fidelity=KullbackLeibler(1.0), mu=1.0),
        Energy(pixel(0.0), Exponential(1.0, 2.0)),
    ):
        assert error_bound(energy, 1.0, x, x, zero, zero).basis is Grade.ESTIMATED


def test_an_estimated_constant_is_twice_what_is_seen() -> None:
    """The third derivative is a m e^{m x}; at x = 1."""
    energy = Energy(pixel(0.0), Exponential(0.1, 2.0))
    found = _estimated_lipschitz(energy, pixel(1.0), pixel(3.0))
    assert float(found) == pytest.approx(2 * 3.0 * 0.1 * 2 * math.exp(2.0), rel=0.01)


def test_goal_oriented_certificates_need_quadratic_losses_and_fidelities() -> None:
    class Other(SquaredError):
        quadratic = False

    y = pixel(1.0)
    for options in ({"loss": Other()}, {"fidelity": KullbackLeibler(1.0), "mu": 1.0}):
        at = BilevelObjective(Line(), y, y, **options).evaluate(Accuracy(1e-3, 1e-3))  # type: ignore[arg-type]
        assert math.isinf(float(at.sensitivity))
    assert math.isfinite(float(BilevelObjective(Line(), y, y).evaluate(Accuracy(1e-3, 1e-3)).sensitivity))


def test_an_evaluation_satisfies_what_all_images_satisfy() -> None:
    two = pixel(0.0).repeat(2, 1, 1, 1)
    start = BilevelObjective(Line(), two, two).start()

    def satisfied(error: list[float], residual: list[float]) -> bool:
        at = replace(start, error=torch.tensor(error), adjoint=start.adjoint._replace(residual=torch.tensor(residual)))
        return at.satisfies(Accuracy(1.0, 2.0))

    assert satisfied([1.0, 0.5], [2.0, 1.0])
    assert not satisfied([1.1, 0.5], [2.0, 1.0])
    assert not satisfied([1.0, 0.5], [2.0, 2.1])


def test_intervals_are_no_better_than_their_solutions() -> None:
    objective = BilevelObjective(Line(), pixel(-2.0), pixel(0.0), solver=Given(0.1))  # which says nothing of its grade
    assert objective.evaluate(Accuracy(1.0, 1e-9), None, False).grade == Grade.ESTIMATED
    proved = BilevelObjective(Line(), pixel(-2.0), pixel(0.0)).evaluate(Accuracy(1e-3, 1e-9), None, False)
    assert proved.grade in (Grade.PROVED, Grade.MODELLED)
