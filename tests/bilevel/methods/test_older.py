"""Options of MAID as older versions had them, all on one level: in calls, and in states."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from recon.bilevel import MAID, Accelerations, AccuracySchedule, Limits, LineSearch, PublishedMAID
from recon.bilevel.methods.older import current_method

OLDER: dict[str, Any] = {
    "certificate": "goal_oriented",
    "direction": "adagrad",
    "accuracy": "predicted",
    "lr": 0.3,
    "solution_accuracy": 2.0,
    "adjoint_accuracy": 3.0,
    "armijo": 0.01,
    "slack": 0.8,
    "step_shrink": 0.4,
    "step_growth": 1.3,
    "accuracy_shrink": 0.6,
    "accuracy_growth": 1.1,
    "line_search": 7,
    "descent_check": True,
    "eta": 0.3,
    "memory": 9,
    "largest_growth": 3.0,
    "tolerance": 0.1,
}


def params() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.zeros(2))]


def plain(method: torch.optim.Optimizer) -> dict[str, Any]:
    return {k: v for k, v in method.param_groups[0].items() if k != "params"}


def todays_maid() -> MAID:
    search, limits = LineSearch(7, 0.01, 0.4, 1.3), Limits(0.8, 3.0)
    return MAID(params(), "goal_oriented", "adagrad", 0.3, 2.0, 3.0, search, limits, 9, 0.1)


def todays_published() -> PublishedMAID:
    own, schedule = Accelerations("goal_oriented", "adagrad", 9, 3.0), AccuracySchedule(0.6, 1.1, True, 0.3)
    return PublishedMAID(params(), 0.3, 2.0, 3.0, LineSearch(7, 0.01, 0.4, 1.3), schedule, own, 0.1)


def test_older_names_of_options_are_taken_and_warned_of() -> None:
    gone = {"accuracy", "accuracy_shrink", "accuracy_growth", "descent_check", "eta"}
    with pytest.warns(FutureWarning, match=r"the option step_shrink is called line_search\.shrink by now"):
        method = MAID(params(), **{k: v for k, v in OLDER.items() if k not in gone})
    assert plain(method) == plain(todays_maid())
    with pytest.warns(FutureWarning, match=r"the option eta is called schedule\.eta by now"):
        published = PublishedMAID(params(), **{k: v for k, v in OLDER.items() if k not in ("accuracy", "slack")})
    assert plain(published) == plain(todays_published())


def test_other_options_of_the_group_stay_those_of_the_method() -> None:
    with pytest.warns(FutureWarning):
        method = PublishedMAID(params(), armijo=0.01)  # type: ignore[call-arg]
    assert method.options["line_search"]["trials"] == 5


@pytest.mark.parametrize("name", ["eta", "accuracy_shrink", "descent_check"])
def test_options_that_maid_did_not_use_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        MAID(params(), **{name: OLDER[name]})


def test_what_maid_was_on_a_schedule_is_named() -> None:
    with pytest.raises(TypeError, match="MAID with the accuracy schedule is PublishedMAID by now"):
        MAID(params(), accuracy="schedule")  # type: ignore[call-arg]
    state = {"state": {}, "param_groups": [OLDER | {"accuracy": "schedule", "params": [0]}]}
    with pytest.raises(ValueError, match="MAID with the accuracy schedule is PublishedMAID by now"):
        MAID(params()).load_state_dict(state)


def test_older_states_are_taken_over_whole() -> None:
    state: dict[str, Any] = {"state": {"maid": {"iteration": 4, "longest": 2.0}}}
    maid, published = MAID(params()), PublishedMAID(params())
    maid.load_state_dict({**state, "param_groups": [OLDER | {"params": [0]}]})
    assert plain(maid) == plain(todays_maid())
    assert maid.progress == state["state"]["maid"]
    published.load_state_dict({**state, "param_groups": [OLDER | {"accuracy": "schedule", "params": [0]}]})
    assert plain(published) == plain(todays_published())
    assert published.progress == state["state"]["maid"]


def test_states_of_today_are_taken_over_as_they_are() -> None:
    for made, fresh in ((todays_maid(), MAID(params())), (todays_published(), PublishedMAID(params()))):
        fresh.load_state_dict(made.state_dict())
        assert plain(fresh) == plain(made)


def test_what_a_checkpoint_says_of_its_method_is_compared_in_the_words_of_today() -> None:
    saved = {"class": "recon.bilevel.maid.MAID", **OLDER}
    assert current_method(saved, plain(todays_maid())) == plain(todays_maid()) | {"class": saved["class"]}
    scheduled = saved | {"accuracy": "schedule", "largest_growth": math.inf}
    found = current_method(scheduled, plain(todays_published()))
    assert found["class"] == "recon.bilevel.PublishedMAID"
    assert found["accelerations"] == {
        "certificate": "goal_oriented",
        "direction": "adagrad",
        "memory": 9,
        "largest_growth": math.inf,
    }
