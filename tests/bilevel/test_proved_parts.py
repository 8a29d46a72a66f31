"""The proved part of a bound holds no term of the model of rounding errors, however large that is; totals hold all."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from recon.bilevel import Accuracy, BilevelObjective, NegativePSNR, SaddleObjective
from recon.bilevel.certificate import Interval, goal_oriented
from recon.bilevel.evaluation import Evaluation
from recon.bilevel.hypergradient import ErrorBound, Errors, error_bound
from recon.bilevel.piggyback import AdjointPoint, Piggyback
from recon.bilevel.piggyback import error_bound as saddle_error_bound
from recon.lower_level import PDHG, Energy, Grade, HessianVariation, SaddleModel, SaddlePoint, SaddleSolution, Squared
from recon.lower_level.grade import SHARE
from recon.operators import LinearOperator
from tests.bilevel.methods.line import Line, number, pixel
from tests.bilevel.test_tight_saddle import Bent, Lines, one
from tests.lower_level.problems import make, normal, norms, smooth_image
from tests.lower_level.saddle.saddle_problems import FilterModel, MatrixMap

#: unit roundoffs, up to those of an absurd model
UNITS = [1e-15, 1e-6, 1e-1]
EPS, EPS_MODELLED, RESIDUAL, RESIDUAL_MODELLED = 0.1, 0.04, 0.3, 0.1
EPS_PROVED, RESIDUAL_PROVED = EPS - EPS_MODELLED, RESIDUAL - RESIDUAL_MODELLED


class Twice(LinearOperator):
    """A x = 2 x, in arithmetic of a given unit roundoff."""

    def __init__(self, unit: float) -> None:
        super().__init__((1, 1, 1), (1, 1, 1), norm_bound=2.0, lower_bound=2.0)
        self.unit = unit

    def _forward(self, x: Tensor) -> Tensor:
        return 2 * x

    def _adjoint(self, y: Tensor) -> Tensor:
        return 2 * y

    def unit_roundoff(self, dtype: torch.dtype) -> float:
        return self.unit


# --- energies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS)
def test_of_omega(unit: float) -> None:
    """(N/mu (L_g + T) + L_J) eps + N/mu ||r_w||, N over the ball of the radius that is proved."""
    x, w, l_g = 0.5, -7.0, 1.5
    energy = Energy(pixel(0.0), Line(3.0, 0.5, 2.0), Twice(unit))
    found = error_bound(
        energy,
        l_g,
        pixel(x),
        pixel(w),
        number(EPS),
        number(RESIDUAL),
        number(EPS_MODELLED),
        number(RESIDUAL_MODELLED),
    )
    norm, whole = (3.0 - 0.5 * (x - radius) for radius in (EPS_PROVED, EPS))
    per_error = norm / 4 * (l_g + 2.0 * 7.0) + 0.5 * 7.0
    proved = per_error * EPS_PROVED + norm / 4 * RESIDUAL_PROVED
    assert float(found.omega - found.rounding) == pytest.approx(proved, rel=1e-9)
    assert float(found.size) == pytest.approx(whole * 7.0, rel=1e-12)
    assert float(found.size - found.size_rounding) == pytest.approx(norm * 7.0, rel=1e-12)
    total = (whole / 4 * (l_g + 14.0) + 3.5) * EPS + whole / 4 * RESIDUAL
    own = unit * (8 * whole * 7.0 + 3.5 * x + whole / 4 * (4 * 7.0 + 4 * 14.0 * x))
    assert float(found.omega) == pytest.approx(total + own, rel=1e-6)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(("kappa", "lipschitz"), [(2.0, 1e3), (math.inf, 3.0)])
def test_of_goal_oriented_intervals(unit: float, kappa: float, lipschitz: float) -> None:
    """||r_w|| eps + middle + (L_g/2) eps^2 of the proved eps, ||r_w|| and the computed r."""
    computed = 0.4
    energy = Energy(pixel(9.0), Line(t=2.0), Twice(unit))
    variation = HessianVariation(number(kappa), number(lipschitz), number(0.0))
    interval = goal_oriented(
        energy,
        variation,
        number(1.0),
        1.0,
        pixel(-7.0),
        pixel(computed),
        number(RESIDUAL),
        number(EPS),
        pixel(4.6),
        number(EPS_MODELLED),
        number(RESIDUAL_MODELLED),
    )
    middle = min(kappa * computed**2 / 16, lipschitz * EPS_PROVED**2 / 2)
    proved = RESIDUAL_PROVED * EPS_PROVED + middle + 0.5 * EPS_PROVED**2
    assert float(interval.above - interval.rounding) == pytest.approx(proved, rel=1e-9)
    assert float(interval.below) > RESIDUAL * EPS


def test_without_a_split_all_is_modelled() -> None:
    energy, x = Energy(pixel(0.0), Line(3.0, 0.5, 2.0)), pixel(0.5)
    found = error_bound(energy, 1.0, x, x, number(EPS), number(RESIDUAL))
    assert torch.equal(found.rounding, found.omega)
    variation = energy.regularizer.hessian_variation(x)
    assert variation is not None
    interval = goal_oriented(
        energy, variation, number(1.0), 1.0, x, pixel(0.0), number(RESIDUAL), number(EPS), x, None, number(0.0)
    )
    assert float(interval.rounding) == pytest.approx(float(interval.above), rel=1e-12)


def test_of_products_with_outer_slopes() -> None:
    """W omega + dW (size + omega), dW and both bounds without rounding errors."""
    errors, one_image = Errors(), number(1.0)
    found = ErrorBound(3.0 * one_image, 4.0 * one_image, one_image, Grade.PROVED, 1.5 * one_image)
    errors.add(found, 7.0 * one_image, torch.stack([0.5 * one_image, 0.2 * one_image]), torch.float64)
    result = errors.hypergradient(torch.zeros(1), BilevelObjective(Line(), pixel(0.0), pixel(0.0)).start())
    assert result.error == pytest.approx(7 * 3 + 0.5 * (4 + 3))
    assert result.error - result.rounding == pytest.approx(7 * 2 + 0.2 * (2.5 + 2))


def test_of_the_error_of_outer_slopes() -> None:
    """dg/dq = 10 / (ln 10 q), from q(x) to the lower end of its interval of first order; x* = x - 1."""
    objective = BilevelObjective(Line(), pixel(-1.0), pixel(0.0), loss=NegativePSNR())
    weight = 20 / math.log(10)
    at = replace(
        objective.start(),
        x=pixel(0.0),
        error=number(EPS),
        error_rounding=number(EPS_MODELLED),
        slope=number(1.0),
        weight=number(weight),
    )
    found = objective._weight_error(slice(0, 1), at).flatten().tolist()
    expected = [10 / math.log(10) / (0.5 - eps) - weight for eps in (EPS, EPS_PROVED)]
    assert found == pytest.approx(expected, rel=1e-9)


# --- saddle points ---------------------------------------------------------------------------------------------------


class Weighted(SaddleModel):
    """(w/2) x^2 with the parameter w = 2, in arithmetic of a given unit roundoff."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.weight, self.unit = nn.Parameter(torch.tensor([2.0], dtype=torch.float64)), unit

    def saddle_point(self, y: Tensor) -> SaddlePoint:
        operator = MatrixMap(one(1e-12))
        operator.eps = lambda dtype: 2 * self.unit  # type: ignore[method-assign]
        return SaddlePoint(operator, Squared(1, self.weight), Squared(1, 1e-12), (1, 1, 1), check=False)


