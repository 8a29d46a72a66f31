"""Descent that certificates vouch for: what MAID and PublishedMAID share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from recon.bilevel.evaluation import Accuracy, Evaluation
from recon.bilevel.methods.direction import Direction, make_direction
from recon.bilevel.methods.method import UpperLevelMethod
from recon.bilevel.methods.record import EXACT
from recon.bilevel.objective import InexactObjective
from recon.errors import at_least, fraction, one_of, positive
from recon.lower_level import Status


@dataclass(frozen=True)
class LineSearch:
    """How steps along a direction are tried.

    Parameters
    ----------
    trials : int
        Points that are tried.
    armijo : float
        The share of a <z, d> by which a step a must decrease the objective.
    shrink, growth : float
        What a rejected step is multiplied by (at most, where a model of the objective gives less), and an accepted one
        for the next search. The direction ``lbfgs`` always tries step 1 first.

    Raises
    ------
    ValueError
        An option is out of range.
    """

    trials: int = 12
    armijo: float = 1e-4
    shrink: float = 0.5
    growth: float = 1.2

    def __post_init__(self) -> None:
        fraction("line_search.", armijo=self.armijo, shrink=self.shrink)
        at_least(1, "line_search.", trials=self.trials, growth=self.growth)


@dataclass(frozen=True)
class Accelerations:
    """What a method has of the accelerations of :class:`MAID`; by default nothing.

    Parameters
    ----------
    certificate : {"first_order", "goal_oriented"}
        Bounds as published; or of second order in the errors, by the adjoint.
    direction : {"gradient", "adagrad", "lbfgs"}
        d, from z; ``adagrad`` divides by the root of the sum of squares so far.
    memory : int
        Pairs that ``lbfgs`` keeps.
    largest_growth : float
        ||theta+ - theta|| of a trial is at most this times the last accepted one, which keeps exponential parameters in
        range while L-BFGS knows little.

    Raises
    ------
    ValueError
        An option is out of range.
    """

    certificate: str = "first_order"
    direction: str = "gradient"
    memory: int = 80
    largest_growth: float = math.inf

    def __post_init__(self) -> None:
        one_of(("goal_oriented", "first_order"), certificate=self.certificate)
        one_of(("lbfgs", "gradient", "adagrad"), direction=self.direction)
        at_least(1, memory=self.memory, largest_growth=self.largest_growth)


class CertifiedDescent(UpperLevelMethod[InexactObjective]):
    """Accepts a trial theta+ = theta - a d if U(theta+) + armijo a <z, d> <= L(theta), with bounds L <= f <= U.

    The exact f then decreases by at least armijo a <z, d>. How accurate the bounds are is up to the subclasses.

    Parameters
    ----------
    params, lr, solution_accuracy, adjoint_accuracy, line_search, tolerance
        As in :class:`MAID`.
    own
        The options of the subclass.

    Raises
    ------
    ValueError
        An option is out of range, or the parameters are in several groups.
    """

    guarantee = EXACT

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        solution_accuracy: float,
        adjoint_accuracy: float,
        line_search: LineSearch,
        tolerance: float,
        **own: object,
    ) -> None:
        numbers = {"lr": lr, "solution_accuracy": solution_accuracy, "adjoint_accuracy": adjoint_accuracy}
        positive(**numbers)
        at_least(0, tolerance=tolerance)
        super().__init__(params, **numbers, line_search=line_search, tolerance=tolerance, **own)

    @property
    @abstractmethod
    def _accelerations(self) -> Accelerations:
        """The options of bounds and directions."""

    @property
    def _search(self) -> LineSearch:
        return LineSearch(**self.options["line_search"])

    def _check(self, objective: InexactObjective) -> None:
        if objective.unrolled_steps is not None:
            raise ValueError(
                f"{type(self).__name__} accepts steps by certificates, which no accuracy shortens after a fixed number "
                "of unrolled_steps; use HOAG, FixedAccuracy, InexactAdam or InexactSGD, or leave unrolled_steps out"
            )

    def _begin(self, objective: InexactObjective) -> None:
        accuracy = self._accuracy()
        gradient = objective.hypergradient(objective.evaluate(accuracy, None, self._second), accuracy)
        bad = torch.nonzero(gradient.evaluation.status == Status.NOT_FINITE).flatten()
        if bad.numel() or not bool(torch.isfinite(gradient.z).all()):
            where = f"the energy of image {int(bad[0])}" if bad.numel() else "the hypergradient"
            raise ValueError(f"{where} is NaN or infinite at the initial parameters; start from others")
        self.progress.update(direction=None, longest=math.inf)
        self._keep(gradient)

    # --- as a part of another method ---------------------------------------------------------------------------------

    def begin(self, objective: InexactObjective) -> None:
        """Evaluate where theta is, as the first iteration does before it begins."""
        self._check(objective)
        with self._put_back():
            self._begin(objective)
            self.progress.setdefault("iteration", 0)

    @property
    def second_order(self) -> bool:
        """Whether certificates are those of second order in the errors."""
        return self._second

    def promised(self) -> float:
        """a <z, d> of the first step a that would be tried next, by which the loss falls to first order."""
        z = self.progress["z"]
        direction = self._direction(z)
        d = direction.apply(z)
        return self._limited(direction.first_step(self.options["lr"]), d) * float(z @ d)

    def accept(self, objective: InexactObjective, move: Tensor, new: Evaluation, accuracy: Accuracy) -> None:
        """Go on from ``new`` where theta is now, after a ``move`` that somebody else has made, and learn from it."""
        self._accept(objective, self._direction(self.progress["z"]), move, new, accuracy)

    @property
    def _second(self) -> bool:
        return self._accelerations.certificate == "goal_oriented"

    def _accuracy(self) -> Accuracy:
        return Accuracy(self.options["solution_accuracy"], self.options["adjoint_accuracy"])

    def _direction(self, z: Tensor) -> Direction:
        own = self._accelerations
        return make_direction(own.direction, own.memory, z, self.progress["direction"])

    def _limited(self, step: float, d: Tensor) -> float:
        """The step along d, or the longest that may be tried."""
        return min(step, self.progress["longest"] / max(float(d.norm()), 1e-300))

    def _accept(
        self, objective: InexactObjective, direction: Direction, move: Tensor, new: Evaluation, accuracy: Accuracy
    ) -> None:
        """Go on from the trial point ``new``, to which theta has made ``move``."""
        old = self.progress["z"]
        gradient = objective.hypergradient(new, accuracy)
        self.progress["longest"] = self._accelerations.largest_growth * float(move.norm())
        direction.learn(move, gradient.z - old)
        self._keep(gradient)
        self.progress["direction"] = direction.state_dict()

    def _stationary(self, objective: InexactObjective) -> bool:
        """Whether ||z|| <= tolerance, and stays so at a tenth of the errors until z has settled."""
        tolerance = self.options["tolerance"]
        while float(self.progress["z"].norm()) <= tolerance:
            current, z = self.evaluation, self.progress["z"]
            if current.at_precision_floor or not tolerance:
                return True
            errors = float(current.error.max()), float(current.adjoint.residual.max())
            accuracy = Accuracy(*(max(0.1 * e, 1e-300) for e in errors))
            self._keep(objective.hypergradient(objective.refine(current, accuracy), accuracy))
            if float((self.progress["z"] - z).norm()) <= 0.1 * tolerance:
                return float(self.progress["z"].norm()) <= tolerance
        return False
