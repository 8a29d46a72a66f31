"""Operators made of operators: what they compute, take and refuse."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch

from recon.operators import (
    Blur,
    CartesianMRI,
    FiniteDifferences,
    Identity,
    Mask,
    Restriction,
    check_adjoint,
    check_bounds,
    stack,
)
from recon.operators.algebra import Composition, Scaled, Stack, Sum, Transpose
from tests.operators.algebra_parts import Dense, matrix_of, normal
from tests.operators.checks import (
    assert_adjoint,
    assert_linear,
    assert_operator,
    random_data,
    random_image,
)

SHAPE = (1, 4, 5)
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


def test_factors_of_factors_are_one_factor() -> None:
    a, w = Dense(normal(4, 3)), normal(4, seed=1)
    twice = 2 * (w * (3 * a))
    assert isinstance(twice, Scaled)
    assert twice.parts[0] is a
    torch.testing.assert_close(matrix_of(twice), 6 * w[:, None] * a.matrix)
    assert not twice.state_dict()  # what belongs to the problem is not saved


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
