"""MAID as it was published: accuracies on a schedule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from recon.bilevel.hypergradient import Hypergradient
from recon.bilevel.methods.certified_descent import Accelerations, CertifiedDescent, LineSearch
from recon.bilevel.methods.older import takes_older
from recon.bilevel.methods.record import Progress, Record
from recon.bilevel.objective import InexactObjective
from recon.errors import at_least, fraction


@dataclass(frozen=True)
class AccuracySchedule:
    """How accuracies follow the line searches.

    Parameters
    ----------
    shrink : float
        What they are multiplied by when a line search has failed.
    growth : float
        What they are multiplied by after a success.
    descent_check : bool
        Whether to refine before the line search until omega <= (1 - eta) ||z||, with omega >= ||z - grad f||.
    eta : float
        Of the descent check.

    Raises
    ------
    ValueError
        An option is out of range.
    """

    shrink: float = 0.5
    growth: float = 1.05
    descent_check: bool = False
    eta: float = 0.5

    def __post_init__(self) -> None:
        fraction("schedule.", shrink=self.shrink, eta=self.eta)
        at_least(1, "schedule.", growth=self.growth)


class PublishedMAID(CertifiedDescent):
    """MAID as published: accuracies that shrink when a line search fails, and grow after a success.

    A trial is accepted as in :class:`MAID`. With accelerations it is a step between the two.

    Parameters
    ----------
    params : iterable of tensors
        What is learned.
    lr : float
        First step: along z for ``gradient`` and ``adagrad``; for ``lbfgs`` the length of the first move in theta.
    solution_accuracy, adjoint_accuracy : float
        epsilon and delta of the first evaluation.
    line_search : LineSearch
        How steps are tried, here with 5 ``trials``; one more after each search that has failed.
    schedule : AccuracySchedule
        How the accuracies change.
    accelerations : Accelerations
        Bounds of second order, and other directions than z.
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
        lr: float = 1e-2,
        solution_accuracy: float = 1e-1,
        adjoint_accuracy: float = 1e-1,
        line_search: LineSearch = LineSearch(trials=5),
        schedule: AccuracySchedule = AccuracySchedule(),
        accelerations: Accelerations = Accelerations(),
        tolerance: float = 0.0,
    ) -> None:
        own = {"schedule": schedule, "accelerations": accelerations}
        super().__init__(params, lr, solution_accuracy, adjoint_accuracy, line_search, tolerance, **own)

    def _iterate(self, objective: InexactObjective) -> Record:
        """Line searches of growing budget; accuracies shrink when one fails and grow after a success."""
        theta, options, search, schedule = self._theta(), self.options, self._search, self._schedule
        trials, budget, alpha = 0, search.trials, options["lr"]
        while True:
            self._set(theta)
            gradient = self._descending(objective)
            self._keep(gradient)
            omega = gradient.error
            if self._stationary(objective):
                return self._record(objective, Progress.CONVERGED, 0.0, trials, omega)
            current, z = self.evaluation, self.progress["z"]
            direction = self._direction(z)
            d = direction.apply(z)
            slope, step = float(z @ d), self._limited(direction.first_step(alpha), d)
            accuracy = self._accuracy()
            for _ in range(budget):
                trials += 1
                moved = self._set(theta - step * d)
                new = self._try(objective, accuracy, current, self._second)
                if new is not None and new.upper + search.armijo * step * slope <= current.lower:
                    self._accept(objective, direction, moved - theta, new, accuracy)
                    options["lr"] = direction.next_step(alpha, step, 1, search.growth)
                    self._scale_accuracy(schedule.growth)
                    return self._record(objective, Progress.ACCEPTED, step, trials, omega)
                step *= search.shrink
            if current.at_precision_floor or (new is not None and new.at_precision_floor):
                self._set(theta)
                return self._record(objective, Progress.PRECISION_FLOOR, 0.0, trials, omega)
            if new is None or not bool((current.error <= accuracy.solution).all()):
                # out of reach of certificates, or out of iterations: more accuracy is no use, shorter steps are
                self._set(theta)
                options["lr"] = alpha * search.shrink**budget
                return self._record(objective, Progress.LINE_SEARCH_FAILED, 0.0, trials, omega)
            self._scale_accuracy(schedule.shrink)
            budget += 1

    def _descending(self, objective: InexactObjective) -> Hypergradient:
        """z at the accuracy in force; refined until omega <= (1 - eta) ||z|| if the descent check is on."""
        schedule, evaluation = self._schedule, self.evaluation
        while True:
            accuracy = self._accuracy()
            evaluation = objective.refine(evaluation, accuracy, self._second)
            gradient = objective.hypergradient(evaluation, accuracy, bound=schedule.descent_check)
            evaluation = gradient.evaluation
            descends = gradient.error <= (1 - schedule.eta) * float(gradient.z.norm())
            if not schedule.descent_check or descends or not evaluation.satisfies(accuracy):
                return gradient
            self._scale_accuracy(schedule.shrink)

    @property
    def _accelerations(self) -> Accelerations:
        return Accelerations(**self.options["accelerations"])

    @property
    def _schedule(self) -> AccuracySchedule:
        return AccuracySchedule(**self.options["schedule"])

    def _scale_accuracy(self, factor: float) -> None:
        for name in ("solution_accuracy", "adjoint_accuracy"):
            self.options[name] *= factor
