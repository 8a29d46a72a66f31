"""L-BFGS on inexact hypergradients of all images, without a line search: a proposer."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

from recon.bilevel.evaluation import Accuracy
from recon.bilevel.methods.direction import QuasiNewton
from recon.bilevel.methods.method import DivergedError, UpperLevelMethod, require_finite
from recon.bilevel.methods.record import Progress, Record
from recon.bilevel.objective import InexactObjective
from recon.errors import at_least, positive

#: ||theta+ - theta|| is at most this times that of the last step
GROWTH = 4.0


class InexactLBFGS(UpperLevelMethod[InexactObjective]):
    """theta+ = theta - H z by limited-memory BFGS, z the hypergradient of all images at a constant accuracy.

    Nothing certifies descent, and no step is tried twice: alone it may diverge. It is meant for the proposer of
    :class:`CertifiedProposals`, where points that are no better are put back.

    Parameters
    ----------
    params : iterable of tensors
        What is learned.
    lr : float
        ||theta+ - theta|| of the first step; later ones are at most 4 times as long as the one before.
    memory : int
        Pairs that are kept.
    solution_accuracy, adjoint_accuracy : float
        epsilon and delta.

    Raises
    ------
    ValueError
        An option is out of range, or the parameters are in several groups.
    DivergedError
        (a ValueError, in ``step``) The energy or the hypergradient is not finite.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.1,
        memory: int = 20,
        solution_accuracy: float = 0.1,
        adjoint_accuracy: float = 0.1,
    ) -> None:
        numbers = {"lr": lr, "solution_accuracy": solution_accuracy, "adjoint_accuracy": adjoint_accuracy}
        positive(**numbers)
        at_least(1, memory=memory)
        super().__init__(params, **numbers, memory=memory)

    @property
    def _accuracy(self) -> Accuracy:
        return Accuracy(self.options["solution_accuracy"], self.options["adjoint_accuracy"])

    def _begin(self, objective: InexactObjective) -> None:
        at = objective.evaluate(self._accuracy, None, goal_oriented=False)
        gradient = objective.hypergradient(at, self._accuracy)
        require_finite(gradient)
        self.progress.update(direction=None, longest=math.inf)
        self._keep(gradient)

    def _iterate(self, objective: InexactObjective) -> Record:
        """One step."""
        state, theta, z = self.progress, self._theta(), self.progress["z"]
        direction = QuasiNewton(z, self.options["memory"], state["direction"])
        d = direction.apply(z)
        step = min(direction.first_step(self.options["lr"]), state["longest"] / max(float(d.norm()), 1e-300))
        move = self._set(theta - step * d) - theta
        new = objective.evaluate(self._accuracy, self.evaluation, goal_oriented=False)
        if not new.finite:
            raise DivergedError("the energy is NaN or infinite; start from other parameters, or with a smaller lr")
        gradient = objective.hypergradient(new, self._accuracy)
        require_finite(gradient)
        direction.learn(move, gradient.z - z)
        state.update(direction=direction.state_dict(), longest=GROWTH * float(move.norm()))
        self._keep(gradient)
        return self._record(objective, Progress.ACCEPTED, step)

    def hesitate(self) -> None:
        """Begin anew, with half of the first step."""
        super().hesitate()
        self.progress.update(direction=None, longest=math.inf)
