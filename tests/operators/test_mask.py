"""Inpainting mask."""

from __future__ import annotations

import math

import pytest
import torch

from recon.operators import Mask
from tests.operators.checks import assert_operator


def random_mask() -> torch.Tensor:
    return torch.rand(1, 4, 5, generator=torch.Generator().manual_seed(0)) < 0.6


def test_mask() -> None:
    mask = random_mask()
    operator = Mask(mask)
    assert_operator(operator)
    assert (operator.norm_bound, operator.lower_bound) == (1.0, 0.0)
    x = torch.randn(2, 1, 4, 5)
    assert torch.equal(operator(x), x * mask)


def test_extreme_masks() -> None:
    full, empty = Mask(torch.ones(2, 3, dtype=torch.bool)), Mask(torch.zeros(2, 3, dtype=torch.bool))
    assert_operator(full)
    assert_operator(empty)
    assert (full.norm_bound, full.lower_bound) == (1.0, 1.0)
    assert (empty.norm_bound, empty.lower_bound) == (0.0, 0.0)


def test_removed_values_are_not_read() -> None:
    mask = random_mask()
    x = torch.zeros(1, 1, 4, 5).masked_fill(~mask, math.nan)
    assert torch.equal(Mask(mask)(x), torch.zeros(1, 1, 4, 5))


def test_mask_is_copied_survives_casts_and_is_not_learned() -> None:
    mask = random_mask()
    operator = Mask(mask).to(torch.float32)
    expected = mask.clone()
    mask.fill_(True)
    assert operator.mask.dtype == torch.bool
    assert torch.equal(operator.mask, expected)
    assert not operator.state_dict()


def test_wrong_masks() -> None:
    for wrong in (torch.ones(3, 3), torch.tensor(True), [True]):
        with pytest.raises(ValueError, match="boolean tensor"):
            Mask(wrong)  # type: ignore[arg-type]
