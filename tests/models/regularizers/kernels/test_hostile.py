"""Hostile images: the kernels say the same as the code in torch, whatever the numbers are."""

from __future__ import annotations

import math

import pytest
import torch

from models.regularizers.kernels import library
from tests.lower_level.problems import normal
from tests.models.regularizers.kernels.cases import MAKERS, everything, make

WHAT = ("value", "gradient", "Hessian", "maximum")


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "largest", "root of the largest", "least", "denormal"])
def test_one_hostile_pixel(
    level: str, name: str, dtype: torch.dtype, bad: float | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = torch.finfo(dtype)
    numbers = {"largest": info.max, "least": info.tiny, "denormal": info.tiny * info.eps}
    numbers["root of the largest"] = 2 * math.sqrt(info.max)
    number = numbers[bad] if isinstance(bad, str) else bad
    regularizer = make(name, 4, 3, dtype)
    v = normal(2, 1, 40, 23, seed=1).to(dtype)
    x = normal(2, 1, 40, 23).to(dtype)
    x[0, 0, 33, 17] = number  # in rows of both units
    found = everything(regularizer, x, v)
    monkeypatch.setenv(library.SWITCH, "off")
    expected = everything(regularizer, x, v)
    for what in WHAT:
        for special in (torch.isnan, torch.isinf):
            assert torch.equal(special(found[what]), special(expected[what])), (what, special)
        finite = expected[what].isfinite()
        mine, right = found[what][finite].double(), expected[what][finite].double()
        # single precision knows a small difference of huge numbers, of weakly convex profiles, up to their size
        scale = float(x[x.isfinite()].double().abs().max()) if what == "value" else 0.0
        tolerance = 1e2 * info.eps * (float(right.abs().max()) + 10 * scale) if len(right) else 0.0
        assert float((mine - right).abs().max() if len(right) else 0.0) <= tolerance, what


@pytest.mark.parametrize("name", MAKERS)
def test_nan_reaches_what_depends_on_it_and_nothing_else(level: str, name: str) -> None:
    regularizer = make(name, 3, 4, torch.float32)
    x, v = normal(2, 1, 50, 90).float(), normal(2, 1, 50, 90, seed=1).float()
    clean = everything(regularizer, x, v)
    x[1, 0, 30, 70] = math.nan
    found = everything(regularizer, x, v)
    for what in ("value", "gradient", "Hessian"):
        assert torch.equal(found[what][0], clean[what][0])
    for what in ("gradient", "Hessian"):
        reached = torch.zeros(50, 90, dtype=torch.bool)
        reached[27:34, 67:74] = True
        assert torch.equal(found[what][1, 0].isnan(), reached)
        # tiles with such pixels are computed by other functions, to the last digits
        torch.testing.assert_close(found[what][1, 0][~reached], clean[what][1, 0][~reached], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pixel", [(0, 0), (30, 70), (49, 89)])
def test_the_maximum_of_what_is_no_number_is_none(level: str, pixel: tuple[int, int], dtype: torch.dtype) -> None:
    """Wherever it is, also between larger numbers: a bound of the rest would be certified."""
    v = normal(2, 1, 50, 90).to(dtype)
    v[1, 0, *pixel] = math.nan
    found = make("log_cosh", 4, 3, dtype).filtered_maximum(v)
    assert bool(found[1].isnan().all())
    assert bool(found[0].isfinite().all())


@pytest.mark.parametrize("name", MAKERS)
def test_parameters_that_are_no_numbers(level: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for index, number in ((0, math.nan), (0, math.inf), (-1, math.nan)):
        regularizer, x = make(name, 5, 3, torch.float32), normal(1, 1, 9, 9).float()
        with torch.no_grad():
            list(regularizer.parameters())[index].view(-1)[1] = number
        value, grad = regularizer.value_and_grad(x)
        with monkeypatch.context() as context:
            context.setenv(library.SWITCH, "off")
            expected = regularizer.value_and_grad(x)
        assert torch.equal(value.isnan(), expected[0].isnan())
        assert torch.equal(grad.isnan(), expected[1].isnan())


@pytest.mark.parametrize("shape", [(0, 1, 9, 9), (0, 3, 3, 3)])
def test_empty_batches(level: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    regularizer, x = make("log_cosh", 4, 3, torch.float32), torch.zeros(shape)
    for switch in (level, "off"):
        monkeypatch.setenv(library.SWITCH, switch)
        found = everything(regularizer, x, x)
        assert found["value"].shape == (0,)
        assert found["gradient"].shape == found["Hessian"].shape == shape
        assert found["maximum"].shape == (0, 4)
        assert not found["weight"].any()


def test_other_precisions_are_refused_as_by_torch(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    regularizer = make("log_cosh", 4, 3, torch.float32)
    for dtype in (torch.float64, torch.int64):
        said = []
        for switch in (level, "off"):
            monkeypatch.setenv(library.SWITCH, switch)
            with pytest.raises(RuntimeError) as error:
                regularizer.value_and_grad(torch.ones(1, 1, 9, 9, dtype=dtype))
            said.append(str(error.value))
        assert said[0] == said[1]


def test_hessians_of_other_images_are_refused(level: str) -> None:
    """None of these may read beyond what is stored."""
    x = normal(2, 1, 9, 9).float()
    hessian = make("log_cosh", 4, 3, torch.float32).hessian(x)
    for other in (x.double(), x[:, :, :8], x[:1], torch.cat([x, x])):
        with pytest.raises(RuntimeError, match=r"takes torch\.float32 of shape \(2, 9, 9\)"):
            hessian(other)
    for index in (2, -3):
        with pytest.raises(IndexError, match="at 2 images"):
            hessian.select(torch.tensor([index]))(x[:1])
