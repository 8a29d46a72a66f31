"""Upper-level losses."""

from __future__ import annotations

import pytest
import torch

from models.fields_of_experts import FieldsOfExperts
from recon.bilevel import Accuracy, BilevelObjective, SquaredError
from recon.bilevel.loss import check_finite
from tests.lower_level.problems import normal


@pytest.mark.parametrize("margin", [0, 2])
def test_squared_error_and_its_gradient(margin: int) -> None:
    loss, x, target = SquaredError(margin), normal(3, 2, 7, 6, seed=1).requires_grad_(True), normal(3, 2, 7, 6, seed=2)
    value = loss.value(x, target)
    inner = (x - target)[..., margin : 7 - margin, margin : 6 - margin]
    torch.testing.assert_close(value, 0.5 * inner.square().sum((1, 2, 3)))
    (expected,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(loss.grad(x.detach(), target), expected)


@pytest.mark.parametrize("accuracy", [1.0, 1e-1, 1e-2])
def test_intervals_of_a_loss_with_a_margin_hold_the_exact_value(accuracy: float) -> None:
    for seed in range(10):
        regularizer = FieldsOfExperts(3, 3, log_weight=-1, log_width=-2, seed=seed, initial_filters="normal").double()
        target = normal(3, 1, 9, 8, seed=seed)
        objective = BilevelObjective(regularizer, target, target + normal(3, 1, 9, 8, seed=99), loss=SquaredError(2))
        exact = objective.evaluate(Accuracy(1e-10, 1e-10)).value
        rough = objective.evaluate(Accuracy(accuracy, accuracy))
        assert rough.lower <= exact <= rough.upper


def test_bad_margins() -> None:
    with pytest.raises(ValueError, match="margin is -1"):
        SquaredError(-1)
    with pytest.raises(ValueError, match="a margin of 3 pixels leaves nothing of images of 6x9 pixels"):
        SquaredError(3).value(torch.zeros(1, 1, 6, 9), torch.zeros(1, 1, 6, 9))


def test_images_that_are_not_finite_are_named() -> None:
    x = torch.zeros(3, 1, 2, 2)
    x[1, 0, 0, 1] = torch.nan
    with pytest.raises(ValueError, match="true images: image 1 holds"):
        check_finite("true images", x)
