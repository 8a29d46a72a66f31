"""The method: a proposer moves, certificates accept, and a certified method steps in where they do not."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from recon.bilevel.evaluation import Evaluation
from recon.bilevel.methods.certified_descent import CertifiedDescent
from recon.bilevel.methods.maid import MAID
from recon.bilevel.methods.method import DivergedError, UpperLevelMethod
from recon.bilevel.methods.passes import InexactAdam, Passes
from recon.bilevel.methods.proposals.acceptance import SHARE, Trial
from recon.bilevel.methods.proposals.checks import Checks
from recon.bilevel.methods.proposals.sampling import order, share_of
from recon.bilevel.methods.record import EXACT, Progress, Record
from recon.bilevel.objective import InexactObjective
from recon.errors import instance
from recon.lower_level import NotStronglyConvexError
from recon.names import public_name

#: where the states of both methods are in that of this one
PARTS = ("proposer", "fallback")


class CertifiedProposals(UpperLevelMethod[InexactObjective]):
    r"""Any method proposes points, and certified intervals of the loss of all images decide.

    ``step(objective=...)`` lets the ``proposer`` move until it has cost ``checks.cost`` times what checks do, and then
    checks the point theta+ that it came to, from warm starts. It is accepted if

        U(theta+) + checks.promise a <z, d> <= L(theta),

    with certified bounds L <= f <= U and the step a d that the ``fallback`` would try next; accuracies come from the
    decrease that is seen. So the *exact* loss falls at every accepted point, whatever the proposer does. If not, theta
    is put back and the proposer takes steps half as long; after ``checks.rejections`` of that the ``fallback``, which
    certifies its steps itself, makes one. With ``checks.delta`` a sample of the images may decide, see
    :meth:`recon.bilevel.methods.proposals.acceptance.Trial.by_sample`; the ``guarantee`` of a record says which.

    The ``Record`` of a check: the interval is that of the loss of all images at the accepted point, where theta is
    now; step is that of the proposer, trials counts its iterations since the last check.

    Parameters
    ----------
    params : iterable of tensors
        What is learned.
    proposer : callable
        Makes an upper-level method of these tensors: :class:`InexactAdam`, :class:`InexactSGD`, :class:`InexactLBFGS`,
        or a subclass of :class:`UpperLevelMethod` of your own.
    fallback : callable
        Makes a method with certified descent of them: :class:`MAID` or :class:`PublishedMAID`.
    checks : Checks
        When points are checked, and what is asked of them.

    Raises
    ------
    ValueError
        An option is out of range, or (in ``step``) the proposer moved to parameters that are not finite, or gave them
        other shapes; theta is put back.
    TypeError
        The proposer is no upper-level method, or the fallback certifies no descent.

    Attributes
    ----------
    listener : callable, optional
        Called with the record of every iteration of the proposer, of which there may be many before a check: to show
        that something happens. Not part of the state.
    """

    listener: Callable[[Record], None] | None = None

    def __init__(
        self,
        params: Iterable[Tensor],
        proposer: Callable[[Iterable[Tensor]], UpperLevelMethod[Any]] = InexactAdam,
        fallback: Callable[[Iterable[Tensor]], CertifiedDescent] = MAID,
        checks: Checks = Checks(),
    ) -> None:
        tensors = list(params)
        self.proposer, self.fallback = proposer(tensors), fallback(tensors)
        instance(UpperLevelMethod, proposer=self.proposer)
        instance(CertifiedDescent, fallback=self.fallback)
        super().__init__(tensors, **{name: _described(vars(self)[name]) for name in PARTS}, checks=checks)

    @property
    def guarantee(self) -> str:  # type: ignore[override]
        """With which the loss has fallen at all points accepted so far: ``exact`` until a sample decided."""
        by_sample = self.progress.get("by_sample", False)
        return f"with probability {1 - self._checks.delta:g}" if by_sample else EXACT

    @property
    def _checks(self) -> Checks:
        return Checks(**self.options["checks"])

    @property
    def evaluation(self) -> Evaluation:
        return self.fallback.evaluation

    @evaluation.setter
    def evaluation(self, value: Evaluation) -> None:
        self.fallback.evaluation = value

    def _check(self, objective: InexactObjective) -> None:
        self.fallback._check(objective)
        count, first = len(objective.y), self._checks.sample
        if self._checks.delta and first > count:
            raise ValueError(
                f"checks.delta asks for samples of checks.sample = {first} images, but there are {count}; leave delta "
                "out to certify by all of them"
            )

    def _begin(self, objective: InexactObjective) -> None:
        before = objective.evaluations
        self.fallback.begin(objective)
        cost = objective.evaluations - before
        self.progress.update(
            check=cost,
            checking=cost,
            proposing=0.0,
            checks=0,
            rejected=0,
            decrease=0.0,
            ahead=None,
            phase=0.0,
            last_phase=0.0,
        )

    def _iterate(self, objective: InexactObjective) -> Record:
        """Proposals and their check, or a step of the fallback."""
        if self.progress["rejected"] >= self._checks.rejections:
            return self._fall_back(objective)
        theta = self._theta()
        found = self._propose(objective)
        if found is None:  # the proposer itself could not go on from where it went
            self._set(theta)
            return self._reject(objective, math.nan, 0)
        seen, step, iterations = found
        before = objective.evaluations
        trial = self._try_point(objective, theta, seen)
        accepted = trial is not None and self._decide(trial)
        cost = objective.evaluations - before
        self.progress.update(check=cost, checking=self.progress["checking"] + cost)
        if trial is not None and accepted:
            return self._accept(trial, step, iterations)
        if trial is not None:  # intervals at theta may have become shorter
            self.fallback.evaluation = trial.current
        self._set(theta)
        return self._reject(objective, step, iterations)

    # --- proposals ---------------------------------------------------------------------------------------------------

    def _propose(self, objective: InexactObjective) -> tuple[float, float, int] | None:
        """Go to the proposed point; the loss that the proposer saw last, its step and its iterations there."""
        checks, proposer, state = self._checks, self.proposer, self.progress
        phase = 0.0
        shapes = [p.shape for p in self.options["params"]]
        if (ahead := state["ahead"]) is not None:
            self._set(ahead)
        for iterations in itertools.count(1):  # noqa: B007  # of use after the loop
            if isinstance(proposer, Passes):
                proposer.visited = [] if checks.average else None
            before = objective.evaluations
            try:
                record = proposer.step(objective=objective)
            except (DivergedError, NotStronglyConvexError):
                return None
            finally:
                spent = objective.evaluations - before
                phase, state["proposing"] = phase + spent, state["proposing"] + spent
            self._check_point(shapes)
            if self.listener is not None:
                self.listener(record)
            if not spent or record.finished or self._due(phase, record.loss):
                break
        state["phase"] = phase
        self._average()
        return record.loss, record.step, iterations

    def _due(self, phase: float, seen: float) -> bool:
        """Whether proposals have cost enough for a check, ``phase`` since the last one and saw a loss ``seen`` last.

        As if this check were to cost what the last one did. It will cost more if the decrease is much smaller: then
        proposals go on, until there have been twice as many as last time, or enough for three times the cost.
        """
        state, cost, last = self.progress, self._checks.cost, self.progress["check"]
        if state["proposing"] < cost * (state["checking"] + last):
            return False
        seen_decrease = self.fallback.evaluation.value - seen
        small = seen_decrease < 0.25 * state["decrease"]
        return not small or phase >= min(2 * state["last_phase"], 3 * cost * last)

    def _check_point(self, shapes: list[torch.Size]) -> None:
        name = public_name(self.proposer)
        for k, (p, shape) in enumerate(zip(self.options["params"], shapes, strict=True)):
            if p.shape != shape:
                found = p.shape
                p.data = p.new_zeros(shape)  # so that theta can be put back
                raise ValueError(f"{name} gave parameter {k} the shape {tuple(found)}, but it is {tuple(shape)}")
            if not bool(torch.isfinite(p).all()):
                raise ValueError(f"{name} proposed parameters that are NaN or infinite (in parameter {k})")

    def _average(self) -> None:
        """Go to the mean of the last points instead, and remember where the proposer was."""
        visited = self.proposer.visited if isinstance(self.proposer, Passes) else None
        if visited:
            self.progress["ahead"] = visited[-1]
            last = visited[-max(1, round(self._checks.average * len(visited))) :]
            self._set(torch.stack(last).mean(0))

    # --- checks ------------------------------------------------------------------------------------------------------

    def _try_point(self, objective: InexactObjective, theta: Tensor, seen: float) -> Trial | None:
        """The proposed point evaluated, as accurately as the decrease ``current - seen`` needs."""
        fallback, current = self.fallback, self.fallback.evaluation
        promised = fallback.promised()
        last = self.progress["decrease"]
        boast = current.value - seen if math.isfinite(seen) else 0.0
        decrease = max(min(boast, 10 * last) if last else boast, 0.25 * last)
        margin = SHARE * max(decrease, 1e-3 * promised, 1e-300)
        sampled, count = self._checks.delta > 0, len(objective.y)
        if sampled:  # what the range of the unknown may be, for a sample of a quarter of the images
            margin *= max(1.0, count / 200)
        second = fallback.second_order
        # without adjoints of all images where a sample may decide
        accuracy = objective.cheapest_accuracy(current, margin, second and not sampled)
        start, warm = current, self.proposer.warm
        if warm is not None:
            start = replace(current, x=warm[0], adjoint=current.adjoint._replace(w=warm[1]))
        new = self._try(objective, accuracy, start, second and not sampled)
        if new is None or not new.finite:
            return None
        promise = self._checks.promise * promised
        return Trial(objective, theta, self._theta(), current, new, accuracy, promise, second, decrease)

    def _decide(self, trial: Trial) -> bool:
        """Whether the point is accepted."""
        checks, k = self._checks, self.progress["checks"] + 1
        if not checks.delta or trial.certain:
            return trial.by_all()
        self.progress["checks"] = k
        y = trial.objective.y
        orders = (order(len(y), checks.seed, k, drawn).to(y.device) for drawn in itertools.count())
        deltas = (share_of(checks.delta, k, look) for look in itertools.count(1))
        accepted = trial.by_sample(orders, checks.sample, deltas)
        if accepted and not trial.certain:
            self.progress["by_sample"] = True
        return accepted

    def _accept(self, trial: Trial, step: float, iterations: int) -> Record:
        objective, fallback, new = trial.objective, self.fallback, trial.new
        decrease, accuracy = trial.decrease, trial.accuracy
        if len(trial.sample):  # z of the sample, by the adjoints that are there
            part = objective.subset(trial.sample)
            z = part.hypergradient(new.select(trial.sample), accuracy.select(trial.sample)).z
            fallback.take_over(new, z)
        else:
            fallback.accept(objective, trial.point - trial.theta, new, accuracy)
        self.progress.update(rejected=0, decrease=decrease, last_phase=self.progress["phase"])
        self.proposer.take_over(fallback.evaluation, fallback.progress["z"])
        self.progress["z"] = fallback.progress["z"]
        return self._record(objective, Progress.ACCEPTED, step, iterations)

    def _reject(self, objective: InexactObjective, step: float, iterations: int) -> Record:
        """Theta has been put back."""
        self.proposer.hesitate()
        self.progress.update(rejected=self.progress["rejected"] + 1, ahead=None, last_phase=0.0)
        self.progress["z"] = self.fallback.progress["z"]
        self.proposer.take_over(self.fallback.evaluation, self.progress["z"])
        return self._record(objective, Progress.REJECTED, step, iterations)

    def _fall_back(self, objective: InexactObjective) -> Record:
        record = self.fallback.step(objective=objective)
        self.progress.update(rejected=0, ahead=None, z=self.fallback.progress["z"])
        self.proposer.take_over(self.fallback.evaluation, self.progress["z"])
        return replace(record, iteration=self.progress["iteration"] + 1, guarantee=self.guarantee)

    # --- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """State and options, those of the proposer and of the fallback as well."""
        return super().state_dict() | {name: vars(self)[name].state_dict() for name in PARTS}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        missing = [name for name in PARTS if name not in state_dict]
        if missing:
            raise ValueError(f"the state is that of another method: it has no {', '.join(missing)}")
        for name in PARTS:
            vars(self)[name].load_state_dict(state_dict[name])
        super().load_state_dict({key: value for key, value in state_dict.items() if key not in PARTS})

    @contextlib.contextmanager
    def _put_back(self) -> Iterator[None]:
        with self.proposer._put_back(), self.fallback._put_back(), super()._put_back():
            yield


def _described(method: UpperLevelMethod[Any]) -> dict[str, object]:
    """Class and options of a method in plain values, as checkpoints compare them."""
    kinds = (bool, int, float, str, dict, type(None))
    return {"class": public_name(method)} | {k: v for k, v in method.defaults.items() if isinstance(v, kinds)}
