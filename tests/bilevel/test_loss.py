"""Upper-level losses."""

from __future__ import annotations

import math

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from models import InitialFilters
from models.regularizers.fields_of_experts import FieldsOfExperts
from recon.bilevel import Accuracy, BilevelObjective, NegativePSNR, SquaredError, UpperLoss
from recon.bilevel.loss import check_finite
from tests.lower_level.problems import make, normal


@pytest.mark.parametrize("margin", [0, 2])
def test_squared_error_and_its_gradient(margin: int) -> None:
    loss, x, target = SquaredError(margin), normal(3, 2, 7, 6, seed=1).requires_grad_(True), normal(3, 2, 7, 6, seed=2)
    value = loss.value(x, target)
    inner = (x - target)[..., margin : 7 - margin, margin : 6 - margin]
    torch.testing.assert_close(value, 0.5 * inner.square().sum((1, 2, 3)))
    (expected,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(loss.grad(x.detach(), target), expected)


@pytest.mark.parametrize("margin", [0, 2])
def test_negative_psnr_and_its_gradient(margin: int) -> None:
    loss = NegativePSNR(margin, data_range=2.0)
    x, target = normal(3, 1, 7, 6, seed=1).requires_grad_(True), normal(3, 1, 7, 6, seed=2)
    g = loss.outer(loss.value(x, target), target)
    for i in range(3):
        a, b = (t[i, 0, margin : 7 - margin, margin : 6 - margin].detach().numpy() for t in (target, x))
        assert float(g[i].detach()) == pytest.approx(-peak_signal_noise_ratio(a, b, data_range=2.0), abs=1e-12)
    (expected,) = torch.autograd.grad(g.sum(), x)
    value = loss.value(x.detach(), target)
    mine = loss.outer_slope(value, target)[:, None, None, None] * loss.grad(x.detach(), target)
    torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("loss", [SquaredError(2), NegativePSNR(), NegativePSNR(2)])
@pytest.mark.parametrize("accuracy", [1.0, 1e-1, 1e-2, 1e-4])
def test_intervals_hold_the_exact_value(accuracy: float, loss: UpperLoss) -> None:
    for seed in range(10):
        regularizer = FieldsOfExperts(
            3, 3, log_weight=-1, log_width=-2, initial_filters=InitialFilters("normal", seed)
        ).double()
        target = normal(3, 1, 9, 8, seed=seed)
        objective = BilevelObjective(regularizer, target, target + normal(3, 1, 9, 8, seed=99), loss=loss)
        exact = objective.evaluate(Accuracy(1e-10, 1e-10)).value
        for second in (True, False):
            rough = objective.evaluate(Accuracy(accuracy, accuracy), None, second)
            assert rough.lower <= exact <= rough.upper
            assert rough.lower <= rough.value <= rough.upper
            assert math.isfinite(rough.lower)


def test_hypergradient_of_the_negative_psnr_and_its_bound() -> None:
    """Against central differences of the exact loss; the bound against the true error."""
    target = normal(3, 1, 9, 8, seed=1) * torch.tensor([0.3, 1.0, 3.0], dtype=torch.float64).view(3, 1, 1, 1)
    objective = BilevelObjective(
        make("tv"), target, target + normal(3, 1, 9, 8, seed=2, scale=0.3), loss=NegativePSNR()
    )
    fine = Accuracy(1e-11, 1e-11)
    z = objective.hypergradient(objective.evaluate(fine), fine).z
    for k, p in enumerate(objective.params):
        values = []
        for step in (1e-4, -1e-4):
            p.data += step
            values.append(objective.evaluate(fine).value)
            p.data -= step
        assert float(z[k]) == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-6)
    for accuracy in (1e-1, 1e-2, 1e-3):
        goal = Accuracy(accuracy, accuracy)
        rough = objective.hypergradient(objective.evaluate(goal, None, False), goal, bound=True)
        assert rough.certified
        assert float((rough.z - z).norm()) <= rough.error
        assert math.isfinite(rough.error)
    assert rough.error < 2e-2 * float(z.norm()) / 1e-3  # proportional to the accuracy, not just finite


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
