"""MAID, the method of adaptive inexact descent, as published and accelerated."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor

from recon.bilevel.evaluation import Accuracy, Evaluation
from recon.bilevel.hypergradient import Hypergradient
from recon.bilevel.methods.direction import Direction, make_direction
from recon.bilevel.methods.parameters import assign, check_one_group, check_positive, flat
from recon.bilevel.methods.record import Outcome, Progress, Record
from recon.bilevel.objective import InexactObjective
from recon.lower_level import NotStronglyConvexError, Status

#: of the decrease seen at a trial point, for the interval at each end when it is tried again
SHARE = 0.4
#: trial points of a line search at the floor of the floating-point type after which it is given up
MOST_FLOORS = 3


class MAID(torch.optim.Optimizer):
    """Method of adaptive inexact descent (Salehi, Mukherjee, Roberts, Ehrhardt, SIAM J. Math. Data Sci. 2025).

    ``step(objective=...)`` makes one upper-level iteration. A trial theta+ = theta - a d is accepted if

        U(theta+) + armijo a <z, d> <= L(theta),

    with certified bounds L <= f <= U: the exact f decreases by at least armijo a <z, d>. The accuracies of the lower
    level adapt themselves. Three accelerations keep this guarantee and are on by default (:class:`PublishedMAID`
    switches them off):

    Parameters
    ----------
    certificate: ``goal_oriented``: bounds of second order in the errors, by the adjoint; ``first_order``: as published.
    direction: d, from z: ``lbfgs``, ``gradient``, or ``adagrad`` (divided by the root of the sum of squares so far).
    accuracy: ``predicted``: from the decrease a <z, d> / 2 that the step promises, of which the intervals may take
        the share ``slack``; ``schedule``: shrunk by ``accuracy_shrink`` when a line search of growing budget fails, and
        grown by ``accuracy_growth`` after each success.
    lr: first step. Along z for ``gradient`` and ``adagrad``; for ``lbfgs`` the length of the first move in theta.
    solution_accuracy, adjoint_accuracy: epsilon and delta of the first evaluation.
    armijo, step_shrink, step_growth: constants of the line search. ``lbfgs`` always tries step 1 first.
    line_search: trials of a line search (``schedule``: the first budget, which grows by one after each failure).
    descent_check, eta: refine until omega <= (1 - eta) ||z|| before the line search.
    memory: of L-BFGS. largest_growth: ||theta+ - theta|| of a trial is at most this times the last accepted one, which
        keeps exponential parameters in range while L-BFGS knows little.
    tolerance: stop when ||z|| is at most this.

    Everything that a resumed run needs is in ``state_dict()``: parameters of a failed search are put back.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        certificate: str = "goal_oriented",
        direction: str = "lbfgs",
        accuracy: str = "predicted",
        lr: float = 0.1,
        solution_accuracy: float = 1.0,
        adjoint_accuracy: float = 1.0,
        armijo: float = 1e-4,
        slack: float = 0.9,
        step_shrink: float = 0.5,
        step_growth: float = 1.2,
        accuracy_shrink: float = 0.5,
        accuracy_growth: float = 1.05,
        line_search: int = 12,
        descent_check: bool = False,
        eta: float = 0.5,
        memory: int = 80,
        largest_growth: float = 4.0,
        tolerance: float = 0.0,
    ) -> None:
        _choice("certificate", certificate, ("goal_oriented", "first_order"))
        _choice("direction", direction, ("lbfgs", "gradient", "adagrad"))
        _choice("accuracy", accuracy, ("predicted", "schedule"))
        check_positive(lr=lr, solution_accuracy=solution_accuracy, adjoint_accuracy=adjoint_accuracy)
        fractions = {"armijo": armijo, "slack": slack, "step_shrink": step_shrink, "accuracy_shrink": accuracy_shrink}
        for name, value in (fractions | {"eta": eta}).items():
            _check(name, value, 0 < value < 1, "between 0 and 1")
        growths = {"step_growth": step_growth, "accuracy_growth": accuracy_growth, "largest_growth": largest_growth}
        for name, value in growths.items():
            _check(name, value, value >= 1, "at least 1")
        for name, value in {"line_search": line_search, "memory": memory}.items():
            _check(name, value, value >= 1, "at least 1")
        _check("tolerance", tolerance, tolerance >= 0, "at least 0")
        defaults = {k: v for k, v in locals().items() if k not in _NOT_OPTIONS}
        super().__init__(params, defaults)
        check_one_group(self)

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], Any] | None = None, *, objective: InexactObjective
    ) -> Record:
        """One upper-level iteration on ``objective``, whose parameters must be those of this optimizer."""
        if closure is not None:
            closure()
        state, options = self._progress, self.param_groups[0]
        if objective.unrolled_steps is not None:
            raise ValueError(
                f"{type(self).__name__} accepts steps by certificates, which no accuracy shortens after a fixed number "
                "of unrolled_steps; use HOAG, FixedAccuracy, InexactAdam or InexactSGD, or leave unrolled_steps out"
            )
        if not state:
            first = Accuracy(options["solution_accuracy"], options["adjoint_accuracy"])
            gradient = objective.hypergradient(objective.evaluate(first, None, self._second), first)
            bad = torch.nonzero(gradient.evaluation.status == Status.NOT_FINITE).flatten()
            if bad.numel() or not bool(torch.isfinite(gradient.z).all()):
                where = f"the energy of image {int(bad[0])}" if bad.numel() else "the hypergradient"
                raise ValueError(f"{where} is NaN or infinite at the initial parameters; start from others")
            state.update(iteration=0, direction=None, longest=math.inf)
            self._keep(gradient)
        theta = self._get()
        try:
            search = self._predicted if options["accuracy"] == "predicted" else self._scheduled
            outcome = search(objective, theta)
        except BaseException:
            self._set(theta)
            raise
        state["iteration"] += 1
        return self._record(objective, outcome)

    # --- the two ways to choose accuracies ---------------------------------------------------------------------------

    def _predicted(self, objective: InexactObjective, theta: Tensor) -> Outcome:
        """Line search whose accuracies come from the decrease that is promised."""
        options = self.param_groups[0]
        self._inform(objective)
        if self._stationary(objective):
            return Outcome(Progress.CONVERGED, 0.0, 0)
        current, z = self.evaluation, self._progress["z"]
        direction = self._direction(z)
        d = direction.apply(z)
        slope, step = float(z @ d), direction.first_step(options["lr"])
        step = min(step, self._progress["longest"] / max(float(d.norm()), 1e-300))
        margin, floor = options["slack"] * 0.5 * step * slope, False
        same: Evaluation | None = None  # of the point that is tried again
        floors = 0
        for trial in range(1, options["line_search"] + 1):
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
            new = self._try(objective, accuracy, same if same is not None else current)
            same = None
            if new is None:
                step *= options["step_shrink"]
                margin = options["slack"] * 0.5 * step * slope
                continue
            if new.upper + options["armijo"] * step * slope <= current.lower:
                self._accept(objective, direction, moved - theta, new, accuracy)
                options["lr"] = direction.next_step(options["lr"], step, trial, options["step_growth"])
                return Outcome(Progress.ACCEPTED, step, trial)
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
            step *= min(max(fraction, 0.1), options["step_shrink"])
            margin = options["slack"] * 0.5 * step * slope
        self._set(theta)
        # certified values without any descent along d: z is too inaccurate, unless the errors cannot be any smaller
        error, adjoint = float(current.error.max()), float(current.adjoint_residual.max())
        accuracy = Accuracy(max(0.1 * error, 1e-300), max(0.1 * (adjoint if adjoint < math.inf else error), 1e-300))
        self._keep(objective.hypergradient(objective.refine(current, accuracy), accuracy))
        progress = Progress.LINE_SEARCH_FAILED
        if floor or self.evaluation.at_precision_floor:
            progress = Progress.PRECISION_FLOOR
        direction.reset()
        self._progress.update(direction=direction.state_dict(), longest=math.inf)
        options["lr"] *= 0.1
        return Outcome(progress, 0.0, trial)

    def _scheduled(self, objective: InexactObjective, theta: Tensor) -> Outcome:
        """The published loop: accuracies shrink when a search fails and grow after a success."""
        options, state = self.param_groups[0], self._progress
        trials, budget, alpha = 0, options["line_search"], options["lr"]
        while True:
            self._set(theta)
            gradient = self._descending(objective)
            self._keep(gradient)
            if self._stationary(objective):
                return Outcome(Progress.CONVERGED, 0.0, trials, gradient.error)
            current, z = self.evaluation, state["z"]
            direction = self._direction(z)
            d = direction.apply(z)
            slope, step = float(z @ d), direction.first_step(alpha)
            step = min(step, state["longest"] / max(float(d.norm()), 1e-300))
            accuracy = self._accuracy()
            for _ in range(budget):
                trials += 1
                moved = self._set(theta - step * d)
                new = self._try(objective, accuracy, current)
                if new is not None and new.upper + options["armijo"] * step * slope <= current.lower:
                    self._accept(objective, direction, moved - theta, new, accuracy)
                    options["lr"] = direction.next_step(alpha, step, 1, options["step_growth"])
                    self._scale_accuracy(options["accuracy_growth"])
                    return Outcome(Progress.ACCEPTED, step, trials, gradient.error)
                step *= options["step_shrink"]
            if current.at_precision_floor or (new is not None and new.at_precision_floor):
                self._set(theta)
                return Outcome(Progress.PRECISION_FLOOR, 0.0, trials, gradient.error)
            if new is None or not bool((current.error <= accuracy.solution).all()):
                # out of reach of certificates, or out of iterations: more accuracy is no use, shorter steps are
                self._set(theta)
                options["lr"] = alpha * options["step_shrink"] ** budget
                return Outcome(Progress.LINE_SEARCH_FAILED, 0.0, trials, gradient.error)
            self._scale_accuracy(options["accuracy_shrink"])
            budget += 1

    def _try(self, objective: InexactObjective, accuracy: Accuracy, current: Evaluation) -> Evaluation | None:
        """The objective at a trial point, or ``None`` where no modulus of strong convexity certifies anything."""
        try:
            return objective.evaluate(accuracy, current, self._second)
        except NotStronglyConvexError:
            return None

    def _inform(self, objective: InexactObjective) -> None:
        """Refine until errors are small against grad g: before that, z says little (w = 0 solves any loose system)."""
        current, before = self.evaluation, math.nan
        while True:
            needed = max(0.1 * float(current.slope.mean()), 1e-300)
            accuracy = Accuracy(needed, needed)
            errors = max(float(current.error.max()), float(current.adjoint_residual.max()))
            if current.satisfies(accuracy) or current.at_precision_floor or errors >= before:
                return  # accurate enough, or as accurate as the solvers get
            before = errors
            current = objective.refine(current, accuracy)
            self._keep(objective.hypergradient(current, accuracy))

    def _stationary(self, objective: InexactObjective) -> bool:
        """Whether ||z|| <= tolerance, and stays so at a tenth of the errors until z has settled."""
        tolerance = self.param_groups[0]["tolerance"]
        while float(self._progress["z"].norm()) <= tolerance:
            current, z = self.evaluation, self._progress["z"]
            if current.at_precision_floor or not tolerance:
                return True
            errors = float(current.error.max()), float(current.adjoint_residual.max())
            accuracy = Accuracy(*(max(0.1 * e, 1e-300) for e in errors))
            self._keep(objective.hypergradient(objective.refine(current, accuracy), accuracy))
            if float((self._progress["z"] - z).norm()) <= 0.1 * tolerance:
                return float(self._progress["z"].norm()) <= tolerance
        return False

    def _descending(self, objective: InexactObjective) -> Hypergradient:
        """z at the accuracy in force; refined until omega <= (1 - eta) ||z|| if the descent check is on."""
        options = self.param_groups[0]
        evaluation = self.evaluation
        while True:
            accuracy = self._accuracy()
            evaluation = objective.refine(evaluation, accuracy, self._second)
            gradient = objective.hypergradient(evaluation, accuracy, bound=options["descent_check"])
            evaluation = gradient.evaluation
            descends = gradient.error <= (1 - options["eta"]) * float(gradient.z.norm())
            if not options["descent_check"] or descends or not evaluation.satisfies(accuracy):
                return gradient
            self._scale_accuracy(options["accuracy_shrink"])

    # --- state -------------------------------------------------------------------------------------------------------

    @property
    def _progress(self) -> dict[str, Any]:
        """What belongs to the whole run, not to one tensor: saved and loaded by ``torch.optim.Optimizer`` as it is."""
        return cast(dict[str, dict[str, Any]], self.state)["maid"]

    @property
    def evaluation(self) -> Evaluation:
        """The objective at the current parameters; its warm starts are part of a checkpoint."""
        return Evaluation(**self._progress["evaluation"])

    @evaluation.setter
    def evaluation(self, value: Evaluation) -> None:
        fields = dataclasses.fields(value)
        self._progress["evaluation"] = {f.name: getattr(value, f.name) for f in fields}

    @property
    def _second(self) -> bool:
        return bool(self.param_groups[0]["certificate"] == "goal_oriented")

    def _accuracy(self) -> Accuracy:
        options = self.param_groups[0]
        return Accuracy(options["solution_accuracy"], options["adjoint_accuracy"])

    def _scale_accuracy(self, factor: float) -> None:
        for name in ("solution_accuracy", "adjoint_accuracy"):
            self.param_groups[0][name] *= factor

    def _direction(self, z: Tensor) -> Direction:
        return make_direction(self.param_groups[0], z, self._progress["direction"])

    def _keep(self, gradient: Hypergradient) -> None:
        self.evaluation, self._progress["z"] = gradient.evaluation, gradient.z

    def _accept(
        self, objective: InexactObjective, direction: Direction, move: Tensor, new: Evaluation, accuracy: Accuracy
    ) -> None:
        old = self._progress["z"]
        gradient = objective.hypergradient(new, accuracy)
        self._progress["longest"] = self.param_groups[0]["largest_growth"] * float(move.norm())
        direction.learn(move, gradient.z - old)
        self._keep(gradient)
        self._progress["direction"] = direction.state_dict()

    def _record(self, objective: InexactObjective, outcome: Outcome) -> Record:
        at, state = self.evaluation, self._progress
        return Record(
            iteration=state["iteration"],
            loss=at.value,
            lower=at.lower,
            upper=at.upper,
            epsilon=float(at.error.max()),
            delta=float(at.adjoint_residual.max()),
            omega=outcome.omega,
            step=outcome.step,
            trials=outcome.trials,
            evaluations=objective.evaluations,
            gradient_norm=float(state["z"].norm()),
            progress=outcome.progress,
            rounding=at.rounding,
            grade=at.grade,
        )

    def _get(self) -> Tensor:
        return flat(self.param_groups[0]["params"])

    def _set(self, theta: Tensor) -> Tensor:
        """Set the parameters; returns what they are after rounding to their dtype."""
        return assign(self.param_groups[0]["params"], theta)


class PublishedMAID(MAID):
    """MAID as published: first-order certificate, gradient steps, scheduled accuracies. Parameters as in MAID."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-2,
        solution_accuracy: float = 1e-1,
        adjoint_accuracy: float = 1e-1,
        armijo: float = 1e-4,
        step_shrink: float = 0.5,
        step_growth: float = 1.2,
        accuracy_shrink: float = 0.5,
        accuracy_growth: float = 1.05,
        line_search: int = 5,
        descent_check: bool = False,
        eta: float = 0.5,
        tolerance: float = 0.0,
    ) -> None:
        options = {k: v for k, v in locals().items() if k not in _NOT_OPTIONS}
        super().__init__(params, "first_order", "gradient", "schedule", largest_growth=math.inf, **options)


_NOT_OPTIONS = frozenset({"self", "params", "__class__", "fractions", "growths", "name", "value"})


def _choice(name: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(valid)}")


def _check(name: str, value: float, holds: bool, valid: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value}, but must be {valid}")
