"""Learning one regularizer for images of several noise levels."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from recon.bilevel import MAID, Accuracy, BilevelObjective, CertifiedProposals, InexactAdam, Progress
from recon.lower_level import Energy
from tests.lower_level.problems import exact_minimizer, normal, norms, smooth_image
from tests.models.regularizers.noisy import conditioned

LEVELS = torch.tensor([0.3, 0.02, 0.11, 0.3], dtype=torch.float64)
SHAPE = (4, 1, 5, 6)
TIGHT = Accuracy(1e-10, 1e-11)
NAMES = ["foe_l1", "wcrr", "composed", "icnn"]


def data() -> tuple[Tensor, Tensor]:
    target = smooth_image(*SHAPE)
    return target, target + LEVELS.view(-1, 1, 1, 1) * normal(*SHAPE, seed=9)


def objective_of(name: str, **options: object) -> BilevelObjective:
    return BilevelObjective(conditioned(name).at(LEVELS), *data(), **options)  # type: ignore[arg-type]


def exact_losses(objective: BilevelObjective) -> Tensor:
    """Image by image, of problems with one level each: nothing of batches is in it."""
    found = []
    for i, sigma in enumerate(LEVELS.tolist()):
        one = slice(i, i + 1)
        model = objective.regularizer.conditioned  # type: ignore[attr-defined]
        x = exact_minimizer(Energy(objective.y[one], model.at(sigma)), objective.target[one].clone())
        found.append(objective.loss.value(x, objective.target[one]))
    return torch.cat(found)


@pytest.mark.parametrize("name", NAMES)
def test_the_hypergradient_is_that_of_the_exact_loss(name: str) -> None:
    """By central differences of losses of images that were solved one by one, with the gains among the parameters."""
    objective = objective_of(name)
    z = objective.hypergradient(objective.evaluate(TIGHT), TIGHT).z
    params, h = objective.params, 1e-5
    assert len(z) == sum(p.numel() for p in params)
    assert any(p is objective.regularizer.conditioned.log_gains for p in params)  # type: ignore[attr-defined]
    for seed in range(2):
        directions = [normal(*p.shape, seed=10 * seed + i) for i, p in enumerate(params)]
        values = []
        with torch.no_grad():
            for factor in (h, -2 * h, h):
                for p, d in zip(params, directions, strict=True):
                    p.add_(factor * d)
                values.append(float(exact_losses(objective).mean()))
        slope = (values[0] - values[1]) / (2 * h)
        expected = float(z @ torch.cat([d.flatten() for d in directions]))
        assert slope == pytest.approx(expected, rel=1e-5, abs=1e-7)
    parts = [abs(float(part.norm())) for part in z.split([p.numel() for p in params])]
    assert max(parts) > 1e-3
    assert parts[0] > 1e-6  # of the gains


@pytest.mark.parametrize("name", NAMES)
def test_intervals_contain_the_exact_loss(name: str) -> None:
    objective = objective_of(name)
    exact = float(exact_losses(objective).mean())
    for accuracy in (Accuracy(1.0, 1.0), Accuracy(0.1, 0.1), Accuracy(1e-2, 1e-3), Accuracy(1e-6, 1e-6)):
        for second in (True, False):
            at = objective.evaluate(accuracy, None, second)
            assert at.lower <= exact <= at.upper
            assert bool((at.error <= accuracy.solution).all())
    assert at.upper - at.lower < 1e-4


@pytest.mark.parametrize("chunk_size", [1, 2, 3])
def test_chunks_do_not_change_the_result(chunk_size: int) -> None:
    accuracy = Accuracy(1e-8, 1e-8)
    whole, parts = objective_of("wcrr"), objective_of("wcrr", chunk_size=chunk_size)
    expected = whole.hypergradient(whole.evaluate(accuracy), accuracy, bound=True)
    mine = parts.hypergradient(parts.evaluate(accuracy), accuracy, bound=True)
    torch.testing.assert_close(mine.z, expected.z, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(mine.evaluation.x, expected.evaluation.x, rtol=0, atol=3e-8)
    assert mine.evaluation.value == pytest.approx(expected.evaluation.value, rel=1e-7)


@pytest.mark.parametrize("index", [[2], [3, 1], [0, 1, 2, 3], [1, 0]])
def test_subsets_take_their_levels_with_them(index: list[int]) -> None:
    objective = objective_of("foe_l1")
    chosen = torch.tensor(index)
    part = objective.subset(chosen)
    assert part.regularizer.levels == LEVELS[chosen].tolist()  # type: ignore[attr-defined]
    at = part.evaluate(TIGHT)
    assert at.value == pytest.approx(float(exact_losses(objective)[chosen].mean()), rel=1e-9)
    whole = objective.evaluate(TIGHT)
    torch.testing.assert_close(at.x, whole.x[chosen], rtol=0, atol=3e-10)
    gradients = objective.image_gradients(whole)
    z = part.hypergradient(at, TIGHT).z
    torch.testing.assert_close(z, gradients[chosen].mean(0), rtol=1e-6, atol=1e-8)


def test_gradients_of_images_add_up() -> None:
    objective = objective_of("icnn", chunk_size=3)
    at = objective.evaluate(TIGHT)
    z = objective.hypergradient(at, TIGHT).z
    gradients = objective.image_gradients(at)
    assert gradients.shape == (4, len(z))
    torch.testing.assert_close(gradients.mean(0), z, rtol=1e-6, atol=1e-8)


def test_the_bound_of_the_hypergradient_holds() -> None:
    objective = objective_of("wcrr")
    exact = objective.hypergradient(objective.evaluate(TIGHT), TIGHT).z
    for accuracy in (Accuracy(0.1, 0.1), Accuracy(1e-2, 1e-2), Accuracy(1e-3, 1e-4)):
        found = objective.hypergradient(objective.evaluate(accuracy), accuracy, bound=True)
        assert float((found.z - exact).norm()) <= float(found.error)


def test_images_are_those_of_their_levels() -> None:
    """The same data with other levels have other solutions, each within its certified error."""
    objective = objective_of("crr")
    at = objective.evaluate(Accuracy(1e-3, 1e-3))
    model = objective.regularizer.conditioned  # type: ignore[attr-defined]
    for i, sigma in enumerate(LEVELS.tolist()):
        y = objective.y[i : i + 1]
        exact = exact_minimizer(Energy(y, model.at(sigma)), y.clone())
        other = exact_minimizer(Energy(y, model.at(0.2)), y.clone())
        assert float(norms(at.x[i : i + 1] - exact)) <= float(at.error[i]) <= 1e-3
        assert float(norms(at.x[i : i + 1] - other)) > 1e-2


@pytest.mark.parametrize("name", ["wcrr", "icnn"])
@pytest.mark.parametrize("method", ["maid", "proposals"])
def test_the_exact_loss_falls(name: str, method: str) -> None:
    objective = objective_of(name, chunk_size=3)
    learner = (
        MAID(objective.params)
        if method == "maid"
        else CertifiedProposals(objective.params, functools.partial(InexactAdam, lr=0.05, batch_size=2))
    )
    accepted, first = 0, float(exact_losses(objective).mean())
    before = first
    for _ in range(4):
        record = learner.step(objective=objective)
        after = float(exact_losses(objective).mean())
        assert record.lower - 1e-12 <= after <= record.upper + 1e-12
        if record.progress is Progress.ACCEPTED:
            accepted += 1
            assert after < before
        before = after
    assert accepted >= 1
    assert before < first
