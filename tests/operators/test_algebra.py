"""Operators made of operators: no term of their bounds can be left out."""

from __future__ import annotations

import math

import pytest
import torch

from recon.operators import (
    Identity,
    LinearOperator,
    Restriction,
    stack,
)
from tests.operators.algebra_parts import Dense, Unknown, matrix_of, normal, one
from tests.operators.checks import (
    assert_bounds,
    singular_values,
)


@pytest.mark.parametrize("seed", range(3))
def test_bounds_are_reached_where_the_parts_fit(seed: int) -> None:
    """No bound can be smaller, nor a lower bound larger, for all operators with what is known of the parts."""
    u, v, w = (torch.linalg.qr(normal(4, 4, seed=3 * seed + k))[0] for k in range(3))
    s, t = (torch.diag(0.5 + normal(4, seed=10 * seed + k).abs().sort(descending=True)[0]) for k in range(2))
    a, b = Dense(u @ s @ v.T), Dense(v @ t @ w.T)
    assert_bounds(a @ b, 1e-12)  # singular vectors that fit
    assert (a @ b).lower_bound == pytest.approx(float(singular_values(a @ b)[-1]))
    assert_bounds(a.T, 1e-12)
    assert a.T.lower_bound == pytest.approx(float(singular_values(a.T)[-1]))
    c = Dense(u @ t @ v.T)
    assert_bounds(a + c, 1e-12)
    weights = torch.linspace(-3, 2, 4, dtype=torch.float64)
    diagonal = Dense(torch.diag(torch.tensor([5.0, 3.0, 2.0, 2.0], dtype=torch.float64)))
    assert_bounds(weights * diagonal, 1e-12)
    assert (weights * diagonal).lower_bound == pytest.approx(2 * 1 / 3)
    stacked = stack([a, Dense(w @ t @ v.T)])
    assert_bounds(stacked, 1e-12)
    assert stacked.lower_bound == pytest.approx(float(singular_values(stacked)[-1]))


def test_lower_bounds_of_sums_are_reached() -> None:
    """3 - 1, whichever is the larger one; what is only estimated to be 1 may be 3."""
    for a, b in ((one(3.0), one(-1.0)), (one(-1.0), one(3.0))):
        assert (a + b).lower_bound == pytest.approx(2.0)
        assert float(singular_values(a + b)[-1]) == pytest.approx(2.0)
    assert (one(2.0) + one(-2.0)).lower_bound == 0.0
    small = one(-1.0)
    small.norm_bound_certified = False
    assert (one(3.0) + small).lower_bound == 0.0
    assert (small + one(3.0)).lower_bound == 0.0


def test_the_transpose_of_an_operator_with_more_data_than_pixels_has_a_kernel() -> None:
    tall = Dense(normal(4, 3))
    assert tall.lower_bound > 0
    assert tall.T.lower_bound == 0
    assert Identity().T.lower_bound == 1
    assert (tall @ Dense(normal(3, 3, seed=1))).lower_bound > 0


def mismatch_of(operator: LinearOperator) -> float:
    """||A' - A^T|| / norm_bound by the matrices of both."""
    assert operator.range_shape is not None
    basis = torch.eye(math.prod(operator.range_shape), dtype=torch.float64)
    adjoint = operator.adjoint(basis.reshape(-1, *operator.range_shape)).flatten(1).T
    return float(torch.linalg.matrix_norm(adjoint - matrix_of(operator).T, 2)) / operator.norm_bound