@pytest.mark.parametrize("unit", UNITS)
def test_of_omega_of_saddle_points(unit: float) -> None:
    """(||x|| + eps) D_X + ||X|| eps with D_X = (R + L_1 eps) / mu_g, of the proved eps and R."""
    x, big_x, l_1 = 0.5, 7.0, 1.5
    at = AdjointPoint(
        one(x),
        one(0.0),
        one(big_x),
        one(0.0),
        number(EPS),
        number(RESIDUAL),
        l_1,
        error_rounding=number(EPS_MODELLED),
        adjoint_rounding=number(RESIDUAL_MODELLED),
    )
    found = saddle_error_bound(Weighted(unit), one(0.0), at)
    proved = (x + EPS_PROVED) * (RESIDUAL_PROVED + l_1 * EPS_PROVED) / 2 + big_x * EPS_PROVED
    assert float(found.omega - found.rounding) == pytest.approx(proved, rel=1e-9)
    total = (x + EPS) * (RESIDUAL + l_1 * EPS) / 2 + big_x * EPS
    own = unit * ((x + EPS) * (2 * big_x + RESIDUAL) / 2 + big_x * x + 8 * (x + EPS) * big_x)
    assert float(found.omega) == pytest.approx(total + own, rel=1e-9)
    assert float(found.size - found.size_rounding) == pytest.approx((x + EPS_PROVED) * big_x, rel=1e-9)
    unsaid = replace(at, error_rounding=None, adjoint_rounding=None)
    found = saddle_error_bound(Weighted(unit), one(0.0), unsaid)
    assert float(found.rounding) == pytest.approx(float(found.omega), rel=1e-9)


