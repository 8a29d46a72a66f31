"""What every upper-level method has from its base, seen at a new one of ten lines."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from models import TotalVariation
from recon.bilevel import (
    DFOLS,
    HOAG,
    MAID,
    Accuracy,
    BilevelObjective,
    CertifiedProposals,
    DivergedError,
    InexactAdam,
    InexactLBFGS,
    InexactSGD,
    Progress,
    PublishedMAID,
    Record,
    UpperLevelMethod,
)
from recon.lower_level import LBFGS, Energy, Solution
from tests.lower_level.problems import normal, smooth_image


class SignDescent(UpperLevelMethod[BilevelObjective]):
    """theta+ = theta - lr_k sign(z), lr_k = lr / k: a whole method."""

    def _begin(self, objective: BilevelObjective) -> None:
        self._keep(objective.hypergradient(objective.evaluate(Accuracy(1e-3, 1e-3)), Accuracy(1e-3, 1e-3)))

    def _iterate(self, objective: BilevelObjective) -> Record:
        step = self.options["lr"] / (self.progress["iteration"] + 1)
        self._set(self._theta() - step * self.progress["z"].sign())
        accuracy = Accuracy(1e-3, 1e-3)
        self._keep(objective.hypergradient(objective.evaluate(accuracy, self.evaluation), accuracy))
        return self._record(objective, Progress.ACCEPTED, step)


METHODS = [
    MAID,
    PublishedMAID,
    HOAG,
    InexactAdam,
    InexactSGD,
    InexactLBFGS,
    lambda p: CertifiedProposals(p, InexactLBFGS),
    lambda p: SignDescent(p, lr=0.5),
]


class Interrupting:
    """L-BFGS that is interrupted at its n-th call."""

    def __init__(self, at: int) -> None:
        self.calls, self.at = 0, at

    def __call__(self, energy: Energy, x: torch.Tensor, accuracy: float | torch.Tensor) -> Solution:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return LBFGS()(energy, x, accuracy)


def objective_of(**options: Any) -> BilevelObjective:
    target = smooth_image(10, 1, 6, 7)
    y = target + normal(10, 1, 6, 7, seed=9, scale=0.3)
    return BilevelObjective(TotalVariation(-3.0, -3.0).double(), target, y, **options)


def theta(objective: BilevelObjective) -> torch.Tensor:
    return torch.stack([p.detach() for p in objective.params])


def test_a_new_method_is_its_own_mathematics_only() -> None:
    objective = objective_of()
    method = SignDescent(objective.params, lr=0.5)
    records = [method.step(objective=objective) for _ in range(3)]
    assert [r.iteration for r in records] == [1, 2, 3]
    assert [r.step for r in records] == [0.5, 0.25, 0.5 / 3]
    assert all(r.lower <= r.loss <= r.upper for r in records)
    assert records[-1].loss < records[0].loss
    assert records[-1].evaluations == objective.evaluations
    with pytest.raises(ValueError, match="SignDescent takes one group of parameters, got 2"):
        SignDescent([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(2)]}], lr=0.5)  # type: ignore[list-item]


def test_a_new_method_resumes_bit_for_bit() -> None:
    whole, part, rest = objective_of(), objective_of(), objective_of()
    method = SignDescent(whole.params, lr=0.5)
    expected = [method.step(objective=whole) for _ in range(5)]
    first, second = SignDescent(part.params, lr=0.5), SignDescent(rest.params, lr=0.1)
    for _ in range(2):
        first.step(objective=part)
    file = io.BytesIO()
    torch.save([part.regularizer.state_dict(), part.state_dict(), first.state_dict()], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    for owner, state in zip((rest.regularizer, rest, second), states, strict=True):
        owner.load_state_dict(state)  # type: ignore[attr-defined]
    assert [second.step(objective=rest) for _ in range(3)] == expected[2:]
    assert torch.equal(theta(rest), theta(whole))


@pytest.mark.parametrize("make", METHODS)
@pytest.mark.parametrize("at", [1, 2, 4])
def test_an_interrupted_iteration_has_not_happened(make: Any, at: int) -> None:
    """Parameters, options and state are put back, and the next call makes the iteration from the same point."""
    objective, undisturbed = objective_of(), objective_of()
    method, other = make(objective.params), make(undisturbed.params)
    for _ in range(2):
        method.step(objective=objective)
        other.step(objective=undisturbed)
    before = theta(objective)
    objective.solver = Interrupting(at)
    try:
        method.step(objective=objective)
        interrupted = False
    except KeyboardInterrupt:
        interrupted = True
        assert torch.equal(theta(objective), before)
        method.step(objective=objective)
    other.step(objective=undisturbed)
    assert interrupted or at > 1
    # passes take the warm starts that they have: the same up to the accuracies of their solves
    torch.testing.assert_close(theta(objective), theta(undisturbed), rtol=0, atol=1e-3)
    if not isinstance(method, (InexactAdam, InexactSGD)):
        assert torch.equal(theta(objective), theta(undisturbed))


@pytest.mark.parametrize("make", METHODS)
def test_an_interrupted_start_leaves_nothing_behind(make: Any) -> None:
    objective, undisturbed = objective_of(solver=Interrupting(1)), objective_of()
    method, other = make(objective.params), make(undisturbed.params)
    with pytest.raises(KeyboardInterrupt):
        method.step(objective=objective)
    records = method.step(objective=objective), other.step(objective=undisturbed)
    assert records[0].loss == records[1].loss
    assert torch.equal(theta(objective), theta(undisturbed))


def test_a_pass_that_diverges_is_put_back_with_its_moments() -> None:
    objective = objective_of()
    method = InexactAdam(objective.params, batch_size=2)
    method.step(objective=objective)
    before = theta(objective)
    moments = {n: v.clone() for n, v in method.state[objective.params[0]].items()}
    evaluate = BilevelObjective.evaluate
    calls = 0

    class Lost(BilevelObjective):
        def evaluate(self, *args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise DivergedError("lost")
            return evaluate(self, *args, **options)

    objective.__class__ = Lost
    with pytest.raises(DivergedError):
        method.step(objective=objective)
    assert torch.equal(theta(objective), before)
    assert all(torch.equal(method.state[objective.params[0]][n], v) for n, v in moments.items())


@pytest.mark.parametrize("make", [MAID, PublishedMAID, HOAG, InexactAdam])
def test_the_state_of_another_method_is_refused(make: Any) -> None:
    objective = objective_of()
    state = SignDescent(objective.params, lr=0.5).state_dict()
    with pytest.raises(ValueError, match="the state is that of another method: it has no "):
        make(objective.params).load_state_dict(state)


def test_every_method_of_the_package_stands_on_the_base() -> None:
    assert all(issubclass(m, UpperLevelMethod) for m in (MAID, PublishedMAID, HOAG, InexactAdam, InexactSGD, DFOLS))
