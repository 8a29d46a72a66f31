"""Accuracies of single images, and hypergradients of single images."""

from __future__ import annotations

import math

import pytest
import torch

from recon.bilevel import Accuracy, NegativePSNR, SquaredError, UpperLoss
from tests.bilevel.test_objective import objective_of


def test_gradients_of_single_images_have_the_hypergradient_as_their_mean() -> None:
    objective = objective_of()
    accuracy = Accuracy(1e-6, 1e-6)
    gradient = objective.hypergradient(objective.evaluate(accuracy), accuracy)
    before = objective.evaluations
    rows = objective.image_gradients(gradient.evaluation)
    torch.testing.assert_close(rows.mean(0), gradient.z, rtol=1e-12, atol=1e-14)
    assert objective.evaluations == before
    one = objective.subset(torch.tensor([1]))
    torch.testing.assert_close(rows[1], one.hypergradient(gradient.evaluation.select(torch.tensor([1])), accuracy).z)


@pytest.mark.parametrize("loss", [SquaredError(), NegativePSNR()])
@pytest.mark.parametrize("second", [True, False])
def test_the_cheapest_accuracy_makes_intervals_as_long_as_asked(loss: UpperLoss, second: bool) -> None:
    """Not longer than the margin above the value by much, not much shorter, and all images contribute alike."""
    objective = objective_of(loss=loss)
    at = objective.evaluate(Accuracy(0.05, 0.05), None, second)
    for margin in (1e-2, 1e-4):
        accuracy = objective.cheapest_accuracy(at, margin, second)
        for values in (accuracy.solution, accuracy.adjoint):
            assert isinstance(values, torch.Tensor)
            assert values.shape == (len(objective.y),)
        found = objective.evaluate(accuracy, None, second)
        assert bool((found.error <= accuracy.solution).all())
        assert found.upper - found.value <= 1.1 * margin
        error = accuracy.solution
        assert isinstance(error, torch.Tensor)
        if not second:
            whole = at.weight * (at.slope * error + 0.5 * loss.smoothness * error.square())
            torch.testing.assert_close(whole, torch.full_like(whole, margin))
        else:
            curved = 0.5 * at.sensitivity - objective._modulus() + 0.25 * loss.smoothness
            quadratic = at.weight * curved * error.square()
            linear = at.weight * accuracy.adjoint * error
            first = error > torch.sqrt(0.5 * margin / at.weight / curved) * (1 + 1e-9)  # longer by first order
            torch.testing.assert_close(quadratic[~first], torch.full_like(quadratic[~first], 0.5 * margin))
            torch.testing.assert_close(linear[~first], torch.full_like(linear[~first], 0.5 * margin))


def test_accuracies_must_be_positive_for_every_image() -> None:
    with pytest.raises(ValueError, match="accuracies must be positive, got 0 and 1"):
        Accuracy(torch.tensor([1.0, 0.0]), 1.0)
    with pytest.raises(ValueError, match="accuracies must be positive, got nan and 1"):
        Accuracy(torch.tensor([1.0, math.nan]), 1.0)
    assert Accuracy(torch.tensor([1.0, 2.0]), 3.0).select(torch.tensor([1])).solution == 2.0