class Concordant(Bent):
    """x^2 / 2, said to have a Hessian that varies by kappa = |w|, and with a large Lipschitz constant."""

    def variation(self, w: Tensor) -> tuple[Tensor, Tensor]:
        size = w.abs().sum(1).double()
        return size, 1e3 * size


@pytest.mark.parametrize("unit", UNITS)
def test_of_the_bound_by_residuals(unit: float) -> None:
    """kappa (P^2 + D^2)/4 = kappa/2 at x = 1, y = s = 0, less than the kappa that r = 2 gives, for g = f = x^2 / 2."""

    class Model(Lines):
        def saddle_point(self, y: Tensor) -> SaddlePoint:
            saddle = super().saddle_point(y)
            saddle.g = Concordant(1.0, 0.0, 0.0, self.theta)
            saddle.operator.eps = lambda dtype: 2 * unit  # type: ignore[method-assign]
            return saddle

    model, zero, big_x, adjoint = Model(1.0, (1.0, 0.0, 0.0), (1.0, 0.0, 0.0), "theta"), number(0.0), 3.0, 0.25
    with torch.no_grad():
        saddle = model.saddle_point(one(0.0))
        target = torch.full((1, 1, 1, 1), 1.0 + 2 * big_x - adjoint, dtype=torch.float64)
        objective = SaddleObjective(model, target, one(0.0))
        status = torch.zeros(1, dtype=torch.int64)
        at = SaddleSolution(one(1.0), one(0.0), one(0.0), number(5.0), zero, zero, status, status, number(1.0), status)
        unknown = Interval(zero, number(math.inf), number(math.inf), zero)
        interval, _ = objective._second_order(saddle, unknown, at, one(big_x), saddle.image(at.x), slice(0, 1))
    proved = adjoint * 4.0 + big_x / 2 + 0.5 * 4.0**2
    assert float(interval.above - interval.rounding) == pytest.approx(proved, rel=1e-9)
    # p and d, both 1, are wrong by 2 u (|g'| + |x|) and 2 u (|x| + |K x|); the first counts in the rest of x, too
    squares = 2 * (1 + 4 * unit) ** 2 + (4 * unit) ** 2
    turned = adjoint + unit * (2 * big_x + adjoint) + 4 * unit * 1e3 * big_x
    pairing = big_x * (8 * unit * (2 + 2) + 4 * unit * (2 + 1))
    assert float(interval.below) == pytest.approx(turned * 5.0 + big_x * squares / 4 + pairing, rel=1e-9)


# --- residuals of adjoints, as they are solved ------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cg", "pdhg"])
@pytest.mark.parametrize("accuracy", [1e-3, 1e-300])
def test_of_the_residuals_of_adjoint_saddle_points(method: str, accuracy: float) -> None:
    model, y = FilterModel((4, 3)), smooth_image(2, 1, 4, 3)
    saddle = model.saddle_point(y)
    x, _ = saddle.split(model.initial(y))
    w, slope = torch.zeros_like(model.initial(y)), normal(*x.shape)
    found = Piggyback(adjoint=method).adjoint(saddle, x, w, slope, accuracy, max_iterations=3000)
    g, f = saddle.g.hessian(x), saddle.f.hessian(saddle.operator(x))
    residual = norms(g(found.X) + saddle.operator.transpose(f(saddle.operator(found.X))) + slope)
    if method == "cg":
        noise = 1e-14 * float(norms(slope).max())
        torch.testing.assert_close(found.residual - found.rounding, residual, rtol=1e-6, atol=noise)
    else:
        solved = PDHG(3000)(
            saddle.linearized(x, saddle.operator(x), slope), *saddle.split(w), accuracy / saddle.convexity
        )
        torch.testing.assert_close(found.rounding, saddle.convexity * solved.rounding)
    if accuracy == 1e-300:  # nothing else is left
        assert bool((found.rounding > 0.1 * found.residual).all())
    else:
        assert bool((found.rounding > 0).all())
        assert bool((found.rounding < SHARE * found.residual).all())


