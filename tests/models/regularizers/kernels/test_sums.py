"""What compiled kernels add up over large images, and what earlier calls have left in their memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models import ICNN, LeakyReLU
from models.regularizers.kernels import Bank, Profiles, compiled, compiled_network
from recon.lower_level import Regularizer
from tests.lower_level.problems import normal
from tests.models.regularizers.kernels.cases import make


def bank(x: Tensor, dtype: torch.dtype) -> Tensor:
    profiles = Profiles("smoothed_l1", (torch.ones(2, 1, dtype=dtype), torch.full((2, 1), 0.25, dtype=dtype)))
    found = compiled(x, normal(2, 3, 3).float().to(dtype), profiles)
    assert isinstance(found, Bank)
    return found.value_and_grad(x[:, 0])[0]


def network(x: Tensor, dtype: torch.dtype) -> Tensor:
    kernels, inner = normal(3, 1, 3, 3).float().to(dtype), normal(3, 3, 3, 3, seed=1).abs().float().to(dtype)
    zero, one = torch.zeros(3, dtype=dtype), torch.ones(3, 1, 1, dtype=dtype)
    found = compiled_network(x, [kernels, inner], [zero, zero], one, LeakyReLU(0.25, 0.25, "smooth"))
    assert found is not None
    return found.value_and_grad(x[:, 0])[0]


@pytest.mark.parametrize("value", [bank, network])
def test_values_of_large_images_add_up_in_double_precision(level: str, value: object) -> None:
    """Rounding errors of pixels cancel, a sum in single precision would be off by more."""
    assert callable(value)
    x = normal(1, 1, 600, 600).float()
    exact = value(x.double(), torch.float64)
    assert float((value(x, torch.float32) / exact - 1).abs()) < 1e-8


@pytest.mark.parametrize(("value", "reach"), [(bank, 3), (network, 5)])
def test_equal_pixels_add_up_to_a_multiple_of_one(level: str, value: object, reach: int) -> None:
    """Of two rows, which networks compute at once: in single precision the sum would have rounding errors."""
    assert callable(value)
    few, many = torch.full((1, 1, reach + 1, reach), 0.7), torch.full((1, 1, reach + 599, reach + 599), 0.7)
    expected = 300 * 600 * float(value(few, torch.float32))
    assert float(value(many, torch.float32)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["filters", "network"])
def test_nothing_is_seen_of_earlier_images(level: str, kind: str) -> None:
    """Derivatives in parameters multiply what is right of an image by zero: it must not be NaN of another one."""
    regularizer: Regularizer = make("log_cosh", 4, 3, torch.float32) if kind == "filters" else ICNN(4, 3, 1, 3)
    x, other = normal(1, 1, 30, 40).float(), torch.full((1, 1, 50, 120), math.nan)
    expected = regularizer.parameter_vjp(x, x)
    regularizer.parameter_vjp(other, other)
    for mine, right in zip(regularizer.parameter_vjp(x, x), expected, strict=True):
        assert torch.equal(mine, right)
