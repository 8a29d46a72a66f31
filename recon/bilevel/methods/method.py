"""What all upper-level methods share: state, records, rollback and checks; a method adds how one iteration goes."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from recon.bilevel.evaluation import Accuracy, Evaluation
from recon.bilevel.hypergradient import Hypergradient
from recon.bilevel.methods.older import current_state, plain
from recon.bilevel.methods.record import NO_GUARANTEE, Progress, Record
from recon.bilevel.objective import InexactObjective
from recon.lower_level import NotStronglyConvexError, Status

#: what a method descends on
ObjectiveT = TypeVar("ObjectiveT")


def flat(params: Sequence[Tensor]) -> Tensor:
    """theta, flat, in float64; a copy."""
    return torch.cat([p.detach().flatten().double() for p in params])


@torch.no_grad()
def assign(params: Sequence[Tensor], theta: Tensor) -> Tensor:
    """Set the tensors to the flat ``theta``; returns what they are after rounding to their dtype."""
    for p, part in zip(params, theta.split([p.numel() for p in params]), strict=True):
        p.copy_(part.view_as(p))
    return flat(params)


def check_one_group(optimizer: torch.optim.Optimizer) -> None:
    """Raise ``ValueError`` if the parameters are in several groups."""
    if len(optimizer.param_groups) != 1:
        raise ValueError(f"{type(optimizer).__name__} takes one group of parameters, got {len(optimizer.param_groups)}")


class DivergedError(ValueError):
    """Parameters, of which nothing certifies that they converge, went where hypergradients are not finite."""


def require_finite(gradient: Hypergradient) -> None:
    """Raise :class:`DivergedError` if an energy or the hypergradient is not finite."""
    lost = bool((gradient.evaluation.status == Status.NOT_FINITE).any())
    if lost or not bool(torch.isfinite(gradient.z).all()):
        raise DivergedError("the hypergradient is NaN or infinite; start from other parameters, or with a smaller lr")


class UpperLevelMethod(torch.optim.Optimizer, Generic[ObjectiveT], ABC):
    """An upper-level method: ``step(objective=...)`` makes one iteration and returns its :class:`Record`.

    A method is a subclass with ``_iterate``, and with ``_begin`` if there is something to do before the first
    iteration. What a resumed run needs it keeps in ``progress``, a dictionary of plain values and tensors that are
    replaced and not changed, and in ``options``, all of which is in ``state_dict()``. If an iteration ends in an
    exception, parameters, options and ``progress`` are put back, and the next call tries it again.

    Parameters
    ----------
    params : iterable of tensors
        What is learned, theta, in one group.
    options
        Anything plain, and dataclasses of that; the first two are dictionaries in ``options``.

    Raises
    ------
    ValueError
        The parameters are in several groups.
    """

    #: with which the loss has fallen at accepted points, see :class:`Record`
    guarantee: str = NO_GUARANTEE
    #: names of its own options, of which every state has a value
    _own: tuple[str, ...] = ()

    def __init__(self, params: Iterable[Tensor], **options: object) -> None:
        super().__init__(params, {})
        self._take(**options)

    def _take(self, **options: object) -> None:
        """Keep the options beside those that an optimizer of torch has already."""
        check_one_group(self)
        self._own = tuple(options)
        for name, value in options.items():
            self.defaults[name] = self.param_groups[0][name] = plain(value)

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], object] | None = None, *, objective: ObjectiveT
    ) -> Record:
        """One upper-level iteration on ``objective``, whose parameters must be those of this optimizer.

        Parameters
        ----------
        closure : callable, optional
            Called first, as Lightning asks for; what it returns is not used.
        objective
            The learning problem.

        Returns
        -------
        Record
            What the iteration came to.

        Raises
        ------
        ValueError
            The method cannot descend on this objective, or not from these parameters.
        """
        if closure is not None:
            closure()
        self._check(objective)
        if not self.progress:
            with self._put_back():
                self._begin(objective)
                self.progress.setdefault("iteration", 0)
        with self._put_back():
            record = self._iterate(objective)
        self.progress["iteration"] = record.iteration
        return record

    # --- what a method adds ------------------------------------------------------------------------------------------

    @abstractmethod
    def _iterate(self, objective: ObjectiveT) -> Record:
        """One iteration; its record is made by ``_record`` unless it is that of another kind of method."""

    def _begin(self, objective: ObjectiveT) -> None:
        """Fill ``progress`` before the first iteration."""

    def _check(self, objective: ObjectiveT) -> None:
        """Raise ``ValueError`` for an objective that the method is not made for."""

    # --- what it has for that ----------------------------------------------------------------------------------------

    @property
    def options(self) -> dict[str, Any]:
        """The options in force, some of which methods adapt."""
        return self.param_groups[0]

    @property
    def progress(self) -> dict[str, Any]:
        """What belongs to the whole run, not to one tensor; ``torch.optim.Optimizer`` saves and loads it as it is."""
        entries: dict[Any, dict[str, Any]] = self.state
        return entries["method"]

    @property
    def evaluation(self) -> Evaluation:
        """The objective at the current parameters; its warm starts are part of a checkpoint."""
        return Evaluation.from_state(self.progress["evaluation"])

    @evaluation.setter
    def evaluation(self, value: Evaluation) -> None:
        self.progress["evaluation"] = value.state_dict()

    def _keep(self, gradient: Hypergradient) -> None:
        """Take note of the hypergradient at the current parameters, and of the evaluation that it belongs to."""
        self.evaluation, self.progress["z"] = gradient.evaluation, gradient.z

    @staticmethod
    def _try(
        objective: InexactObjective, accuracy: Accuracy, start: Evaluation | None, second: bool = False
    ) -> Evaluation | None:
        """The objective at a trial point, or None where no modulus of strong convexity certifies anything."""
        try:
            return objective.evaluate(accuracy, start, second)
        except NotStronglyConvexError:
            return None

    def _theta(self) -> Tensor:
        """The parameters, flat, in float64; a copy."""
        return flat(self.options["params"])

    def _set(self, theta: Tensor) -> Tensor:
        """Set the parameters; returns what they are after rounding to their dtype."""
        return assign(self.options["params"], theta)

    def _record(
        self, objective: InexactObjective, progress: Progress, step: float, trials: int = 1, omega: float = math.inf
    ) -> Record:
        """The record of an iteration that ends at ``evaluation``."""
        at, z = self.evaluation, self.progress.get("z")
        return Record(
            iteration=self.progress["iteration"] + 1,
            certified=at.certified,
            epsilon=float(at.error.max()),
            delta=float(at.adjoint.residual.max()),
            omega=omega,
            step=step,
            trials=trials,
            evaluations=objective.evaluations,
            gradient_norm=float(z.norm()) if z is not None else math.nan,
            progress=progress,
            guarantee=self.guarantee,
        )

    # --- as a part of another method ---------------------------------------------------------------------------------

    @property
    def warm(self) -> tuple[Tensor, Tensor] | None:
        """Lower-level and adjoint solutions of all images near the current parameters, where some are known."""
        return (self.evaluation.x, self.evaluation.adjoint.w) if "evaluation" in self.progress else None

    def take_over(self, evaluation: Evaluation, z: Tensor) -> None:
        """Go on from the current parameters, to which somebody else has moved.

        Parameters
        ----------
        evaluation : Evaluation
            Made there.
        z : tensor
            The hypergradient there.
        """
        if "evaluation" in self.progress:
            self.evaluation, self.progress["z"] = evaluation, z

    def hesitate(self) -> None:
        """Take steps half as long from now on: those so far led to a point that was not accepted."""
        for name in ("first_lr", "lr"):
            if name in self.options:
                self.options[name] *= 0.5
                return

    # --- state -------------------------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict()`` returned, in this version or an older one.

        Parameters
        ----------
        state_dict : dict
            State and options of a method of the same class.

        Raises
        ------
        ValueError
            They are those of another method.
        """
        super().load_state_dict(current_state(state_dict, self.defaults, self._own))

    @contextlib.contextmanager
    def _put_back(self) -> Iterator[None]:
        """Nothing has happened to parameters, options and state if an exception leaves the block.

        Tensors in ``progress`` are not copied. What optimizers of torch keep for a tensor they change in place.
        """
        theta, options = self._theta(), dict(self.options)
        kept = {
            key: {n: v.clone() if isinstance(key, Tensor) and isinstance(v, Tensor) else v for n, v in entry.items()}
            for key, entry in self.state.items()
        }
        try:
            yield
        except BaseException:
            self._set(theta)
            self.options.update(options)
            self.state.clear()
            self.state.update(kept)
            raise
