"""What all learning problems have in common, whatever is solved below them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from models import ICNN, Convexity, LeakyReLU, LearnedTV, TotalVariation
from models.training.critic import AdversarialObjective
from recon.bilevel import (
    Accuracy,
    BilevelObjective,
    Differentiation,
    Evaluation,
    InexactObjective,
    Objective,
    SaddleObjective,
)
from recon.lower_level import WeightedSquaredL2
from tests.lower_level.problems import normal, smooth_image

TARGET = smooth_image(3, 1, 6, 7)
Y = TARGET + normal(3, 1, 6, 7, seed=9, scale=0.1)
GOAL = Accuracy(1e-4, 1e-4)


def energies() -> BilevelObjective:
    return BilevelObjective(TotalVariation(-3.0, -1.0).double(), TARGET, Y, chunk_size=2)


def saddle_points() -> SaddleObjective:
    model = LearnedTV(1, log_weight=-2.0, convexity=Convexity(0.3, 0.2), norm="fair", smoothing=0.1)
    return SaddleObjective(model.double(), TARGET, Y, chunk_size=2)


def critic() -> AdversarialObjective:
    return AdversarialObjective(
        ICNN(filters=2, size=3, activation=LeakyReLU(width=0.05, kind="smooth")).double(), TARGET, Y
    )


@pytest.mark.parametrize("make", [energies, saddle_points, critic])
def test_an_objective_has_parameters_images_and_a_counter_that_is_saved(make: Callable[[], Objective]) -> None:
    objective = make()
    assert objective.params
    assert objective.target is TARGET
    assert objective.y is Y
    objective.load_state_dict(objective.state_dict() | {"evaluations": 7.0})
    assert objective.evaluations == objective.state_dict()["evaluations"] == 7.0


@pytest.mark.parametrize("make", [energies, saddle_points])
def test_the_objective_is_the_mean_of_those_of_its_images(make: Callable[[], InexactObjective]) -> None:
    objective = make()
    whole = objective.evaluate(GOAL)
    z = objective.hypergradient(whole, GOAL).z
    spent, values, gradients = objective.evaluations, [], []
    for i in range(3):
        part = objective.subset(torch.tensor([i]))
        assert type(part) is type(objective)
        assert part.evaluations == 0
        at = part.evaluate(GOAL)
        values.append(at.value)
        gradients.append(part.hypergradient(at, GOAL).z)
    assert objective.evaluations == spent
    assert sum(values) / 3 == pytest.approx(whole.value, abs=1e-6)
    torch.testing.assert_close(torch.stack(gradients).mean(0), z, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("make", [energies, saddle_points])
def test_chunks_change_nothing_but_memory(make: Callable[[], InexactObjective]) -> None:
    found: list[Evaluation] = []
    for chunk_size in (1, 2, 3):
        objective = make()
        objective.chunk_size = chunk_size
        found.append(objective.evaluate(Accuracy(1e-7, 1e-7)))
    for other in found[1:]:
        assert other.x.shape == found[0].x.shape
        assert other.value == pytest.approx(found[0].value, rel=1e-9)
        assert max(other.lower, found[0].lower) <= min(other.upper, found[0].upper)


def test_weights_of_data_go_with_their_images() -> None:
    weights = torch.rand(3, 1, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.5
    objective = BilevelObjective(TotalVariation(-3.0, -1.0).double(), TARGET, Y, fidelity=WeightedSquaredL2(weights))
    part = objective.subset(torch.tensor([2])).evaluate(GOAL)
    torch.testing.assert_close(part.x, objective.evaluate(GOAL).x[2:], rtol=0, atol=2e-4)


def test_adjoint_equations_end_where_their_options_say() -> None:
    fine = Accuracy(1e-6, 1e-12)
    few = BilevelObjective(
        TotalVariation(-3.0, -1.0).double(), TARGET, Y, differentiation=Differentiation(max_adjoint_iterations=2)
    )
    for objective, reached in ((few, False), (energies(), True)):
        at = objective.hypergradient(objective.evaluate(fine, goal_oriented=False), fine).evaluation
        assert bool((at.adjoint.residual <= fine.adjoint).all()) is reached
