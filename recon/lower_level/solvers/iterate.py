"""One loop for solvers: what callbacks are told, what limits mean, and states to go on from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from recon.lower_level.batch import PerImage
from recon.lower_level.energy import Energy
from recon.lower_level.grade import Grade
from recon.lower_level.precision import full_precision
from recon.lower_level.solution import RUNNING, Solution
from recon.lower_level.solvers.stopping import Collector, Stopping, norms_of


@dataclass(frozen=True)
class Snapshot:
    """What a callback is told after every iteration, of the whole batch; images that stopped are as they ended.

    Parameters
    ----------
    iteration : int
        0 at the start, where the first evaluation is.
    x : Tensor
        What the solver would return now.
    evaluations : Tensor
        Of every image so far, ``(batch,)``.
    error : Tensor
        Certified distance of x to the minimizer per image, ``(batch,)``; infinite where nothing is certified.
    """

    iteration: int
    x: Tensor
    evaluations: Tensor
    error: Tensor


#: is told every iteration; raising ``StopIteration`` ends the solve there, as in scipy
Callback = Callable[[Snapshot], None]
#: plain tensors by part and name, as :meth:`Solve.state_dict` returns them
Saved = Mapping[str, Mapping[str, Tensor]]


def ends(callback: Callback | None, snapshot: Callable[[], Snapshot]) -> bool:
    """Tell the callback, if there is one; returns whether it ends the solve."""
    try:
        if callback is not None:
            callback(snapshot())
    except StopIteration:
        return True
    return False


class Solver(ABC):
    """Minimizes energies, ``solver(energy, x0, accuracy) -> Solution``. Configurations take subclasses of it."""

    @abstractmethod
    def __call__(
        self, energy: Energy, x0: Tensor, accuracy: float | Tensor, callback: Callback | None = None
    ) -> Solution:
        """Minimize h from ``x0`` to certified distance ``accuracy``.

        Parameters
        ----------
        energy : Energy
            h, for every image of the batch.
        x0 : Tensor
            Where to start.
        accuracy : float or Tensor
            A number, or one per image.
        callback : callable, optional
            ``callback(snapshot)`` is told the start and every iteration, see :class:`Snapshot`. If it raises
            ``StopIteration``, images that are still running end there with ``Status.ITERATION_LIMIT``.

        Returns
        -------
        Solution
            Points, their certificates, and why the solver stopped.
        """


@dataclass
class State(PerImage):
    """Where the images stand that still run: tensors only, each with one row for every such image.

    Parameters
    ----------
    x : Tensor
        The point that is certified and returned.
    value, grad : Tensor
        h and its gradient there.
    evaluations : Tensor
        Spent so far, ``(images,)``.
    """

    x: Tensor
    value: Tensor
    grad: Tensor
    evaluations: Tensor


R = TypeVar("R")
S = TypeVar("S", bound=State)


class SteppedSolver(Solver, Generic[S]):
    """A solver that is a start and a step: the loop, stopping image by image, callbacks and limits are made of them.

    An image stops with ``Status.ITERATION_LIMIT`` as soon as it has spent ``max_iterations`` evaluations.
    """

    #: class of the state
    state: type[S]
    max_iterations: int
    certified = True

    def prepare(self, energy: Energy, like: Tensor) -> None:
        """Have the energy of the whole batch compute what steps ask it for, before images leave it."""

    @abstractmethod
    def init(self, energy: Energy, x0: Tensor) -> S:
        """The state at the start: a copy of x0 or of its projection, evaluated once."""

    @abstractmethod
    def step(self, energy: Energy, state: S) -> None:
        """Go on by one iteration, in place; ``energy`` is that of the images in ``state``, whose ``x`` is replaced."""

    def left(self, state: S) -> Tensor:
        """What is left of the gradient at x: zero at the minimizer, and its norm over mu is the certificate."""
        return state.grad

    def norms(self, state: S) -> Tensor:
        """Of what is left of the gradient, and of x, ``(images, 2)``, float64."""
        return norms_of(self.left(state), state.x)

    def stalled(self, state: S) -> Tensor | None:
        """Which images cannot make progress any more, ``(images,)``; None where that is not known."""
        return None

    def __call__(
        self, energy: Energy, x0: Tensor, accuracy: float | Tensor, callback: Callback | None = None
    ) -> Solution:
        """Minimize h from ``x0`` to certified distance ``accuracy``, see :class:`Solver`."""
        return self.start(energy, x0, accuracy).run(callback)

    @full_precision()
    def start(self, energy: Energy, x0: Tensor, accuracy: float | Tensor) -> Solve[S]:
        """A solve that has been evaluated at its start; arguments are those of the call."""
        stopping = Stopping(energy, accuracy, x0, self.certified)
        self.prepare(energy, x0.detach())
        return Solve(self, energy, stopping, self.init(energy, x0.detach()), _unfinished(x0.detach()))

    @full_precision()
    def resume(self, energy: Energy, saved: Saved) -> Solve[S]:
        """A solve that goes on where another one was saved.

        Parameters
        ----------
        energy : Energy
            The same as before, of the whole batch.
        saved : mapping
            What :meth:`Solve.state_dict` returned.

        Returns
        -------
        Solve
            Its ``run()`` returns what that of the other one would have returned, bit for bit.

        Raises
        ------
        ValueError
            ``saved`` is no state of such a solver, or not one of this energy.
        """
        try:
            state = self.state(**{name: tensor.clone() for name, tensor in saved["state"].items()})
            collected, iteration = Collector.of(saved["collected"]), int(saved["progress"]["iteration"])
            x, accuracy = collected.ended["x"], saved["stopping"]["accuracy"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is not what a solve of {type(self).__name__} saved: {error}") from error
        energy.check_start(x)
        self.prepare(energy, x)
        part = energy.select(collected.active)
        stopping = Stopping(part, accuracy, state.x, self.certified)
        stopping.load(saved["stopping"])
        return Solve(self, part, stopping, state, collected, iteration)


class Loop(ABC, Generic[R]):
    """A solve on its way to a result, which can be saved in a callback: steps, and images that leave as they may stop.

    Attributes
    ----------
    iteration : int
        Of the callbacks.
    collected : Collector
        The images that have left, and which have not.
    """

    iteration: int
    collected: Collector

    @full_precision()
    def run(self, callback: Callback | None = None) -> R:
        """Go on until every image may stop.

        Parameters
        ----------
        callback : callable, optional
            As in :class:`Solver`; a solve that goes on tells the iteration that it was saved at once more.

        Returns
        -------
        R
            That of the whole batch.
        """
        while self.collected.active.numel():
            self._finish(ends(callback, self.snapshot))
            if self.collected.active.numel():
                self._advance()
        return self._result()

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Everything that goes on, as plain tensors by part and name: copies, that ``torch.save`` takes."""
        parts = {"progress": {"iteration": torch.tensor(self.iteration)}, "collected": self.collected.tensors()}
        parts |= {name: part.tensors() for name, part in self._parts().items()}
        return {name: {key: tensor.clone() for key, tensor in part.items()} for name, part in parts.items()}

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """Where the whole batch is; tensors are not changed any more."""

    @abstractmethod
    def _parts(self) -> dict[str, PerImage]:
        """What else there is to save, by name."""

    @abstractmethod
    def _advance(self) -> None:
        """Make one step, and count it."""

    @abstractmethod
    def _finish(self, stopped: bool) -> None:
        """Take the images out that may stop; ``stopped``: all of them."""

    @abstractmethod
    def _result(self) -> R:
        """Of the whole batch."""


