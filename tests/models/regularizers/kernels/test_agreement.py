"""The compiled kernels compute what the code in torch and automatic differentiation do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.regularizers.kernels import library
from models.regularizers.ridge import RidgeRegularizer
from recon.lower_level import Regularizer
from tests.lower_level.problems import normal
from tests.models.regularizers.kernels.cases import MAKERS, everything, make

#: largest errors, relative to the largest entry or what :func:`compare` says; of derivatives in parameters, the second
TOLERANCES = {torch.float32: (2e-6, 2e-5), torch.float64: (1e-14, 1e-13)}


def compare(regularizer: RidgeRegularizer, x: Tensor, v: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernels compute, against the code in torch.

    psi'' may be nearly zero at all pixels, a difference of numbers of size sup psi''; derivatives in parameters are
    sums over pixels, and may cancel.
    """
    found = everything(regularizer, x, v)
    with monkeypatch.context() as context:
        context.setenv(library.SWITCH, "off")
        expected = everything(regularizer, x, v)
    entries, sums = TOLERANCES[x.dtype]
    sizes = {name: float(right.double().abs().max()) for name, right in expected.items()}
    sizes["Hessian"] = max(sizes["Hessian"], regularizer.smoothness() * float(v.abs().max()))
    derivatives = [name for name, _ in regularizer.named_parameters()]
    sizes |= dict.fromkeys(derivatives, max(sizes[name] for name in derivatives))
    for name, right in expected.items():
        mine = found[name]
        assert (mine.shape, mine.dtype) == (right.shape, right.dtype), name
        error, bound = (
            float((mine - right).double().abs().max()),
            (sums if name in derivatives else entries) * sizes[name],
        )
        assert error <= bound, (name, error, bound)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("filters", "size", "shape"),
    [
        (1, 2, (1, 1, 2, 2)),  # one pixel
        (5, 3, (2, 3, 3, 40)),  # one row, channels
        (7, 4, (2, 1, 41, 4)),  # one column, two units of rows
        (13, 5, (1, 1, 37, 20)),
        (3, 9, (1, 1, 40, 45)),  # more shifts than registers
    ],
)
def test_values_and_derivatives_are_those_of_torch(
    level: str,
    name: str,
    dtype: torch.dtype,
    filters: int,
    size: int,
    shape: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    regularizer, x, v = make(name, filters, size, dtype), normal(*shape).to(dtype), normal(*shape, seed=1).to(dtype)
    compare(regularizer, x, v, monkeypatch)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("filters", "size", "shape"),
    [
        (1, 2, (1, 3, 2, 2)),  # one pixel
        (5, 3, (2, 3, 3, 40)),  # one row
        (7, 4, (2, 2, 41, 4)),  # one column, two units of rows
        (13, 5, (1, 5, 37, 20)),
        (3, 9, (2, 3, 70, 145)),  # more shifts than registers; three units, and tiles
    ],
)
def test_channels_that_are_coupled(
    level: str,
    name: str,
    dtype: torch.dtype,
    filters: int,
    size: int,
    shape: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    regularizer = make(name, filters, size, dtype, shape[1])
    x, v = normal(*shape).to(dtype), normal(*shape, seed=1).to(dtype)
    assert regularizer._bank(x) is not None
    compare(regularizer, x, v, monkeypatch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("filters", [1, 6, 8])
def test_widths_around_those_of_vectors_tiles_and_strips(
    level: str, dtype: torch.dtype, filters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    regularizer = make("smoothed_l1", filters, 3, dtype)
    for width in (*range(3, 21), 33, 34, 35, 65, 66, 67, 68, 129, 131, 1200, 9000):
        x, v = normal(1, 1, 3, width).to(dtype), normal(1, 1, 3, width, seed=1).to(dtype)
        compare(regularizer, x, v, monkeypatch)


@pytest.mark.parametrize("height", [3, 33, 34, 35, 36, 66, 67])
def test_heights_around_those_of_units(level: str, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    regularizer, x, v = make("student_t", 2, 3, torch.float64), normal(2, 1, height, 5), normal(2, 1, height, 5, seed=1)
    compare(regularizer, x, v, monkeypatch)


@pytest.mark.parametrize("name", MAKERS)
def test_values_and_derivatives_are_those_of_automatic_differentiation(level: str, name: str) -> None:
    regularizer, x, v = make(name, 5, 3, torch.float64), normal(2, 2, 9, 8), normal(2, 2, 9, 8, seed=1)
    value, grad = Regularizer.value_and_grad(regularizer, x)
    torch.testing.assert_close(regularizer.value_and_grad(x)[0], value, rtol=1e-12, atol=0)
    torch.testing.assert_close(regularizer.value_and_grad(x)[1], grad, rtol=1e-10, atol=1e-12)
    product = Regularizer.hessian(regularizer, x)(v)
    torch.testing.assert_close(regularizer.hessian(x)(v), product, rtol=1e-10, atol=1e-11)
    automatic = Regularizer.parameter_vjp(regularizer, x, v)
    for mine, right in zip(regularizer.parameter_vjp(x, v), automatic, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-9, atol=1e-9)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(MAKERS)),
    filters=st.integers(1, 14),
    size=st.integers(2, 10),
    more=st.tuples(st.integers(0, 70), st.integers(0, 140)),
    batch=st.integers(1, 3),
    single=st.booleans(),
)
def test_all_shapes(
    level: str,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    filters: int,
    size: int,
    more: tuple[int, int],
    batch: int,
    single: bool,
) -> None:
    dtype = torch.float32 if single else torch.float64
    shape = (batch, 1, size + more[0], size + more[1])
    regularizer, x, v = make(name, filters, size, dtype), normal(*shape).to(dtype), normal(*shape, seed=1).to(dtype)
    compare(regularizer, x, v, monkeypatch)


@pytest.mark.parametrize(("channels", "coupled"), [(1, 1), (2, 1), (2, 2)])
def test_hessian_of_some_of_the_images(level: str, channels: int, coupled: int) -> None:
    regularizer, x, v = (
        make("log_cosh", 4, 3, torch.float64, coupled),
        normal(4, channels, 8, 9),
        normal(4, channels, 8, 9, seed=1),
    )
    hessian = regularizer.hessian(x)
    everywhere = hessian(v)
    for kept in ([2], [3, 0], [-1, 1], [0, 1, 2, 3]):
        index = torch.tensor(kept)
        assert torch.equal(hessian.select(index)(v[index]), everywhere[index])
    again = hessian.select(torch.tensor([3, 1])).select(torch.tensor([1]))
    assert torch.equal(again(v[1:2]), everywhere[1:2])
