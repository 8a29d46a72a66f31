"""Operators made of operators: what they compute, and that no term of their bounds can be left out."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from recon.operators import (
    Blur,
    CartesianMRI,
    FiniteDifferences,
    Identity,
    LinearOperator,
    Mask,
    Restriction,
    apply_linear,
    check_adjoint,
    check_bounds,
    stack,
)
from recon.operators.algebra import Composition, Scaled, Stack, Sum, Transpose
from tests.operators.checks import (
    assert_adjoint,
    assert_bounds,
    assert_linear,
    assert_operator,
    random_data,
    random_image,
    singular_values,
)

SHAPE = (1, 4, 5)


class Dense(LinearOperator):
    """A matrix through foreign code; ``adjoint`` may be another one, and so may what is stated of all this."""

    def __init__(self, matrix: Tensor, other: Tensor | None = None, learned: bool = False) -> None:
        s = torch.linalg.svdvals(matrix)
        lower = float(s[-1]) if matrix.shape[0] >= matrix.shape[1] else 0.0
        super().__init__((matrix.shape[1],), (matrix.shape[0],), float(s[0]), lower)
        self.complex_domain = self.complex_range = matrix.is_complex()
        self.matrix, self.other, self.learned = matrix, matrix if other is None else other, learned
        self.adjoint_mismatch = float(torch.linalg.matrix_norm(self.other - matrix, 2)) / float(s[0])

    def tensors(self) -> list[tuple[Tensor, float]]:
        return [(self.matrix, 1.0)] if self.learned else []

    def absolute_sums(self) -> tuple[Tensor, Tensor]:
        return self.matrix.abs().sum(0), self.matrix.abs().sum(1)

    def _forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T if self.learned else apply_linear(x, self._matvec, self._rmatvec)

    def _adjoint(self, y: Tensor) -> Tensor:
        return y @ self.other.conj() if self.learned else apply_linear(y, self._rmatvec, self._matvec)

    def _matvec(self, x: Tensor) -> Tensor:
        return x.detach() @ self.matrix.to(x.dtype).T

    def _rmatvec(self, y: Tensor) -> Tensor:
        return y.detach() @ self.other.conj().to(y.dtype)


class Unknown(LinearOperator):
    """Rows whose bounds are what the test says."""

    def __init__(self, norm: float, lower: float = 0.0, certified: bool = True, n: int = 3, rows: int = 3) -> None:
        super().__init__((n,), (rows,), norm, lower, certified)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one(value: float, adjoint: float | None = None) -> Dense:
    """A number, transposed with another one."""
    return Dense(*(torch.tensor([[v]], dtype=torch.float64) for v in (value, value if adjoint is None else adjoint)))


def matrix_of(operator: LinearOperator) -> Tensor:
    assert operator.domain_shape is not None
    basis = torch.eye(math.prod(operator.domain_shape), dtype=torch.float64)
    return operator(basis.reshape(-1, *operator.domain_shape)).flatten(1).T


DIFFERENCES = FiniteDifferences(SHAPE)
BLUR = Blur(torch.full((3, 3), 1 / 9, dtype=torch.float64), SHAPE)
MASK = Mask(torch.arange(20).view(SHAPE) % 3 != 0)
WEIGHTS = 0.5 + normal(2, 4, 5, seed=3).abs()
CASES = {
    "product": lambda: DIFFERENCES @ BLUR,
    "product of three": lambda: DIFFERENCES.T @ DIFFERENCES @ MASK,
    "product of foreign code": lambda: Dense(normal(4, 3)) @ Dense(normal(3, 5, seed=1)),
    "transpose": lambda: DIFFERENCES.T,
    "transpose of a product": lambda: (DIFFERENCES @ BLUR).T,
    "sum": lambda: BLUR + MASK,
    "difference": lambda: BLUR - Identity(),
    "multiple": lambda: -0.7 * BLUR,
    "weights": lambda: WEIGHTS * DIFFERENCES,
    "stack": lambda: stack([BLUR, DIFFERENCES, 2 * Identity(SHAPE)]),
    "transpose of a stack": lambda: stack([BLUR, DIFFERENCES]).T,
    "part of a vector": lambda: Restriction(25, SHAPE, start=3),
    "operator on a part": lambda: DIFFERENCES @ Restriction(25, SHAPE, start=5),
    "complex product": lambda: Dense(torch.complex(normal(3, 4), normal(3, 4, seed=1))) @ Dense(
        torch.complex(normal(4, 4, seed=2), normal(4, 4, seed=3))
    ),
    "complex transpose": lambda: Dense(torch.complex(normal(3, 4), normal(3, 4, seed=1))).T,
    "complex stack": lambda: stack([Dense(torch.complex(normal(3, 4), normal(3, 4, seed=s))) for s in (1, 2)]),
    "parts of numbers": lambda: (2 * CartesianMRI(torch.ones(4, 4).bool())).T,
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_is_an_operator_with_derivatives_of_any_order(name: str) -> None:
    """Adjoint, linearity, first and second derivatives, precision, batches, and bounds that hold."""
    operator = CASES[name]()
    assert_operator(operator, tightness=20.0)
    check_bounds(operator)


def test_forward_mode_derivatives_of_foreign_code() -> None:
    a, b = Dense(normal(3, 3)), Dense(normal(3, 3, seed=1))
    x = normal(2, 3, seed=2).requires_grad_()
    for operator in (a @ b.T, a - 2 * b, normal(6, seed=3) * stack([a, b])):
        assert torch.autograd.gradcheck(operator, (x,), check_forward_ad=True)
        assert torch.autograd.gradcheck(operator.T, (operator(x).detach().requires_grad_(),), check_forward_ad=True)


def test_computes_what_its_name_says() -> None:
    a, b = Dense(normal(4, 3)), Dense(normal(4, 3, seed=1))
    c, w, x = Dense(normal(3, 5, seed=2)), normal(4, seed=3), normal(2, 3, seed=4)
    for operator, expected in (
        (a @ c, a.matrix @ c.matrix),
        (a.T, a.matrix.T),
        (a + b, a.matrix + b.matrix),
        (a - b, a.matrix - b.matrix),
        (3 * a, 3 * a.matrix),
        (-a, -a.matrix),
        (w * a, w[:, None] * a.matrix),
        (stack([a, b]), torch.cat([a.matrix, b.matrix])),
        ((a @ c).T, (a.matrix @ c.matrix).T),
    ):
        torch.testing.assert_close(matrix_of(operator), expected)
        torch.testing.assert_close(matrix_of(operator.T), expected.T)
    y = stack([a, b])(x)
    assert all(torch.equal(p, q(x)) for p, q in zip(stack([a, b]).split(y), (a, b), strict=True))
    assert a.T.T is a


def test_the_transpose_of_complex_numbers_is_conjugate() -> None:
    """As ``adjoint`` is."""
    a = Dense(torch.complex(normal(3, 4), normal(3, 4, seed=1)))
    y = torch.complex(normal(2, 3, seed=2), normal(2, 3, seed=3))
    torch.testing.assert_close(a.T(y), y @ a.matrix.conj())


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


def test_factors_of_factors_are_one_factor() -> None:
    a, w = Dense(normal(4, 3)), normal(4, seed=1)
    twice = 2 * (w * (3 * a))
    assert isinstance(twice, Scaled)
    assert twice.parts[0] is a
    torch.testing.assert_close(matrix_of(twice), 6 * w[:, None] * a.matrix)
    assert not twice.state_dict()  # what belongs to the problem is not saved


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


def test_operators_of_any_shape_take_that_of_their_partner() -> None:
    for operator in (Identity() @ DIFFERENCES, DIFFERENCES @ Identity(), Identity() @ Identity(SHAPE)):
        assert operator.domain_shape == SHAPE
        assert operator.range_shape in (SHAPE, DIFFERENCES.range_shape)
    assert (BLUR + Identity()).domain_shape == (Identity() + BLUR).range_shape == SHAPE
    assert stack([Identity(), DIFFERENCES]).range_shape == (60,)
    anything = Identity() + Identity()
    assert anything.domain_shape is None
    assert check_adjoint(anything.T, domain_shape=(3,)) < 1e-15


def test_images_are_shown_as_those_of_the_operator_on_them() -> None:
    mri, x = CartesianMRI(torch.ones(4, 4).bool()), normal(1, 2, 4, 4)
    shown = mri.display(x)
    for operator in (mri + mri, 2 * mri, stack([mri, mri]), mri.T @ mri):
        assert torch.equal(operator.display(x), shown)
    assert torch.equal(mri.T.display(x), x)


def test_copies_and_precision_follow_the_parts() -> None:
    operator = stack([WEIGHTS * DIFFERENCES, 2 * BLUR])
    other = copy.deepcopy(operator).float()
    x = random_image(operator)
    torch.testing.assert_close(other(x), operator(x), rtol=1e-6, atol=1e-6)
    assert operator(x.float()).dtype == torch.float32
    assert operator.adjoint(random_data(operator).float()).dtype == torch.float32
    assert {type(p) for p in operator.modules()} >= {Stack, Scaled, Blur, FiniteDifferences}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BLUR @ DIFFERENCES, r"Blur from \(1, 4, 5\) to \(1, 4, 5\) and FiniteDifferences .* to \(2, 4, 5\)"),
        (lambda: BLUR + DIFFERENCES, r"A \+ B .* Blur from \(1, 4, 5\) .* and FiniteDifferences from \(1, 4, 5\)"),
        (lambda: DIFFERENCES - Identity(), r"FiniteDifferences .* and Scaled from any shape to any shape"),
        (lambda: Dense(normal(3, 3)) @ Dense(torch.complex(normal(3, 3), normal(3, 3))), "to complex \\(3,\\)"),
        (lambda: stack([BLUR, Dense(normal(3, 3))]), r"different domains: Blur .* and Dense from \(3,\) to \(3,\)"),
        (lambda: stack([Identity()]), "cannot be put one after the other: Identity from any shape"),
        (lambda: stack([]), "at least one operator"),
        (lambda: torch.ones(4, 5) * BLUR, r"shape \(4, 5\) are not one for each datum of Blur from \(1, 4, 5\)"),
        (lambda: math.nan * BLUR, "factors of Blur from .* must be real, finite and constant"),
        (lambda: torch.full(SHAPE, math.inf) * BLUR, "must be real, finite and constant"),
        (lambda: torch.ones(SHAPE, dtype=torch.complex64) * BLUR, "must be real, finite and constant"),
        (lambda: torch.ones(SHAPE, requires_grad=True) * BLUR, "must be real, finite and constant"),
        (lambda: Restriction(19, SHAPE), r"vectors of 19 entries have no part of the shape \(1, 4, 5\) from 0 on"),
        (lambda: Restriction(30, SHAPE, start=-1), "from -1 on"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(build, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("build", [lambda: BLUR @ 3, lambda: BLUR + 3, lambda: BLUR - 3, lambda: "3" * BLUR])
def test_other_things_are_no_operators(build) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TypeError):
        build()


def test_classes() -> None:
    """What is made of operators can be taken apart."""
    a, b = Dense(normal(3, 3)), Dense(normal(3, 3, seed=1))
    for operator, kind, parts in ((a @ b, Composition, (a, b)), (a + b, Sum, (a, b)), (a.T, Transpose, (a,))):
        assert isinstance(operator, kind)
        assert tuple(operator.parts) == parts
    assert_adjoint(a @ b)
    assert_linear(a - b)


def test_documented_algebra(capsys: pytest.CaptureFixture[str]) -> None:
    """The code of docs/own_operator.md runs as it is printed there, one block after the other."""
    page = (Path(__file__).parents[2] / "docs" / "own_operator.md").read_text()
    blocks = [block.split("```")[0] for block in page.split("```python")[1:3]]
    exec("".join(blocks), {"__name__": "page"})
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].startswith("||camera|| <= 0.5")
    assert printed[2].startswith("certified: ||x - x^|| <= ")