def test_what_adjoints_are_off_by_is_reached() -> None:
    """Numbers whose transposes are too large: every term of the bounds is needed, and nothing else."""
    a, b = one(2.0, 2.2), one(3.0, 3.9)
    for operator, expected in (
        (a @ b, 0.1 + 0.3 + 0.1 * 0.3),
        (a + b, (0.1 * 2 + 0.3 * 3) / 5),
        (-5 * a, 0.1),
        (torch.tensor([-5.0]).double() * a, 0.1),
        (a.T, 0.1 / 1.1),
        ((a @ b).T, 0.43 / 1.43),
    ):
        assert operator.adjoint_mismatch == pytest.approx(expected)
        assert mismatch_of(operator) == pytest.approx(expected)
    stacked = stack([a, b])
    assert stacked.adjoint_mismatch == pytest.approx(math.hypot(0.2, 0.9) / math.hypot(2, 3))
    assert mismatch_of(stacked) == pytest.approx(stacked.adjoint_mismatch)
    # A' is larger than A, and nothing that was measured is a proof
    assert a.T.norm_bound == pytest.approx(2.2)
    assert not a.T.norm_bound_certified
    assert a.T.lower_bound == 0
    exact = (one(2.0) @ one(3.0), one(2.0) + one(3.0), 2 * one(2.0), stack([one(2.0), one(3.0)]), one(2.0).T)
    assert all(operator.adjoint_mismatch == 0 and operator.norm_bound_certified for operator in exact)
    nothing = one(1.0)
    nothing.norm_bound = nothing.lower_bound = 0.0
    assert (nothing + nothing).adjoint_mismatch == stack([nothing]).adjoint_mismatch == 0


