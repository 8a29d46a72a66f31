"""Certified proposals: the exact loss falls at every accepted point, whatever the proposer does."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any, cast

import pytest
import torch

from recon.bilevel import (
    HOAG,
    MAID,
    Accuracy,
    BilevelObjective,
    CertifiedProposals,
    Checks,
    DivergedError,
    InexactAdam,
    InexactLBFGS,
    InexactSGD,
    LineSearch,
    Progress,
    PublishedMAID,
    Record,
)
from tests.bilevel.methods.descents import exact_loss, quadratic, solution, tv_loss, tv_objective
from tests.bilevel.methods.proposals.proposers import Jump, wanderer
from tests.bilevel.methods.test_tight_acceptance import Parabola

PROPOSERS: dict[str, Any] = {
    "adam": functools.partial(InexactAdam, lr=0.1, batch_size=1),
    "sgd": functools.partial(InexactSGD, lr=0.1, batch_size=1),
    "lbfgs": functools.partial(InexactLBFGS, lr=0.1),
    "hoag": functools.partial(HOAG, lr=0.1),
    "maid": MAID,
    "wandering": lambda params: Jump(params, wanderer(3, 0.3)),
    "ascending": lambda params: Jump(params, lambda theta: 1.5 * theta + 0.1),
}


def loss_of(objective: BilevelObjective) -> float:
    return exact_loss(objective) if len(objective.params) == 1 else tv_loss(objective)


@pytest.mark.parametrize("fallback", [MAID, PublishedMAID])
@pytest.mark.parametrize("name", list(PROPOSERS))
def test_the_exact_loss_falls_at_every_accepted_point(name: str, fallback: Any) -> None:
    objective = quadratic()
    method = CertifiedProposals(objective.params, PROPOSERS[name], fallback)
    for _ in range(12):
        theta, before = objective.params[0].detach().clone(), exact_loss(objective)
        record = method.step(objective=objective)
        after = exact_loss(objective)
        assert record.lower - 1e-12 <= after <= record.upper + 1e-12
        assert record.evaluations == objective.evaluations
        assert record.guarantee == "exact"
        if record.progress is Progress.ACCEPTED:
            assert after < before
        else:
            assert torch.equal(objective.params[0], theta)


@pytest.mark.parametrize("name", [name for name in PROPOSERS if name != "sgd"])
def test_gradients_vanish_whatever_the_proposer_does(name: str) -> None:
    """The fallback sees to it where proposals are rejected."""
    objective = quadratic()
    method = CertifiedProposals(objective.params, PROPOSERS[name], checks=Checks(rejections=1))
    for _ in range(150):
        finished = method.step(objective=objective).finished
        if finished or float((objective.params[0].detach() - solution()).norm()) < 1e-3:
            break
    torch.testing.assert_close(objective.params[0].detach(), solution(), rtol=0, atol=1e-3)


def test_energies_that_are_not_quadratic_and_mini_batches() -> None:
    objective = tv_objective()
    method = CertifiedProposals(objective.params, functools.partial(InexactAdam, lr=0.2, batch_size=2))
    losses = [tv_loss(objective)]
    for _ in range(6):
        record = method.step(objective=objective)
        losses.append(tv_loss(objective))
        assert record.lower <= losses[-1] <= record.upper
        assert losses[-1] < losses[-2] if record.progress is Progress.ACCEPTED else losses[-1] == losses[-2]
    assert losses[-1] < 0.5 * losses[0]


# --- what is accepted ------------------------------------------------------------------------------------------------


def checked(below: float, above: float, promise: float, rejections: int = 3) -> tuple[CertifiedProposals, Record]:
    """One check of the move from theta = 1, f = 1/2, to 0; the fallback promises 1 to first order."""
    problem = Parabola(1.0, below, above)

    def fallback(params: Any) -> MAID:
        return MAID(params, "first_order", "gradient", lr=1.0, line_search=LineSearch(armijo=0.4))

    method = CertifiedProposals(
        [problem.theta],
        lambda params: Jump(params, torch.zeros_like),
        fallback,
        Checks(promise=promise, rejections=rejections),
    )
    return method, method.step(objective=cast(BilevelObjective, problem))


@pytest.mark.parametrize(
    ("below", "above", "accepted"),
    [
        (0.0, 0.0, True),
        (0.049, 0.05, True),
        (0.051, 0.05, False),
        (0.099, 0.0, True),
        (0.101, 0.0, False),
        (0.0, 0.099, True),
        (0.0, 0.101, False),
    ],
)
def test_a_point_is_accepted_where_the_exact_loss_must_have_decreased(
    below: float, above: float, accepted: bool
) -> None:
    """U(theta+) = above, L(theta) = 1/2 - below, and 0.4 of the promised decrease of 1."""
    method, record = checked(below, above, 0.4)
    assert (record.progress is Progress.ACCEPTED) is accepted
    assert method.param_groups[0]["params"][0].item() == (0.0 if accepted else 1.0)


@pytest.mark.parametrize(("promise", "accepted"), [(0.499, True), (0.501, False)])
def test_the_decrease_that_is_asked_for_is_a_share_of_what_the_fallback_promises(
    promise: float, accepted: bool
) -> None:
    assert (checked(0.0, 0.0, promise)[1].progress is Progress.ACCEPTED) is accepted


def test_after_rejections_the_fallback_makes_a_step() -> None:
    objective = quadratic()
    method = CertifiedProposals(
        objective.params, lambda params: Jump(params, lambda theta: theta + 10.0), checks=Checks(rejections=2)
    )
    records = [method.step(objective=objective) for _ in range(6)]
    R, A = Progress.REJECTED, Progress.ACCEPTED
    assert [r.progress for r in records] == [R, R, A, R, R, A]
    assert [r.iteration for r in records] == [1, 2, 3, 4, 5, 6]
    assert isinstance(method.proposer, Jump)
    assert method.proposer.hesitations == 4
    assert method.proposer.options["lr"] == 1 / 16


def test_steps_of_passes_are_halved() -> None:
    objective = quadratic()
    method = InexactAdam(objective.params, lr=0.5)
    method.hesitate()
    assert method.step(objective=objective).step == 0.25


def test_an_average_of_the_last_points_is_proposed_and_the_proposer_goes_on_from_its_own() -> None:
    objective, alone = quadratic(), quadratic()
    adam = functools.partial(InexactAdam, lr=0.02, batch_size=1, solution_accuracy=1e-9, adjoint_accuracy=1e-9)
    # as many evaluations as one pass
    method = CertifiedProposals(objective.params, adam, checks=Checks(cost=0.0, average=0.5))
    other = adam(alone.params)
    for _ in range(2):
        points: list[torch.Tensor] = []
        other.visited = points
        other.step(objective=alone)
        record = method.step(objective=objective)
        assert record.progress is Progress.ACCEPTED
        assert len(points) == 2  # one point per image
        torch.testing.assert_close(objective.params[0].detach(), points[1], rtol=0, atol=1e-8)
    whole = CertifiedProposals(objective.params, adam, checks=Checks(cost=0.0, average=0.999))
    start = objective.params[0].detach().clone()
    whole.step(objective=objective)
    visited = cast(InexactAdam, whole.proposer).visited
    assert visited is not None
    torch.testing.assert_close(objective.params[0].detach(), torch.stack(visited).mean(0))
    assert not torch.equal(start, objective.params[0])


def test_checks_take_their_share_of_the_evaluations() -> None:
    objective = tv_objective()
    method = CertifiedProposals(objective.params, functools.partial(InexactAdam, lr=0.01, batch_size=1))
    for _ in range(4):
        method.step(objective=objective)
        state = method.progress
        assert state["checking"] + state["proposing"] == pytest.approx(objective.evaluations)
        assert state["proposing"] >= 4 * (state["checking"] - state["check"])


# --- state and failures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adam", "lbfgs", "hoag", "maid"])
def test_a_checkpoint_continues_bit_identically(name: str) -> None:
    whole, again = tv_objective(), tv_objective()
    method = CertifiedProposals(whole.params, PROPOSERS[name])
    for _ in range(2):
        method.step(objective=whole)
    saved = copy.deepcopy((method.state_dict(), whole.state_dict(), whole.regularizer.state_dict()))
    expected = [method.step(objective=whole) for _ in range(3)]
    resumed = CertifiedProposals(again.params, PROPOSERS[name])
    again.regularizer.load_state_dict(saved[2])
    again.load_state_dict(saved[1])
    resumed.load_state_dict(saved[0])
    assert [resumed.step(objective=again) for _ in range(3)] == expected
    assert all(torch.equal(p, q) for p, q in zip(again.params, whole.params, strict=True))
    with pytest.raises(ValueError, match="that of another method: it has no proposer, fallback"):
        resumed.load_state_dict(MAID(again.params).state_dict())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_proposer_that_returns_nan_is_named_and_nothing_has_happened(bad: float) -> None:
    objective = quadratic()
    jumps = iter([False, True, False])

    def move(theta: torch.Tensor) -> torch.Tensor:
        return theta * bad if next(jumps) else 0.9 * theta

    method = CertifiedProposals(objective.params, lambda params: Jump(params, move))
    method.step(objective=objective)
    before, state = objective.params[0].detach().clone(), method.evaluation.value
    with pytest.raises(ValueError, match=r"Jump proposed parameters that are NaN or infinite \(in parameter 0\)"):
        method.step(objective=objective)
    assert torch.equal(objective.params[0], before)
    assert method.evaluation.value == state
    assert method.step(objective=objective).iteration == 2


def test_a_proposer_that_changes_shapes_is_named_and_theta_is_put_back() -> None:
    objective = quadratic()
    parameter = objective.params[0]

    class Reshaping(Jump):
        def _iterate(self, objective: Any) -> Record:
            record = super()._iterate(objective)
            parameter.data = torch.zeros(5, dtype=torch.float64)
            return record

    method = CertifiedProposals(objective.params, lambda params: Reshaping(params, lambda theta: theta))
    before = parameter.detach().clone()
    with pytest.raises(ValueError, match=r"Reshaping gave parameter 0 the shape \(5,\), but it is \(\d,\)"):
        method.step(objective=objective)
    assert torch.equal(parameter, before)


def test_a_proposer_that_diverges_is_put_back_and_hesitates() -> None:
    objective = quadratic()

    class Diverging(Jump):
        def _iterate(self, objective: Any) -> Record:
            super()._iterate(objective)
            raise DivergedError("too far")

    method = CertifiedProposals(objective.params, lambda params: Diverging(params, lambda theta: theta + 1))
    before = objective.params[0].detach().clone()
    record = method.step(objective=objective)
    assert record.progress is Progress.REJECTED
    assert torch.equal(objective.params[0], before)
    assert isinstance(method.proposer, Diverging)
    assert method.proposer.hesitations == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cost": -1.0}, "checks.cost is -1"),
        ({"cost": math.nan}, "checks.cost is nan"),
        ({"promise": 0.0}, "checks.promise is 0"),
        ({"rejections": 0}, "checks.rejections is 0"),
        ({"average": 1.0}, "checks.average is 1"),
        ({"delta": -0.1}, "checks.delta is -0.1"),
        ({"sample": 1}, "checks.sample is 1"),
    ],
)
def test_bad_options_are_refused_with_their_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Checks(**options)


def test_parts_of_other_kinds_are_refused() -> None:
    params = quadratic().params
    with pytest.raises(TypeError, match=r"(?s)proposer is .*, but must be an instance of UpperLevelMethod"):
        CertifiedProposals(params, lambda p: torch.optim.Adam(p))  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match=r"(?s)fallback is .*, but must be an instance of CertifiedDescent"):
        CertifiedProposals(params, fallback=InexactAdam)  # type: ignore[arg-type]
    objective = tv_objective()
    method = CertifiedProposals(objective.params, checks=Checks(delta=0.05))
    with pytest.raises(ValueError, match=r"samples of checks\.sample = 32 images, but there are 3"):
        method.step(objective=objective)


def test_lbfgs_alone_finds_the_minimizer_of_a_quadratic() -> None:
    objective = quadratic()
    method = InexactLBFGS(objective.params, solution_accuracy=1e-8, adjoint_accuracy=1e-8)
    for _ in range(40):
        record = method.step(objective=objective)
    torch.testing.assert_close(objective.params[0].detach(), solution(), rtol=0, atol=1e-5)
    assert record.guarantee == "none"
    fine = Accuracy(1e-10, 1e-10)
    assert float(objective.hypergradient(objective.evaluate(fine), fine).z.norm()) < 1e-5


def test_whoever_listens_hears_of_every_iteration_of_the_proposer() -> None:
    heard: list[Record] = []
    objective = tv_objective()
    method = CertifiedProposals(objective.params, functools.partial(InexactAdam, lr=0.2, batch_size=2))
    method.listener = heard.append
    trials = [method.step(objective=objective).trials for _ in range(3)]
    assert len(heard) == sum(trials) > 3  # several before a check
    assert "listener" not in method.state_dict()
    evaluations = [record.evaluations for record in heard]
    assert evaluations == sorted(evaluations)
