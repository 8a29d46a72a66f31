"""Options of MAID and PublishedMAID, and how records end."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

from recon.bilevel import (
    MAID,
    Accelerations,
    AccuracySchedule,
    CertifiedLoss,
    Limits,
    LineSearch,
    Progress,
    PublishedMAID,
    Record,
)
from recon.lower_level import Grade


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"certificate": "third_order"}, "certificate is 'third_order', but must be one of goal_oriented, first_order"),
        ({"direction": "newton"}, "direction is 'newton', but must be one of lbfgs, gradient, adagrad"),
        ({"lr": 0.0}, "lr is 0.0, but must be positive"),
        ({"lr": math.inf}, "lr is inf"),
        ({"solution_accuracy": -1.0}, "solution_accuracy is -1.0"),
        ({"adjoint_accuracy": math.nan}, "adjoint_accuracy is nan"),
        ({"memory": 0}, "memory is 0"),
        ({"tolerance": -1.0}, "tolerance is -1.0, but must be at least 0"),
        ({"tolerance": math.nan}, "tolerance is nan"),
    ],
)
def test_bad_options_are_refused_with_their_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MAID([torch.nn.Parameter(torch.zeros(2))], **options)
    if next(iter(options)) in ("lr", "tolerance"):
        with pytest.raises(ValueError, match=message):
            PublishedMAID([torch.nn.Parameter(torch.zeros(2))], **options)


@pytest.mark.parametrize(
    ("group", "options", "message"),
    [
        (LineSearch, {"armijo": 1.0}, "line_search.armijo is 1.0, but must be between 0 and 1"),
        (LineSearch, {"shrink": 1.0}, "line_search.shrink is 1.0"),
        (LineSearch, {"growth": 0.9}, "line_search.growth is 0.9, but must be at least 1"),
        (LineSearch, {"trials": 0}, "line_search.trials is 0"),
        (Limits, {"slack": 0.0}, "limits.slack is 0.0"),
        (Limits, {"largest_growth": 0.5}, "limits.largest_growth is 0.5"),
        (AccuracySchedule, {"shrink": 0.0}, "schedule.shrink is 0.0"),
        (AccuracySchedule, {"growth": 0.5}, "schedule.growth is 0.5"),
        (AccuracySchedule, {"eta": 1.5}, "schedule.eta is 1.5"),
        (Accelerations, {"certificate": "third_order"}, "certificate is 'third_order'"),
        (Accelerations, {"direction": "newton"}, "direction is 'newton'"),
        (Accelerations, {"largest_growth": 0.5}, "largest_growth is 0.5"),
        (Accelerations, {"memory": 0}, "memory is 0"),
    ],
)
def test_bad_options_of_a_group_are_refused_with_their_value(
    group: type, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        group(**options)


def test_options_that_a_method_has_no_use_for_are_refused() -> None:
    params = [torch.nn.Parameter(torch.zeros(2))]
    with pytest.raises(TypeError, match="schedule"):
        MAID(params, schedule=AccuracySchedule())  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="limits"):
        PublishedMAID(params, limits=Limits())  # type: ignore[call-arg]


def test_several_groups_of_parameters_are_refused() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))]}, {"params": [torch.nn.Parameter(torch.zeros(1))]}]
    with pytest.raises(ValueError, match="one group of parameters, got 2"):
        MAID(groups)  # type: ignore[arg-type]


def test_published_maid_has_none_of_the_accelerations() -> None:
    options = PublishedMAID([torch.nn.Parameter(torch.zeros(2))]).param_groups[0]["accelerations"]
    assert (options["certificate"], options["direction"]) == ("first_order", "gradient")
    assert options["largest_growth"] == math.inf


@pytest.mark.parametrize("progress", list(Progress))
def test_finished(progress: Progress) -> None:
    record = Record(1, CertifiedLoss(0.0, 0.0, 0.0), 0.0, 0.0, 0.0, 0.0, 1, 1.0, 0.0, progress)
    assert record.finished == (progress in (Progress.CONVERGED, Progress.PRECISION_FLOOR))


def test_a_record_is_what_its_line_says_in_this_version_and_in_older_ones() -> None:
    record = Record(3, CertifiedLoss(0.5, 0.25, 0.75, 1e-9, 1), 0.1, 0.2, 0.3, 0.4, 5, 60.0, 0.7, Progress.ACCEPTED)
    line = record.line()
    assert list(line) == [
        "iteration",
        "loss",
        "lower",
        "upper",
        "epsilon",
        "delta",
        "omega",
        "step",
        "trials",
        "evaluations",
        "gradient_norm",
        "progress",
        "rounding",
        "grade",
        "guarantee",
    ]
    assert line["progress"] == "accepted"
    assert Record.of_line(line) == record
    older = Record.of_line(
        {name: value for name, value in line.items() if name not in ("rounding", "grade", "guarantee")}
    )
    assert (older.loss, older.lower, older.upper) == (0.5, 0.25, 0.75)
    assert (older.rounding, older.grade, older.guarantee) == (math.inf, Grade.ESTIMATED, "none")