COMBINATIONS = {
    "product": lambda a, b: (a @ b, b @ a),
    "sum": lambda a, b: (a + b, b + a),
    "stack": lambda a, b: (stack([a, b]), stack([b, a])),
    "others": lambda a, b: (a.T, 2 * a, torch.ones(3) * a, -a, a.T @ b.T),
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_one_part_that_is_not_exact_is_enough(name: str) -> None:
    """Estimated norms, adjoints that are not, and single precision under double: the whole has them."""
    good = COMBINATIONS[name](Unknown(2.0), Unknown(3.0))
    assert all(o.norm_bound_certified and o.adjoint_exact for o in good)
    assert all(o.unit_roundoff(torch.float64) == 2.0**-53 for o in good)
    estimated, wrong, single = Unknown(2.0, certified=False), Unknown(2.0), Unknown(2.0)
    wrong.adjoint_exact = False
    single.unit_roundoff = lambda dtype: 2.0**-24  # type: ignore[method-assign]
    assert not any(o.norm_bound_certified for o in COMBINATIONS[name](estimated, Unknown(3.0)))
    assert not any(o.adjoint_exact for o in COMBINATIONS[name](wrong, Unknown(3.0)))
    assert all(o.unit_roundoff(torch.float64) == 2.0**-24 for o in COMBINATIONS[name](single, Unknown(3.0)))
    assert not wrong.T.norm_bound_certified  # nobody knows how large A' is


def test_rounding_factors() -> None:
    """Products add them up; all others have that of the worst part, and at least that of a sum of few terms."""
    a, b, part = Unknown(2.0), Unknown(3.0), Restriction(3, (3,))
    a.rounding_factor, b.rounding_factor = 5.0, 7.0
    assert (a @ b).rounding_factor == 12.0
    assert (a + b).rounding_factor == (b + a).rounding_factor == 7.0
    assert stack([a, b]).rounding_factor == stack([b, a]).rounding_factor == 7.0
    assert (2 * a).rounding_factor == (torch.ones(3) * a).rounding_factor == a.T.rounding_factor == 5.0
    assert (a @ part).rounding_factor == (part.T @ a).rounding_factor == 5.0
    assert (2 * part).rounding_factor == (part + part).rounding_factor == stack([part]).rounding_factor == 1.0
    assert (part @ part.T).rounding_factor == part.T.rounding_factor == 0.0


@pytest.mark.parametrize("count", [1, 8, 32])
def test_rounding_errors_of_products_are_within_the_model(count: int) -> None:
    """Rotations in float32, where norms have no slack: errors grow with the factors, and c not much faster."""

    def rotation(seed: int) -> Dense:
        return Dense(torch.linalg.qr(normal(2, 2, seed=seed))[0].float().double())

    operator: LinearOperator = rotation(0)
    for seed in range(1, count):
        operator = operator @ rotation(seed)
    assert operator.rounding_factor == count
    x = normal(100, 2, seed=99).float()
    error = (operator.adjoint(operator(x)).double() - operator.adjoint(operator(x.double()))).norm(dim=1)
    relative = float((error / x.double().norm(dim=1)).square().mean().sqrt())
    model = operator.rounding_factor * operator.unit_roundoff(torch.float32) * operator.norm_bound**2
    assert 0.1 * model < relative <= model


def test_derivatives_in_what_is_learned_are_bounded() -> None:
    """||d <Ax, y> / d matrix|| <= c ||x|| ||y||, reached by numbers."""
    for build, expected in (
        (lambda a, b: a @ b, {0: 3.0, 1: 2.0}),
        (lambda a, b: a + b, {0: 1.0, 1: 1.0}),
        (lambda a, b: -4 * a, {0: 4.0}),
        (lambda a, b: stack([a, b]), {0: 1.0, 1: 1.0}),
        (lambda a, b: (a @ b).T, {0: 3.0, 1: 2.0}),
    ):
        learned = [torch.tensor([[v]], dtype=torch.float64, requires_grad=True) for v in (2.0, 3.0)]
        parts = []
        for m in learned:
            part = one(float(m.detach()))
            part.matrix = part.other = m
            part.learned = True
            parts.append(part)
        operator = build(*parts)
        bounds = {next(i for i, m in enumerate(learned) if m is t): c for t, c in operator.tensors()}
        assert bounds == pytest.approx(expected)
        x, y = torch.ones(1, *operator.domain_shape).double(), torch.ones(1, *operator.range_shape).double()
        for i, c in bounds.items():
            weights = [torch.zeros_like(y).index_fill(1, torch.tensor([k]), 1.0) for k in range(y.shape[1])]
            slopes = [
                torch.autograd.grad((operator(x) * w).sum(), learned[i], allow_unused=True, materialize_grads=True)[0]
                for w in weights
            ]
            assert max(float(s.norm()) for s in slopes) == pytest.approx(c)


def longest_steps(operator: LinearOperator) -> float:
    """||S^(-1/2) A T^(-1/2)|| for its absolute sums; steps are safe up to 1."""
    sums = operator.absolute_sums()
    assert sums is not None
    rows, columns = sums[1].double().flatten(), sums[0].double().flatten()
    return float(torch.linalg.matrix_norm(matrix_of(operator) / rows.sqrt()[:, None] / columns.sqrt(), 2))


def test_absolute_sums_give_safe_steps() -> None:
    """For operators on parts, and for stacks of what knows its sums and what does not; as long as they can be."""
    first, second = Dense(normal(4, 6)), Dense(normal(3, 2, seed=1))
    unknown = Unknown(2.0, n=6, rows=2)
    unknown._forward = lambda x: 2 * x[:, :2]  # type: ignore[method-assign]
    on_part = second @ Restriction(6, (2,), start=1)
    sums = on_part.absolute_sums()
    assert sums is not None
    assert sums[0].tolist() == [0.0] + 2 * [pytest.approx(second.norm_bound)] + 3 * [0.0]
    for operator in (stack([first, on_part]), stack([first, unknown]), stack([first, on_part, unknown])):
        assert 0.5 < longest_steps(operator) <= 1 + 1e-6
    assert longest_steps(Dense(normal(2, 3, seed=6)) @ Dense(normal(3, 6, seed=5))) <= 1 + 1e-12
    double = Dense(2 * torch.eye(2, dtype=torch.float64))
    assert longest_steps(double @ Dense(torch.diag(torch.tensor([1.0, 4.0]).double()))) == pytest.approx(1)
    assert longest_steps(stack([double.T])) == pytest.approx(1)
    estimated = Unknown(2.0, certified=False, n=6)
    assert stack([first, estimated]).absolute_sums() is None
    assert (Unknown(2.0, certified=False) @ Restriction(6, (3,))).absolute_sums() is None
    assert (Unknown(2.0) @ Unknown(2.0)).absolute_sums() is None


def test_parts_of_vectors() -> None:
    """Norm 1; something is lost unless the part is all of it."""
    part, whole = Restriction(9, (2, 3), start=2), Restriction(6, (2, 3))
    assert_bounds(part, 1e-12)
    assert_bounds(whole, 1e-12)
    assert (part.lower_bound, whole.lower_bound) == (0.0, 1.0)
    x = normal(1, 9)
    assert torch.equal(part(x), x[:, 2:8].view(1, 2, 3))
    sums = part.absolute_sums()
    assert sums[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0]
    assert torch.equal(sums[1], torch.ones(2, 3))
