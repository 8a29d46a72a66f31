"""Certificates of saddle points and of their hypergradients where they are attained: K = k, x and y numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from recon.bilevel import SaddleObjective
from recon.bilevel.certificate import Interval
from recon.bilevel.piggyback import AdjointPoint, DualLoss, error_bound, parameter_gradient
from recon.lower_level import PDHG, Functional, SaddleModel, SaddlePoint, SaddleSolution, Squared
from recon.lower_level.grade import Grade
from recon.lower_level.saddle.curvature import Curvature, GroupCurvature
from recon.lower_level.saddle.functionals import Blocks, ParameterBound
from recon.lower_level.saddle.iteration import Iteration
from tests.bilevel.methods.line import number
from tests.lower_level.saddle.saddle_problems import MatrixMap


def one(value: float) -> Tensor:
    return torch.full((1, 1), value, dtype=torch.float64)


class Slope(ParameterBound):
    """d_t <t c, u> = c u."""

    def __init__(self, c: float) -> None:
        self.c = c

    def __call__(self, x: Tensor, w: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(radius, self.c), torch.zeros_like(radius)


class Bent(Functional):
    """phi'' = m + t min(max(x, 0), 1), and the term theta c x: smallest curvature at 0, where minimizers are."""

    def __init__(self, m: float, t: float, c: float, theta: Tensor) -> None:
        self.size, self.m, self.t, self.c, self.theta = 1, m, t, c, theta
        self.convexity, self.smoothness, self.hessian_lipschitz = m, m + t, t

    def grad(self, x: Tensor) -> Tensor:
        inside, beyond = x.clamp(0, 1), (x - 1).clamp_min(0)
        return self.m * x + self.t * (inside.square() / 2 + beyond) + self.theta * self.c

    def hessian(self, x: Tensor) -> Curvature:
        return GroupCurvature((1,), self.m + self.t * x.clamp(0, 1))

    def variation(self, w: Tensor) -> tuple[Tensor, Tensor]:
        size = w.abs().sum(1).double()
        return torch.full_like(size, math.inf), self.t * size

    def tensors(self) -> list[tuple[Tensor, ParameterBound]]:
        return [(self.theta, Slope(self.c))] if self.c else []


class Lines(SaddleModel):
    """min_x g(x) + f(kx) with g'' and f'' from :class:`Bent`; the minimizer is 0."""

    def __init__(
        self, k: float, g: tuple[float, float, float], f: tuple[float, float, float], learn: str, theta: float = 0.0
    ) -> None:
        super().__init__()
        self.k = nn.Parameter(one(k), learn == "k")
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64), learn == "theta")
        self.g, self.f = g, f

    def saddle_point(self, y: Tensor) -> SaddlePoint:
        g, f = Bent(*self.g, self.theta), Bent(*self.f, self.theta)
        return SaddlePoint(MatrixMap(self.k), g, f, (1, 1, 1), check=False)


def within(bound: float, truth: float, share: float) -> None:
    assert truth <= bound * (1 + 1e-9) + 1e-13, f"the bound {bound:.9g} is below the truth {truth:.9g}"
    assert truth >= share * bound * (1 - 1e-9), f"{truth:.9g} attains only {truth / bound:.3f} of the bound"


def omega_and_truth(
    model: Lines, eps: float, big_x: float, residual: float, smoothness: float, dual: float = 0.0
) -> tuple[float, float]:
    """omega at x = eps and X, for the losses l_1, l_2 with second derivatives ``smoothness``, ``dual``; and the error.

    y = f'(kx) is at most as wrong as x says. The gradient of l_1 at x is what makes the residual at x be as given.
    """
    saddle = model.saddle_point(one(0.0))
    k = float(model.k)
    with torch.no_grad():
        g, f = (float(h.hessian(one(v))(one(1.0))) for h, v in ((saddle.g, eps), (saddle.f, k * eps)))
        y, best_y = saddle.f.grad(one(k * eps)), saddle.f.grad(one(0.0))
    dual_slope = 0.75 if dual else 0.0  # grad l_2 at y
    q = k * big_x + dual_slope
    slope = residual - (g * big_x + k * f * q)  # of l_1 at x
    exact_slope, exact_dual = slope - smoothness * eps, dual_slope - dual * float(y - best_y)
    g0, f0 = (float(h.hessian(one(0.0))(one(1.0))) for h in (saddle.g, saddle.f))
    exact_x = -(exact_slope + k * f0 * exact_dual) / (g0 + k * k * f0)
    exact_q = k * exact_x + exact_dual

    def z(x: float, y: Tensor, big_x: float, big_y: float, q: float) -> float:
        vectors = one(x), y, one(big_x), one(big_y), one(q)
        return float(parameter_gradient(model, one(0.0), *vectors)[0])

    truth = abs(z(eps, y, big_x, f * q, q) - z(0.0, best_y, exact_x, f0 * exact_q, exact_q))
    at = AdjointPoint(
        one(eps),
        y,
        one(big_x),
        one(f * q),
        number(eps),
        number(abs(residual)),
        smoothness,
        DualLoss(one(dual_slope), dual) if dual else None,
        number(0.0),
    )
    found = error_bound(model, one(0.0), at)
    assert found.basis is Grade.PROVED
    return float(found.omega), truth


G = (2.0, 0.0, 3.0)  # quadratic, of modulus 2, with the parameter
NONE = (0.0, 1e-12, 0.0)


@pytest.mark.parametrize(
    ("k", "g", "f", "eps", "big_x", "residual", "smoothness"),
    [
        (1.0, G, NONE, 1e-6, 1e-9, 0.5, 0.0),  # R / mu_g
        (1.0, G, NONE, 0.1, 1e-9, 0.0, 1.5),  # L_1 eps / mu_g
        (1.0, (2.0, 1.5, 3.0), NONE, 0.1, 5.0, 0.0, 0.0),  # T_g eps / mu_g
        (2.0, G, (0.0, 1.5, 0.0), 0.1, 5.0, 0.0, 0.0),  # ||K||^2 T_f eps / mu_g, T_f along K X
        (0.5, G, (0.0, 1.5, 0.0), 0.1, 5.0, 0.0, 0.0),
    ],
)
def test_every_term_of_the_primal_adjoint_is_attained(
    k: float,
    g: tuple[float, float, float],
    f: tuple[float, float, float],
    eps: float,
    big_x: float,
    residual: float,
    smoothness: float,
) -> None:
    omega, truth = omega_and_truth(Lines(k, g, f, "theta"), eps, big_x, residual, smoothness)
    within(omega, truth, 0.999)


@pytest.mark.parametrize("k", [0.5, 3.0])
def test_parameters_of_f_see_the_adjoint_through_the_operator(k: float) -> None:
    """||K|| D_X."""
    omega, truth = omega_and_truth(Lines(k, (2.0, 0.0, 0.0), (0.0, 1e-12, 3.0), "theta"), 1e-6, 1e-9, 0.5, 0.0)
    within(omega, truth, 0.999)


@pytest.mark.parametrize("k", [1.0, 0.5, 3.0])
def test_parameters_of_the_operator_see_both_errors(k: float) -> None:
    """||Y|| eps + ||X|| ||y - y^||, for linear losses and quadratic g and f; ||y - y^|| = ||K|| eps L_f."""
    omega, truth = omega_and_truth(Lines(k, (2.0, 0.0, 0.0), (1.5, 0.0, 0.0), "k"), 0.01, 2.0, 0.0, 0.0)
    within(omega, truth, 0.999)


def test_parameters_of_the_operator_see_the_errors_of_the_adjoint() -> None:
    """||y|| D_X, for a large dual point y = 6 that does not move, and x next to nothing."""
    model = Lines(1.0, (2.0, 0.0, -3.0), (1e-9, 0.0, 3.0), "k", theta=2.0)
    omega, truth = omega_and_truth(model, 1e-9, 1e-9, 0.5, 0.0)
    within(omega, truth, 0.999)


def test_the_curvature_of_the_loss_of_y_is_counted() -> None:
    """B / (2 sqrt(mu_g)), attained where g'' = K^T f'' K."""
    for m in (1.0, 4.0):
        omega, truth = omega_and_truth(Lines(1.0, (m, 0.0, 3.0), (m, 0.0, 0.0), "theta"), 0.01, 2.0, 0.0, 0.0, 0.8)
        within(omega, truth, 0.999)


def test_the_rounding_of_the_adjoint_and_of_the_derivative_is_counted() -> None:
    """N (u (L_g + ||K||^2 L_f) ||X||) / mu_g + 8 u ||z||, for quadratic g and f."""

    class Coarse(Lines):
        def saddle_point(self, y: Tensor) -> SaddlePoint:
            saddle = super().saddle_point(y)
            saddle.operator.eps = lambda dtype: 2e-6  # type: ignore[method-assign]
            return saddle

    model, zero = Coarse(3.0, G, (0.5, 0.0, 0.0), "theta"), one(0.0)
    at = AdjointPoint(zero, zero, one(7.0), one(10.5), number(0.0), number(0.0), 0.0, error_rounding=number(0.0))
    found = error_bound(model, zero, at)
    assert float(found.size) == pytest.approx(3.0 * 7.0)
    rounding = 1e-6 * (3.0 * (2.0 + 9.0 * 0.5) * 7.0 / 2.0 + 8 * 3.0 * 7.0)
    assert float(found.omega) == float(found.rounding) == pytest.approx(rounding, rel=1e-9)


# --- saddle points ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("weight", [0.25, 4.0])
def test_distances_of_saddle_points_are_attained(weight: float, steps: int) -> None:
    """g = w/2 (x - 1)^2 and f = v/2 s^2 with k next to nothing: residuals and, every fifth step, the gap are exact."""
    saddle = SaddlePoint(
        MatrixMap(one(1e-12)), Squared(1, weight, one(1.0)), Squared(1, weight, one(0.0)), (1, 1, 1), check=False
    )
    iteration = Iteration(saddle, one(3.0), one(2.0))
    iteration.tau, iteration.sigma = iteration.tau * 0 + 0.1, iteration.sigma * 0 + 0.1
    iteration._set_theta()
    found = PDHG(steps, adaptive=False).begin(iteration, 1e-300).run()
    root_x, root_y = abs(float(found.x) - 1) * math.sqrt(weight), abs(float(found.y)) / math.sqrt(weight)
    a, b = root_x + math.hypot(root_x, root_y), root_y + math.hypot(root_x, root_y)
    by_gap = math.hypot(root_x, root_y)
    error = min(a / 2, by_gap) / math.sqrt(weight)
    dual_error = min(b / 2, by_gap) * math.sqrt(weight)
    assert float(found.error) == pytest.approx(error, rel=1e-6)
    assert float(found.dual_error) == pytest.approx(dual_error, rel=1e-6)
    assert float(found.error) >= abs(float(found.x) - 1)


def test_the_gap_alone_is_attained_for_either_variable() -> None:
    saddle = SaddlePoint(MatrixMap(one(1e-12)), Squared(1, 4.0, one(1.0)), Squared(1, 0.25), (1, 1, 1), check=False)
    for x, y, truth in ((3.0, 0.0, 0.5 * 4.0 * 4.0), (1.0, 2.0, 0.5 / 0.25 * 4.0)):
        gap, noise = saddle.gap_parts(one(x), one(y), one(0.0), one(0.0))
        assert float(gap) == pytest.approx(truth, rel=1e-9)
        assert 0 < float(noise) < 1e-12


def test_moduli_and_the_spread_of_the_image() -> None:
    g = Blocks([Squared(1, 16.0), Squared(1, 1.0)])
    saddle = SaddlePoint(MatrixMap(torch.ones(1, 2).double()), g, Squared(1, 4.0), (1, 1, 1), check=False)
    assert (saddle.image_convexity, saddle.convexity, saddle.spread, saddle.dual_convexity) == (16.0, 1.0, 4.0, 0.25)


def test_the_error_of_the_image_is_attained_through_the_other_part() -> None:
    """A residual in the rest of x alone, 1, moves the image by 1 / (2 sqrt(mu_u mu_g)): the disc of certificates."""
    g = Blocks([Squared(1, 16.0), Squared(1, 1.0)])
    # s = 4 u + v with f = s^2 weight / 2 large keeps 4 u = -v: h = 8 u^2 + v^2 / 2 on that line is balanced
    saddle = SaddlePoint(MatrixMap(torch.tensor([[4.0, 1.0]]).double()), g, Squared(1, 1e6), (1, 1, 1), check=False)
    hessian = torch.diag(torch.tensor([16.0, 1.0]).double()) + 1e6 * torch.tensor([[16.0, 4.0], [4.0, 1.0]]).double()
    moved = torch.linalg.solve(hessian, torch.tensor([0.0, 1.0]).double())
    bound = 1 / saddle.convexity / saddle.spread
    within(bound, 2 * float(moved[0].abs()), 0.99)  # half of it, for the disc also holds a residual in the image


def test_rounding_of_the_residuals_of_a_step_is_attained() -> None:
    """p and d by K^T y and K x that are wrong by eps ||K||; and by x and y over their steps, and what f subtracts."""

    class Rough(MatrixMap):
        def eps(self, dtype: torch.dtype) -> float:
            return 1e-6

    f = Squared(1, 0.5, one(3.0))
    saddle = SaddlePoint(Rough(one(2.0)), Squared(1, 1.0, one(0.0)), f, (1, 1, 1), check=False)
    for x, y in ((5.0, 0.0), (0.0, 5.0)):
        iteration = Iteration(saddle, one(x), one(y))
        tau, sigma = float(iteration.tau), float(iteration.sigma)
        p, d = iteration.rounding()
        terms = abs(y) / 0.5 + 3.0
        assert float(p) == pytest.approx(1e-6 * (2.0 * y + x / tau), rel=1e-9)
        assert float(d) == pytest.approx(1e-6 * (2.0 * x + y / sigma + terms), rel=1e-9)


def test_rounding_of_the_gap_is_that_of_its_parts() -> None:
    """sqrt(2 L F) r + L r^2 / 2 for both Fenchel gaps; at a saddle point only the second."""

    class Rough(MatrixMap):
        def eps(self, dtype: torch.dtype) -> float:
            return 1e-6

    g, f = Squared(1, 4.0, one(0.0)), Squared(1, 0.5, one(0.0))
    saddle = SaddlePoint(Rough(one(2.0)), g, f, (1, 1, 1), check=False)
    x, y = 3.0, 5.0
    gap, noise = saddle.gap_parts(one(x), one(y), one(2 * x), one(2 * y))
    fg, ff = 0.5 * 4.0 * (x + 2 * y / 4.0) ** 2, 0.5 * 0.5 * (2 * x - y / 0.5) ** 2
    assert float(gap) == pytest.approx(fg + ff)

    def moved(gap: float, smoothness: float, r: float) -> float:
        return math.sqrt(2 * smoothness * gap) * r + 0.5 * smoothness * r**2

    expected = moved(fg, 0.25, 4e-6 * (2 * y + 2 * y)) + moved(fg, 4.0, 4e-6 * (x + 2 * y / 4.0))
    expected += moved(ff, 0.5, 4e-6 * (2 * x + 2 * x + y / 0.5))
    assert float(noise) == pytest.approx(expected, rel=1e-9)


# --- rounding errors of hypergradients -------------------------------------------------------------------------------


def test_the_rounding_of_points_moves_what_is_linearized_there() -> None:
    """4 u (T_g + ||K||^2 T_f) ||x|| in the residual, as in energies."""

    class Coarse(Lines):
        def saddle_point(self, y: Tensor) -> SaddlePoint:
            saddle = super().saddle_point(y)
            saddle.operator.eps = lambda dtype: 2e-6  # type: ignore[method-assign]
            return saddle

    x, big_x, k, zero = 0.5, 7.0, 3.0, number(0.0)
    for (m, t), (m_f, t_f) in (((2.0, 1.5), (0.5, 0.0)), ((2.0, 0.0), (0.5, 0.25))):
        model = Coarse(k, (m, t, 3.0), (m_f, t_f, 0.0), "theta")
        y = m_f * k * x + t_f * (0.5 + (k * x - 1))
        at = AdjointPoint(
            one(x), one(y), one(big_x), one((m_f + t_f) * k * big_x), zero, zero, 0.0, error_rounding=zero
        )
        found = error_bound(model, one(0.0), at)
        residual = (m + t + k * k * (m_f + t_f)) * big_x + 4 * (t * big_x + k * k * t_f * k * big_x) * x
        assert float(found.omega) == pytest.approx(1e-6 * (3.0 * residual / m + 8 * 3.0 * big_x), rel=1e-5)


def test_the_rounding_of_x_in_the_derivative_of_a_weight_is_counted() -> None:
    """d_w <w x, X> = x X: ||x|| D_X, u ||X|| ||x||, and 8 u ||x|| ||X||; and, of an error of x, ||X|| eps."""

    class Weighted(SaddleModel):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))

        def saddle_point(self, y: Tensor) -> SaddlePoint:
            operator = MatrixMap(one(1e-9))
            operator.eps = lambda dtype: 2e-6  # type: ignore[method-assign]
            return SaddlePoint(operator, Squared(1, self.weight), Squared(1, 1e-3), (1, 1, 1), check=False)

    zero, x, big_x = number(0.0), 0.5, 7.0
    at = AdjointPoint(one(x), one(0.0), one(big_x), one(0.0), zero, zero, 0.0, error_rounding=zero)
    rounding = float(error_bound(Weighted(), one(0.0), at).omega)
    assert rounding == pytest.approx(1e-6 * (x * 2.0 * big_x / 2.0 + big_x * x + 8 * x * big_x), rel=1e-4)
    moved = AdjointPoint(one(x), one(0.0), one(big_x), one(0.0), number(0.1), zero, 0.0, error_rounding=zero)
    assert float(error_bound(Weighted(), one(0.0), moved).omega) == pytest.approx(big_x * 0.1, rel=1e-3)


# --- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "g", "f", "w", "residual"),
    [
        (1e-6, (1.0, 0.0, 3.0), NONE, 0.0, -0.7),  # ||r_w|| eps
        (1e-6, (1.0, 2.0, 3.0), NONE, -3.0, -0.7),  # T_g eps^2 / 2
        (2.0, (1.0, 0.0, 3.0), (0.0, 1.5, 0.0), -3.0, -0.7),  # ||K||^2 T_f eps^2 / 2, T_f along K X
        (0.5, (1.0, 0.0, 3.0), (0.0, 1.5, 0.0), -3.0, 0.0),
    ],
)
def test_goal_oriented_intervals_of_saddle_points_are_attained(
    k: float, g: tuple[float, float, float], f: tuple[float, float, float], w: float, residual: float
) -> None:
    """Above, with (L_g / 2) eps^2, as without saddle points."""
    x, zero = 0.4, number(0.0)
    model = Lines(k, g, f, "theta")
    with torch.no_grad():
        saddle = model.saddle_point(one(0.0))
        y = saddle.f.grad(one(k * x))
        b = float(saddle.g.hessian(one(x))(one(1.0))) + k * k * float(saddle.f.hessian(one(k * x))(one(1.0)))
        target = torch.full((1, 1, 1, 1), x - b * w - residual, dtype=torch.float64)
        objective = SaddleObjective(model, target, one(0.0))
        status = torch.zeros(1, dtype=torch.int64)
        at = SaddleSolution(one(x), y, one(k * x), number(x), zero, zero, status, status, zero, status)
        unknown = Interval(zero, number(math.inf), number(math.inf), zero)
        interval, _ = objective._second_order(saddle, unknown, at, one(-w), saddle.image(at.x), slice(0, 1))
    exact = 0.5 * float(target) ** 2 - float(interval.value)
    within(float(interval.above), exact, 1 - 1e-6)
    assert float(interval.below) == pytest.approx(float(interval.above) - 0.5 * x**2, rel=1e-9)


def test_the_error_of_all_of_x_is_the_spread_times_that_of_the_image() -> None:
    """A field that is off by one, beside an image of sixteen times the modulus: attained by the gap."""
    g = Blocks([Squared(1, 16.0), Squared(1, 1.0, one(2.0))])
    operator = MatrixMap(torch.full((1, 2), 1e-12, dtype=torch.float64))
    saddle = SaddlePoint(operator, g, Squared(1, 1.0), (1, 1, 1), check=False)
    iteration = Iteration(saddle, torch.tensor([[0.0, 4.0]], dtype=torch.float64), one(0.0))
    iteration.tau, iteration.sigma = iteration.tau * 0 + 1.0, iteration.sigma * 0 + 1.0
    found = PDHG(1, adaptive=False).begin(iteration, 1e-300).run()
    within(float(found.error) * saddle.spread, float(found.x[0, 1]) - 2, 1 - 1e-6)
    assert float(found.x[0, 1]) == 3.0


def test_errors_of_saddle_points_count_the_rounding_of_the_residuals() -> None:
    """At the solution, where the computed residuals vanish: what is left is that of their rounding errors."""

    class Rough(MatrixMap):
        def eps(self, dtype: torch.dtype) -> float:
            return 1e-6

    g, f = Squared(1, 1.0, one(3.0)), Squared(1, 1.0, one(6.0))
    saddle = SaddlePoint(Rough(one(2.0)), g, f, (1, 1, 1), check=False)
    iteration = Iteration(saddle, one(3.0), one(0.0))
    found = PDHG(1, adaptive=False).begin(iteration, 1e-300).run()
    (p, d), (gap, noise) = iteration.rounding(), iteration.gap()
    by_residuals = float(p + torch.hypot(p, d)) / 2
    by_gap = math.sqrt(2 * float(gap + noise))
    assert float(found.residual) == 0
    assert float(found.error) == pytest.approx(min(by_residuals, by_gap), rel=1e-6, abs=0)
    assert float(found.error) > 1e-6