def smooth() -> BilevelObjective:
    target = smooth_image(2, 1, 8, 8)
    return BilevelObjective(make("tv"), target, target + normal(2, 1, 8, 8, scale=0.1), chunk_size=1)


def computed_residual(objective: BilevelObjective, at: Evaluation) -> Tensor:
    energy = objective._energy(slice(0, 2))
    return norms(at.x - objective.target - energy.hessian(at.x)(at.adjoint.w))


@pytest.mark.parametrize("adjoint", [1e-3, 1e-12, 1e-300])
@pytest.mark.parametrize("second", [True, False])
def test_evaluations_and_hypergradients_carry_the_split(adjoint: float, second: bool) -> None:
    objective, accuracy = smooth(), Accuracy(1e-3, adjoint)
    at = objective.evaluate(accuracy, None, second)
    if not second:
        assert bool(torch.isinf(at.adjoint.rounding).all())
        at = objective.hypergradient(at, accuracy).evaluation
    proved = at.adjoint.residual - at.adjoint.rounding
    torch.testing.assert_close(proved, computed_residual(objective, at), rtol=1e-5, atol=1e-14)
    assert bool((at.adjoint.rounding > 0).all())
    again = objective.hypergradient(at, Accuracy(1e-3, 1e-9)).evaluation
    proved = again.adjoint.residual - again.adjoint.rounding
    torch.testing.assert_close(proved, computed_residual(objective, again), rtol=1e-5, atol=1e-14)


def test_the_gap_of_conjugate_gradients_is_modelled() -> None:
    """Up to a hundredth of the accuracy counts without a look at the true residual: too much for a proved bound."""
    objective, goal = smooth(), 1.2e-10
    at = objective.evaluate(Accuracy(1e-3, goal))
    share = at.adjoint.rounding / at.adjoint.residual
    assert bool((share < 0.02).all())
    # as if x were known: omega rests on the adjoint alone
    zero = torch.zeros_like(at.error)
    certified = replace(at.certified, grade=int(Grade.PROVED))
    at = replace(at, error=zero, error_rounding=zero, certified=certified)
    found = objective.hypergradient(at, Accuracy(1.0, goal), bound=True)
    assert found.rounding > SHARE * found.error
    assert found.grade is Grade.MODELLED
    without = replace(at, adjoint=at.adjoint._replace(rounding=zero))  # as if the residual were exact
    assert objective.hypergradient(without, Accuracy(1.0, goal), bound=True).grade is Grade.PROVED
    loose = objective.hypergradient(
        replace(objective.evaluate(Accuracy(1e-3, 1e-6)), error=zero, error_rounding=zero), Accuracy(1.0, 1.0), True
    )
    assert loose.grade is Grade.PROVED


def test_saddle_point_objectives_carry_the_split() -> None:
    model, y = FilterModel((4, 3)), smooth_image(2, 1, 4, 3)
    objective, accuracy = SaddleObjective(model, y, y + 0.1, chunk_size=1), Accuracy(1e-3, 1e-300)
    at = objective.evaluate(accuracy)
    assert bool((at.adjoint.rounding > 0.1 * at.adjoint.residual).all())
    loose = objective.evaluate(Accuracy(1e-3, 1e-3))
    assert bool((loose.adjoint.rounding < SHARE * loose.adjoint.residual).all())
    found = objective.hypergradient(loose, Accuracy(1.0, 1.0), bound=True)
    assert found.rounding < SHARE * found.error
    zero = torch.zeros_like(at.error)
    improved = objective.hypergradient(
        replace(loose, adjoint=loose.adjoint._replace(rounding=zero)), accuracy
    ).evaluation
    assert bool((improved.adjoint.rounding > 0.1 * improved.adjoint.residual).all())
    known = replace(improved, error=zero, error_rounding=zero)
    split = objective.hypergradient(known, Accuracy(1.0, 1.0), bound=True)
    unsaid = objective.hypergradient(
        replace(known, adjoint=known.adjoint._replace(rounding=zero)), Accuracy(1.0, 1.0), bound=True
    )
    assert split.error == unsaid.error
    assert split.rounding > unsaid.rounding
