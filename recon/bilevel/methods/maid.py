"""MAID, the method of adaptive inexact descent, accelerated."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from recon.bilevel.evaluation import Accuracy, Evaluation
from recon.bilevel.methods.certified_descent import Accelerations, CertifiedDescent, LineSearch
from recon.bilevel.methods.direction import Direction
from recon.bilevel.methods.older import takes_older
from recon.bilevel.methods.record import Progress, Record
from recon.bilevel.objective import InexactObjective
from recon.errors import at_least, fraction

#: of the decrease seen at a trial point, for the interval at each end when it is tried again
SHARE = 0.4
#: trial points of a line search at the floor of the floating-point type after which it is given up
MOST_FLOORS = 3


@dataclass(frozen=True)
class Limits:
    """How far MAID goes at a time.

    Parameters
    ----------
    slack : float
        The share of the promised decrease that the intervals may take.
    largest_growth : float
        As in :class:`Accelerations`.

    Raises
    ------
    ValueError
        An option is out of range.
    """

    slack: float = 0.9
    largest_growth: float = 4.0

    def __post_init__(self) -> None:
        fraction("limits.", slack=self.slack)
        at_least(1, "limits.", largest_growth=self.largest_growth)


class MAID(CertifiedDescent):
    """Method of adaptive inexact descent (Salehi, Mukherjee, Roberts, Ehrhardt, SIAM J. Math. Data Sci. 2025).

    ``step(objective=...)`` makes one upper-level iteration. A trial theta+ = theta - a d is accepted if

        U(theta+) + armijo a <z, d> <= L(theta),

    with certified bounds L <= f <= U: the exact f decreases by at least armijo a <z, d>. The accuracies of the lower
    level come from the decrease a <z, d> / 2 that a step promises. This, certificates of second order and directions
    by L-BFGS are accelerations of the published method, which keep its guarantee; :class:`PublishedMAID` is the method
    without them, and takes the last two as options.

    Everything that a resumed run needs is in ``state_dict()``: parameters of a failed search are put back.

    Parameters
    ----------
    params : iterable of tensors
        What is learned.
    certificate : {"goal_oriented", "first_order"}
        Bounds of second order in the errors, by the adjoint; or as published.
    direction : {"lbfgs", "gradient", "adagrad"}
        d, from z; ``adagrad`` divides by the root of the sum of squares so far.
    lr : float
        First step: along z for ``gradient`` and ``adagrad``; for ``lbfgs`` the length of the first move in theta.
    solution_accuracy, adjoint_accuracy : float
        epsilon and delta of the first evaluation.
    line_search : LineSearch
        How steps are tried.
    limits : Limits
        How far to go at a time.
    memory : int
        Pairs that ``lbfgs`` keeps.
    tolerance : float
        Stop when ||z|| is at most this.

    Raises
    ------
    ValueError
        An option is out of range, or the parameters are in several groups.
    """

    @takes_older
    def __init__(
        self,
        params: Iterable[Tensor],
        certificate: str = "goal_oriented",
        direction: str = "lbfgs",
        lr: float = 0.1,
        solution_accuracy: float = 1.0,
        adjoint_accuracy: float = 1.0,
        line_search: LineSearch = LineSearch(),
        limits: Limits = Limits(),
        memory: int = 80,
        tolerance: float = 0.0,
    ) -> None:
        own = {"certificate": certificate, "direction": direction, "limits": limits, "memory": memory}
        super().__init__(params, lr, solution_accuracy, adjoint_accuracy, line_search, tolerance, **own)
        _ = self._accelerations  # checks them

    @property
    def _limits(self) -> Limits:
        return Limits(**self.options["limits"])

    @property
    def _accelerations(self) -> Accelerations:
        own = self.options
        return Accelerations(own["certificate"], own["direction"], own["memory"], self._limits.largest_growth)

    def _iterate(self, objective: InexactObjective) -> Record:
        """A line search whose accuracies come from the decrease that is promised."""
        theta, options, search, slack = self._theta(), self.options, self._search, self._limits.slack
        self._inform(objective)
        if self._stationary(objective):
            return self._record(objective, Progress.CONVERGED, 0.0, 0)
        current, z = self.evaluation, self.progress["z"]
        direction = self._direction(z)
        d = direction.apply(z)
        slope, step = float(z @ d), self._limited(direction.first_step(options["lr"]), d)
        margin, floor = slack * 0.5 * step * slope, False
        same: Evaluation | None = None  # of the point that is tried again
        floors = 0
        for trial in range(1, search.trials + 1):
            self._set(theta)
            accuracy = objective.accuracy_for(current, margin, self._second)
            if current.value - current.lower > margin:
                current = objective.refine(current, accuracy, self._second)
            moved = self._set(theta - step * d)
            if bool((moved == theta).all()):  # by rounding
                floor = True
                break
            if same is not None:
                accuracy = objective.accuracy_for(same, margin, self._second)
            new = self._try(objective, accuracy, same if same is not None else current, self._second)
            same = None
            if new is None:
                step *= search.shrink
                margin = slack * 0.5 * step * slope
                continue
            if new.upper + search.armijo * step * slope <= current.lower:
                self._accept(objective, direction, moved - theta, new, accuracy)
                options["lr"] = direction.next_step(options["lr"], step, trial, search.growth)
                return self._record(objective, Progress.ACCEPTED, step, trial)
            decrease = current.value - new.value
            uncertain = (new.upper - new.value) + (current.value - current.lower)
            floor = new.at_precision_floor and uncertain > 2 * margin  # a shorter step may lead to a point that is not
            floors += floor
            if floors == MOST_FLOORS:
                break
            if decrease > 0.1 * step * slope and uncertain > 0.5 * decrease and not floor:
                # the step is good, its certificate too weak: the same point again, from where its solvers ended
                margin, same = SHARE * min(margin, decrease), new
                continue
            # minimizer of the parabola through both values and the slope
            fraction = 0.5 * step * slope / max(1e-300, step * slope - decrease)  # in this order NaN counts as 1e-300
            step *= min(max(fraction, 0.1), search.shrink)
            margin = slack * 0.5 * step * slope
        self._set(theta)
        return self._record(objective, self._failed(objective, current, direction, floor), 0.0, trial)

    def _failed(self, objective: InexactObjective, current: Evaluation, direction: Direction, floor: bool) -> Progress:
        """Certified values without any descent: z is too inaccurate, unless the errors cannot be any smaller."""
        error, adjoint = float(current.error.max()), float(current.adjoint.residual.max())
        accuracy = Accuracy(max(0.1 * error, 1e-300), max(0.1 * (adjoint if adjoint < math.inf else error), 1e-300))
        self._keep(objective.hypergradient(objective.refine(current, accuracy), accuracy))
        direction.reset()
        self.progress.update(direction=direction.state_dict(), longest=math.inf)
        self.options["lr"] *= 0.1
        return Progress.PRECISION_FLOOR if floor or self.evaluation.at_precision_floor else Progress.LINE_SEARCH_FAILED

    def _inform(self, objective: InexactObjective) -> None:
        """Refine until errors are small against grad g: before that, z says little (w = 0 solves any loose system)."""
        current, before = self.evaluation, math.nan
        while True:
            needed = max(0.1 * float(current.slope.mean()), 1e-300)
            accuracy = Accuracy(needed, needed)
            errors = max(float(current.error.max()), float(current.adjoint.residual.max()))
            if current.satisfies(accuracy) or current.at_precision_floor or errors >= before:
                return  # accurate enough, or as accurate as the solvers get
            before = errors
            current = objective.refine(current, accuracy)
            self._keep(objective.hypergradient(current, accuracy))
