"""Models of rounding errors where they are attained: arithmetic that errs as much as it says, on one pixel.

Everything is exact but the one operation that is wrong by the relative error it declares, so that no term of the
models can be left out (benchmarks.mutations).
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from recon.lower_level import Energy, HessianMap, KullbackLeibler, Regularizer, SquaredL2, Status, conjugate_gradients
from recon.lower_level.batch import per_image_norm
from recon.lower_level.precision import underflow, unit_roundoff
from recon.lower_level.solution import RUNNING
from recon.lower_level.solvers.stopping import PATIENCE, Stopping, certificate, norms_of
from recon.operators import LinearOperator
from tests.bilevel.methods.line import Line

U = 2.0**-20  # of the operators and regularizers below: far above that of double precision


def pixel(value: float) -> Tensor:
    return torch.full((1, 1, 1, 1), value, dtype=torch.float64)


def number(value: float) -> Tensor:
    return torch.full((1,), value, dtype=torch.float64)


class Rough(LinearOperator):
    """A x = a x, computed as (1 + forward) a x, and A^T y as (1 + back) a y."""

    def __init__(
        self, a: float = 2.0, unit: float = U, forward: float = 0.0, back: float = 0.0, factor: float = 1.0
    ) -> None:
        super().__init__((1, 1, 1), (1, 1, 1), norm_bound=a, lower_bound=a)
        self.a, self.unit, self.errors, self.rounding_factor = a, unit, (forward, back), factor

    def _forward(self, x: Tensor) -> Tensor:
        return self.a * (1 + self.errors[0]) * x

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.a * (1 + self.errors[1]) * y

    def unit_roundoff(self, dtype: torch.dtype) -> float:
        return self.unit


class Scaled(Regularizer):
    """R(x) = G x^2 / 2, of which the gradient is computed as (1 + error) G x + shift."""

    def __init__(self, gain: float, offset: float = 0.0, error: float = 0.0, shift: float = 0.0) -> None:
        super().__init__()
        self.gain, self.offset, self.error, self.shift = gain, offset, error, shift

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return 0.5 * self.gain * x.flatten(1).square().sum(1), (1 + self.error) * self.gain * x + self.shift

    def hessian(self, x: Tensor) -> HessianMap:
        return HessianMap(lambda v, kept: (1 + self.error) * self.gain * v)

    def convexity(self) -> float:
        return self.gain

    def smoothness(self) -> float:
        return self.gain

    def rounding_offset(self, x: Tensor) -> float:
        return self.offset


def within(bound: float, truth: float, share: float) -> None:
    assert truth <= bound * (1 + 1e-6), f"the bound {bound:.9g} is below the truth {truth:.9g}"
    assert truth >= share * bound, f"{truth:.9g} attains only {truth / bound:.3f} of the bound"


def zero(energy: Energy, x: float) -> tuple[float, float]:
    """The rounding of the energy and of products of its Hessian at x, for a gradient without summation."""
    at = pixel(x)
    return float(energy.rounding(at, number(0.0))), float(energy.product_rounding(at, number(0.0)))


@pytest.mark.parametrize("weight", [1.0, 3.0])
@pytest.mark.parametrize("factor", [1.0, 12.0])
def test_the_rounding_of_products_with_the_operator_is_attained(weight: float, factor: float) -> None:
    """||A||^2 L_D ||x|| c u_A: both for gradients, and for products of the Hessian; data are zero."""
    operator = Rough(forward=factor * U, factor=factor)
    energy = Energy(pixel(0.0), Scaled(0.0), operator, SquaredL2(weight))
    truth = abs(float(energy.grad(pixel(5.0))) - weight * 4 * 5.0)
    gradient, product = zero(energy, 5.0)
    within(gradient, truth, 0.999)
    within(product, truth, 0.999)


def test_the_pull_of_the_data_is_attained_at_zero() -> None:
    """A^T D'(0) is off by c u_A ||A|| ||D'(0)||, although x is zero."""
    energy = Energy(pixel(7.0), Scaled(0.0), Rough(back=3 * U, factor=3.0))
    within(zero(energy, 0.0)[0], abs(float(energy.grad(pixel(0.0))) + 14.0), 0.999)


def test_a_mismatch_of_the_adjoint_counts_in_full() -> None:
    operator = Rough(unit=0.0, back=1e-6)
    operator.adjoint_mismatch = 1e-6
    energy = Energy(pixel(7.0), Scaled(0.0), operator)
    within(zero(energy, 0.0)[0], abs(float(energy.grad(pixel(0.0))) + 14.0), 0.999)
    assert energy.basis.word == "estimated"


def test_what_the_fidelity_subtracts_is_attained() -> None:
    """D' = 1 - y/b with three roundings in the second term: counts near the background, D' small."""

    class Counts(KullbackLeibler):
        def grad(self, z: Tensor, y: Tensor) -> Tensor:
            return 1 - (1 + 3 * U) * y / (z + self.background)

    for scale in (1.0, 3.0):
        operator = Rough(scale)
        energy = Energy(pixel(20.0), Scaled(1.0), operator, Counts(2.0))
        exact = scale * (1 - 20.0 / 2.0)
        computed = float(energy.grad(pixel(0.0)))
        left = zero(energy, 0.0)[0] - U * float(energy._pull)
        within(left, abs(computed - exact), 0.96)
    assert float(KullbackLeibler(2.0).rounding_terms(torch.zeros(1, 1, 5, 5))) == 5.0  # the ones


@pytest.mark.parametrize("mu", [0.0, 2.0])
def test_the_gain_and_the_offset_of_the_regularizer_are_attained(mu: float) -> None:
    u = unit_roundoff(torch.float64)
    big = 2.0**20  # what is wrong by u times it can be told from the rounding of the test itself
    for gain, offset in ((3.0 * big, 0.0), (0.0, 5.0 * big)):
        regularizer = Scaled(gain, offset, error=u * big if gain else 0.0, shift=u * offset)
        energy = Energy(pixel(0.0), regularizer, Rough(unit=0.0), mu=mu)
        exact = (4 + mu + gain) * 3.0
        truth = abs(float(energy.grad(pixel(3.0))) - exact) / (big if gain else 1.0)
        bound = zero(energy, 3.0)[0] - u * (4 + mu) * 3.0
        within(bound, truth, 0.999)


def test_mu_has_a_part_in_the_gain() -> None:
    u = unit_roundoff(torch.float64)
    with_mu, without = (zero(Energy(pixel(0.0), Scaled(1.0), mu=mu), 1e6)[1] for mu in (1e3, 0.0))
    assert with_mu - without == pytest.approx(u * 1e3 * 1e6, rel=1e-9)


def test_an_unknown_gain_is_guessed_as_documented() -> None:
    class Unknown(Scaled):
        def smoothness(self) -> float:
            return math.inf

    u = unit_roundoff(torch.float64)
    for convexity, factor in ((0.5, 10.0), (3.0, 30.0)):
        energy = Energy(pixel(0.0), Unknown(convexity), Rough(1e-3, unit=0.0))
        assert zero(energy, 1.0)[1] == pytest.approx(u * factor, rel=1e-3, abs=0)
        assert energy.basis.word == "estimated"


def test_the_summation_of_norms_counts_eight_times() -> None:
    """Blocks of 128 squares in single precision, as :func:`per_image_norm` says; here only that it is in the model."""
    energy = Energy(pixel(0.0), Scaled(1.0))
    u = unit_roundoff(torch.float64)
    for bound in (energy.rounding, energy.product_rounding):
        assert float(bound(pixel(0.0), number(1.0))) == pytest.approx(8 * u, rel=1e-9, abs=0)


def test_the_unit_roundoff_is_attained() -> None:
    """1 + u rounds to 1, and is off by u."""
    for dtype in (torch.float32, torch.float64):
        u = torch.tensor(unit_roundoff(dtype), dtype=dtype)
        assert float(1 + u) == 1 < float(1 + 1.0001 * u)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_that_underflow_have_the_error_of_their_size(dtype: torch.dtype) -> None:
    """h = (G + 1) x^2 / 2 on n pixels: what flushes to zero is as large as the bound says."""
    tiny = max(torch.finfo(dtype).tiny, math.sqrt(torch.finfo(torch.float64).tiny))
    x = torch.full((2, 1, 30, 30), 0.999 * tiny, dtype=dtype)
    truth = 0.999 * tiny * 30
    within(underflow(x), truth, 0.99)
    energy = Energy(torch.zeros_like(x), Scaled(9.0))
    bound = float(energy._own_rounding(torch.zeros_like(x), torch.zeros(2, dtype=torch.float64), number(0.0))[0])
    within(bound, truth * (9 + 1 + 1), 0.99)  # the gradient, or the image itself, without the others
    within(float(energy.rounding(torch.zeros_like(x), number(0.0))[0]), truth * (9 + 1 + 1), 0.99)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_operator_decides_which_precision_is_worked_in(dtype: torch.dtype) -> None:
    u = unit_roundoff(dtype)
    energy = Energy(pixel(0.0), Scaled(1.0), Rough(unit=U))
    assert energy.unit(dtype) == U
    assert energy.working_dtype(dtype) == torch.float32
    assert Energy(pixel(0.0), Scaled(1.0), Rough(unit=0.0)).unit(dtype) == u


def test_moduli_are_those_of_the_normal_operator() -> None:
    """mu + a^2 w + G, below and above: with norms other than one."""
    energy = Energy(pixel(1.0), Scaled(0.5), Rough(3.0), SquaredL2(2.0), mu=0.25)
    curvature = float(energy.hessian(pixel(0.0))(pixel(1.0)))
    assert curvature == 18.75
    assert energy.strong_convexity == energy.smoothness == curvature
    assert energy.data_convexity == 18.25


# --- stopping --------------------------------------------------------------------------------------------------------


def test_the_certificate_is_attained_where_the_computed_gradient_vanishes() -> None:
    energy = Energy(pixel(8.0), Scaled(0.0), Rough(back=0.0, forward=-U, unit=U))
    x = pixel(8.0 / 2 / (1 - U))
    grad = energy.grad(x)
    assert abs(float(grad)) < 1e-12
    found = certificate(energy, x, grad.flatten(1).norm(dim=1), energy.strong_convexity)
    within(float(found.error), abs(float(x) - 4.0), 0.999)
    within(float(found.rounding), abs(float(x) - 4.0), 0.999)
    exact = certificate(energy, x, number(5.0), energy.strong_convexity)
    assert float(exact.error) == pytest.approx(5.0 / 4.0, rel=1e-3)


def judged(stopping: Stopping, energy: Energy, x: Tensor, norm: float) -> int:
    """The status of a single image with a gradient of this norm."""
    status = stopping.status(energy, x, norms_of(pixel(norm), x))
    return RUNNING if status is None else int(status)


def test_images_stop_where_certificates_say(steps: str) -> None:
    energy, x = Energy(pixel(8.0), Scaled(0.0), Rough(forward=U)), pixel(100.0)
    rounding = float(energy.rounding(x, number(1e-4)))

    def status(norm: float, accuracy: float, certified: bool = True) -> int:
        return judged(Stopping(energy, accuracy, x, certified), energy, x, norm)

    for certified, modulus in ((True, 4.0), (False, 1.0)):
        needed = (1e-3 + float(energy.rounding(x, number(1e-3)))) / modulus
        assert status(1e-3, needed * (1 + 1e-9), certified) == Status.CONVERGED
        assert status(1e-3, needed * (1 - 1e-9), certified) == -1
    assert status(0.999 * rounding, 1e-30) == Status.PRECISION_FLOOR
    assert status(1.001 * rounding, 1e-30) == -1
    assert status(math.nan, 1.0) == Status.NOT_FINITE


def test_stagnation_ends_only_near_the_floor_and_after_patience(steps: str) -> None:
    energy, x = Energy(pixel(8.0), Scaled(0.0), Rough(forward=U)), pixel(100.0)
    rounding = float(energy.rounding(x, number(1e-4)))
    for size, ends in ((999.0, True), (1002.0, False)):
        stopping = Stopping(energy, 1e-30, x)
        found = [judged(stopping, energy, x, size * rounding) for _ in range(PATIENCE + 2)]
        assert set(found[:PATIENCE]) == {-1}
        assert (found[-1] == Status.PRECISION_FLOOR) is ends
    stopping = Stopping(energy, 1e-30, x)  # by a tenth at a time it makes progress
    found = [judged(stopping, energy, x, 999.0 * rounding * 0.9 ** (k // 50)) for k in range(140)]
    assert set(found) == {-1}


# --- conjugate gradients ---------------------------------------------------------------------------------------------


def products(*errors: float, curvature: float = 1.0) -> HessianMap:
    """B v = c v, with the given relative errors one product after the other; the last goes on."""
    left = list(errors)
    return HessianMap(lambda v, kept: curvature * (1 + (left.pop(0) if len(left) > 1 else left[0])) * v)


def test_a_computed_residual_is_wrong_by_the_rounding_of_one_product(steps: str) -> None:
    rho, w = 1e-6, pixel(3.0)
    b = (1 + rho) * w
    solved = conjugate_gradients(products(rho), b, w, 1.0, rounding=rho)
    within(float(solved.residual_norm), abs(float(b - w)), 0.999)
    assert float(solved.residual_norm) >= abs(float(b - w)) * (1 - 1e-9)
    with_goal = conjugate_gradients(products(rho), b, w, 2.9e-6, rounding=rho)  # cannot be certified
    assert with_goal.status.item() == Status.PRECISION_FLOOR


def test_the_gap_of_the_recurred_residual_is_counted(steps: str) -> None:
    """A first product too large, a second too small: w is off by 2 rho, and the recurred residual is zero."""
    rho, w0 = 1e-6, pixel(5.0)
    solved = conjugate_gradients(products(rho, -rho), pixel(0.0), w0, 1e-2, rounding=rho)
    assert solved.evaluations.item() == 2
    within(float(solved.residual_norm), abs(float(solved.w)), 0.66)


def test_gaps_add_up_as_greenbaum_says(steps: str) -> None:
    """rounding times the sum of ||w|| + 2 ||step||, and ||w0||, beside textbook conjugate gradients."""
    spectrum = torch.tensor([1.0, 3.0, 10.0, 30.0], dtype=torch.float64).view(1, 1, 1, 4)
    b, rho = torch.ones_like(spectrum), 1e-9
    w = torch.full_like(b, 0.5)
    r = b - spectrum * w
    p, gap = r, float(w.norm())
    for _ in range(3):
        step = float(r.square().sum() / (p * spectrum * p).sum())
        w, new = w + step * p, r - step * spectrum * p
        gap += float(w.norm()) + 2 * step * float(p.norm())
        p, r = new + float(new.square().sum() / r.square().sum()) * p, new
    accuracy = 1.2 * float(r.norm())
    solved = conjugate_gradients(
        HessianMap(lambda v, kept: spectrum * v), b, torch.full_like(b, 0.5), accuracy, rounding=rho
    )
    assert solved.evaluations.item() == 4
    assert float(solved.residual_norm) - float(r.norm()) == pytest.approx(rho * gap, rel=1e-5)


@pytest.mark.parametrize("rho", [1e-15, 1e-9, 1e-2])
@pytest.mark.parametrize("accuracy", [1.0, 1e-6])
def test_what_conjugate_gradients_add_to_the_residual_is_modelled(rho: float, accuracy: float, steps: str) -> None:
    """The residual itself does not know the model, wherever and for whatever reason the iteration ends."""
    spectrum = torch.tensor([1.0, 3.0, 10.0, 30.0], dtype=torch.float64).view(1, 1, 1, 4).expand(2, 1, 1, 4)
    hessian = HessianMap(lambda v, kept: (spectrum if kept is None else spectrum[kept]) * v)
    b = torch.stack([torch.ones(1, 1, 4), torch.arange(4.0).view(1, 1, 4)]).double()
    solved = conjugate_gradients(hessian, b, torch.full_like(b, 0.5), accuracy, rounding=rho)
    proved, left = solved.residual_norm - solved.rounding, (b - spectrum * solved.w).flatten(1).norm(dim=1)
    torch.testing.assert_close(proved, left, rtol=1e-6, atol=1e-14)
    assert bool((solved.rounding >= 0.99 * rho * solved.w.flatten(1).norm(dim=1)).all())


def test_a_gap_beyond_a_hundredth_of_the_accuracy_is_looked_at(steps: str) -> None:
    """The residual is computed anew: one product more, and the rounding of that one alone."""
    rho, w0 = 1e-4, pixel(0.0)
    for accuracy, spent in ((0.05, 1), (0.02, 2)):  # the gap is 3 rho
        solved = conjugate_gradients(products(0.0), pixel(1.0), w0, accuracy, residual=pixel(1.0), rounding=rho)
        assert solved.evaluations.item() == spent
    assert float(solved.residual_norm) == pytest.approx(rho * 1.0, rel=1e-9)


def test_the_adjoint_of_an_energy_counts_the_rounding_of_its_operator_and_of_its_regularizer() -> None:
    """B = a^2 + G: solved exactly, only the rounding of the products is left, and it is attained by one of them."""
    for operator, regularizer in (
        (Rough(3.0, forward=5 * U, factor=5.0), Scaled(0.0)),
        (Rough(0.5, 0.0), Scaled(4.0, error=U)),
    ):
        energy = Energy(pixel(0.0), regularizer, operator)
        exact = operator.a**2 + regularizer.gain
        computed = float(energy.hessian(pixel(0.0))(pixel(1.0)))
        solved = energy.solve_adjoint(pixel(0.0), pixel(computed), pixel(1.0), 1.0, 10)
        scale = 1.0 if regularizer.gain == 0 else unit_roundoff(torch.float64) / U
        within(float(solved.residual_norm), abs(computed - exact) * scale, 0.93)


def test_hessians_at_rounded_images_are_those_of_other_points() -> None:
    """R'' = t x on [0, 1], linearized at x (1 + 4 u): T(w) is attained."""
    line, x, w = Line(t=3.0), pixel(0.5), pixel(7.0)
    energy = Energy(pixel(0.0), line, Rough(1e-6))
    truth = float((line.hessian(x * (1 + 4 * U))(w) - line.hessian(x)(w)).abs())
    zero = number(0.0)
    extra = energy.adjoint_rounding(x, w, zero, number(21.0)) - energy.product_rounding(w, zero)
    within(float(extra), truth, 0.999)


def test_norms_of_large_images_add_up_blocks_and_the_rest_in_double_precision() -> None:
    """A block of 2^27 beside a thousand of squares below its last digit, and pixels that fill no block."""
    x = torch.zeros(1, 128 * 1000 + 100)
    x[0, 0] = 2.0**13.5
    x[0, 128:128000:128] = 1.9
    exact = math.sqrt(2.0**27 + 999 * 1.9**2)
    assert float(per_image_norm(x)) == pytest.approx(exact, rel=2.0**-23, abs=0)
    x[0, 128000:] = 1e4
    assert float(per_image_norm(x)) == pytest.approx(math.sqrt(exact**2 + 1e10), rel=2.0**-23, abs=0)
