"""What the tests of certified descent share: problems whose loss is known exactly, and runs that are watched."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from models.regularizers.total_variation import TotalVariation
from recon.bilevel import (
    MAID,
    Accelerations,
    BilevelObjective,
    LineSearch,
    Progress,
    PublishedMAID,
    Record,
)
from recon.bilevel.methods.certified_descent import CertifiedDescent
from recon.lower_level import Energy
from tests.bilevel.known import KnownQuadratic
from tests.lower_level.problems import Quadratic, exact_minimizer, normal, smooth_image

Y, TARGET = normal(2, 1, 3, 4, seed=6), normal(2, 1, 3, 4, seed=7)
COMBINATIONS = list(
    itertools.product(("goal_oriented", "first_order"), ("lbfgs", "gradient", "adagrad"), ("predicted", "schedule"))
)
TV_GOAL = 0.31  # the smallest loss is 0.3037, the first one 2.6


def variant(
    params: Iterable[Tensor],
    accuracy: str = "predicted",
    certificate: str = "goal_oriented",
    direction: str = "lbfgs",
    **options: Any,
) -> CertifiedDescent:
    """MAID, or (accuracy ``schedule``) PublishedMAID with the same accelerations, first step and first accuracies."""
    if accuracy == "predicted":
        return MAID(params, certificate, direction, **options)
    start = {"lr": 0.1, "solution_accuracy": 1.0, "adjoint_accuracy": 1.0, "line_search": LineSearch()}
    own = Accelerations(certificate, direction, largest_growth=4.0)
    return PublishedMAID(params, accelerations=own, **start | options)


def quadratic(**options: Any) -> BilevelObjective:
    return BilevelObjective(KnownQuadratic(), TARGET, Y, **options)


def exact_loss(objective: BilevelObjective, theta: Tensor | None = None) -> float:
    regularizer = objective.regularizer
    assert isinstance(regularizer, Quadratic)
    return float(objective.loss.value(regularizer.solve(Y, theta), TARGET).mean())


def solution() -> Tensor:
    """The minimizer of f, by least squares."""
    regularizer = KnownQuadratic()
    a = torch.linalg.solve(torch.eye(12, dtype=torch.float64) + regularizer.h, regularizer.p)
    rest = (TARGET - regularizer.solve(Y)).flatten(1).mean(0)
    return torch.linalg.lstsq(a, rest[:, None]).solution[:, 0]


class Watched:
    """Runs MAID and keeps the hypergradient that an accepted step started from."""

    def __init__(self, optimizer: CertifiedDescent, objective: BilevelObjective) -> None:
        self.optimizer, self.objective, self.records = optimizer, objective, []
        self.promised = 0.0
        accept = optimizer._accept

        def watch(objective: BilevelObjective, direction: Any, move: Tensor, new: Any, accuracy: Any) -> None:
            z = optimizer.progress["z"]
            self.promised = -optimizer.param_groups[0]["line_search"]["armijo"] * float(z @ move)
            accept(objective, direction, move, new, accuracy)

        optimizer._accept = watch  # type: ignore[method-assign]

    def check_step(self) -> Record:
        """One step: the interval holds the exact loss, and an accepted step keeps its promise."""
        before = exact_loss(self.objective)
        theta = self.objective.params[0].detach().clone()
        count = self.objective.evaluations
        record = self.optimizer.step(objective=self.objective)
        after = exact_loss(self.objective)
        slack = 1e-13 * (1 + abs(before))
        assert record.lower - slack <= after <= record.upper + slack
        assert self.objective.evaluations >= count
        assert record.evaluations == self.objective.evaluations
        if record.progress is Progress.ACCEPTED:
            assert self.promised > 0
            assert record.step > 0
            assert after <= before - self.promised + slack
        else:
            assert torch.equal(self.objective.params[0], theta)
            assert record.step == 0
        self.records.append(record)
        return record

    def run(self, steps: int) -> Record:
        for _ in range(steps):
            record = self.check_step()
            if record.finished:
                break
        return record


def tv_objective(dtype: torch.dtype = torch.float64, **options: Any) -> BilevelObjective:
    target = 0.5 + 0.3 * smooth_image(3, 1, 9, 10, seed=3)
    y = target + normal(3, 1, 9, 10, scale=0.15)
    regularizer = options.pop("regularizer", None) or TotalVariation(-4.0, -3.0).to(dtype)
    return BilevelObjective(regularizer, target.to(dtype), y.to(dtype), **options)


def tv_loss(objective: BilevelObjective) -> float:
    energy = Energy(objective.y, objective.regularizer)
    return float(objective.loss.value(exact_minimizer(energy, objective.y.clone()), objective.target).mean())