@dataclass(eq=False)
class Solve(Loop[Solution], Generic[S]):
    """One solve of energies, which :meth:`SteppedSolver.resume` goes on with.

    ``energy``, ``stopping`` and ``state`` are those of the images in ``collected.active``.
    """

    solver: SteppedSolver[S]
    energy: Energy
    stopping: Stopping
    state: S
    collected: Collector
    iteration: int = 0

    def snapshot(self) -> Snapshot:
        """Where the whole batch is; tensors are not changed any more."""
        state = self.state
        found = self.stopping.certificate(self.energy, state.x, self.solver.norms(state))
        spent = state.evaluations.clone()  # steps count in place
        whole = self.collected.merged(x=state.x, evaluations=spent, error=found.error)
        return Snapshot(self.iteration, **whole)

    def _parts(self) -> dict[str, PerImage]:
        return {"state": self.state, "stopping": self.stopping}

    def _advance(self) -> None:
        self.solver.step(self.energy, self.state)
        self.iteration += 1

    def _finish(self, stopped: bool) -> None:
        state, norms = self.state, self.solver.norms(self.state)
        most, stalled = 0 if stopped else self.solver.max_iterations, self.solver.stalled(state)
        status = self.stopping.status(self.energy, state.x, norms, stalled, state.evaluations, most)
        if status is None or not (done := status != RUNNING).any():
            return
        found = self.stopping.certificate(self.energy, state.x, norms)._asdict()
        reached = {"x": state.x, "gradient": state.grad, "evaluations": state.evaluations, "status": status}
        rest = self.collected.finish(done, **reached, **found)
        self.energy = self.energy.select(rest)
        self.stopping.select(rest)
        state.select(rest)

    def _result(self) -> Solution:
        return Solution(**self.collected.ended)


def _unfinished(x0: Tensor) -> Collector:
    """Of images that have not been solved."""
    count = torch.zeros(len(x0), dtype=torch.int64, device=x0.device)
    unknown = torch.full_like(count, math.inf, dtype=torch.float64)
    ended = {
        "x": x0.clone(),
        "gradient": torch.full_like(x0, math.nan),
        "error": unknown.clone(),
        "rounding": unknown,
        "grade": torch.full_like(count, int(Grade.ESTIMATED)),
        "status": torch.full_like(count, RUNNING),
        "evaluations": count,
    }
    return Collector(ended)
