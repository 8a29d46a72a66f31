"""Gradient descent with accuracies that are fixed a priori: HOAG, and a constant accuracy."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from recon.bilevel.evaluation import Accuracy, Evaluation
from recon.bilevel.hypergradient import Hypergradient
from recon.bilevel.methods.method import DivergedError, UpperLevelMethod, require_finite
from recon.bilevel.methods.record import Progress, Record
from recon.bilevel.objective import InexactObjective
from recon.errors import fraction, one_of, positive

SCHEDULES = ("quadratic", "cubic", "exponential", "constant")
#: C of the adaptive rule, growth of the step, and the relative increase of the loss after which a step is put back
SLACK, SHORTER, INCREASE = 0.25, 0.95, 0.2


class HOAG(UpperLevelMethod[InexactObjective]):
    r"""Hyperparameter optimization with approximate gradient (Pedregosa, ICML 2016).

    ``step(objective=...)`` makes one gradient step theta+ = theta - z / L on the whole training set. The lower-level
    and adjoint solutions of the k-th point, k = 1, 2, ..., are as accurate as was decided before the run,

        epsilon_k = epsilon_0 / k^2 (quadratic),  epsilon_0 / k^3 (cubic),  epsilon_0 decay^(k-1) (exponential),

    delta_k alike. With the adaptive rule, g and g+ the inexact losses, D = ||z|| / L and C = 0.25:

    * g+ <= g + C epsilon+ + (C + 1) epsilon D - L D^2: accepted, and L becomes 0.95 L;
    * g+ >= 1.2 g (in general g + 0.2 \|g\|), or an energy that cannot be solved: theta is put back, L becomes 2 L, and
      all later epsilon are halved;
    * else accepted.

    Nothing certifies descent, unlike in :class:`MAID`; lower and upper of the ``Record`` are the first-order
    certificates at the accuracy that was asked for. A step that was put back is an iteration with the progress
    ``REJECTED``.

    Parameters
    ----------
    params : iterable of tensors
        What is learned.
    schedule : {"quadratic", "cubic", "exponential", "constant"}
        How the accuracies fall.
    lr : float
        The first step, 1 / L.
    solution_accuracy, adjoint_accuracy : float
        epsilon_0 and delta_0.
    decay : float
        Of the exponential schedule.
    adaptive : bool
        Whether L follows the rule, or stays.

    Raises
    ------
    ValueError
        An option is out of range, or the parameters are in several groups.
    DivergedError
        (a ValueError, in ``step``) The hypergradient, or without the adaptive rule the energy, is not finite.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        schedule: str = "quadratic",
        lr: float = 1e-2,
        solution_accuracy: float = 1e-1,
        adjoint_accuracy: float = 1e-1,
        decay: float = 0.9,
        adaptive: bool = True,
    ) -> None:
        one_of(SCHEDULES, schedule=schedule)
        numbers = {"lr": lr, "solution_accuracy": solution_accuracy, "adjoint_accuracy": adjoint_accuracy}
        positive(**numbers)
        fraction(decay=decay)
        super().__init__(params, schedule=schedule, **numbers, decay=decay, adaptive=adaptive)

    def _begin(self, objective: InexactObjective) -> None:
        self.progress.update(point=1, factor=1.0)
        accuracy = self._accuracy()
        self._keep(objective.hypergradient(objective.evaluate(accuracy, None, goal_oriented=False), accuracy))

    def _iterate(self, objective: InexactObjective) -> Record:
        """One gradient step."""
        options, state = self.options, self.progress
        theta, current, z, lr = self._theta(), self.evaluation, state["z"], options["lr"]
        length, before = lr * float(z.norm()), self._accuracy().solution
        state["point"] += 1
        accuracy = self._accuracy()
        following = lr
        self._set(theta - lr * z)
        new = self._try_step(objective, accuracy, current)
        accepted = new is not None
        if new is not None and options["adaptive"]:
            bound = SLACK * accuracy.solution + before * (SLACK + 1) * length - length**2 / lr
            following = lr / SHORTER if new.value <= current.value + bound else lr
            accepted = not new.value >= current.value + INCREASE * abs(current.value)
        if new is not None and accepted:
            self._keep(objective.hypergradient(new, accuracy))
        else:
            self._set(theta)
            following = lr / 2
            state.update(point=state["point"] - 1, factor=0.5 * state["factor"])
        options["lr"] = following
        return self._record(objective, Progress.ACCEPTED if accepted else Progress.REJECTED, lr)

    def _try_step(self, objective: InexactObjective, accuracy: Accuracy, current: Evaluation) -> Evaluation | None:
        """The objective at the new point, or None where there is none and the step can be put back."""
        if self.options["adaptive"]:
            new = self._try(objective, accuracy, current)
            return new if new is not None and new.finite else None
        new = objective.evaluate(accuracy, current, goal_oriented=False)
        if not new.finite:
            raise DivergedError("the energy is NaN or infinite; start from other parameters, or with a smaller lr")
        return new

    def _accuracy(self) -> Accuracy:
        """epsilon_k and delta_k of the point at hand."""
        options, k = self.options, self.progress["point"]
        schedules = {"quadratic": k**-2.0, "cubic": k**-3.0, "exponential": options["decay"] ** (k - 1)}
        # positive however far the schedule has fallen; solvers end at their floor long before
        factor = max(self.progress["factor"] * schedules.get(options["schedule"], 1.0), 1e-200)
        return Accuracy(options["solution_accuracy"], options["adjoint_accuracy"]).scaled(factor)

    def _keep(self, gradient: Hypergradient) -> None:
        require_finite(gradient)
        super()._keep(gradient)


class FixedAccuracy(HOAG):
    """Gradient descent at one accuracy: the best constant is the honest opponent of adaptive ones, a tiny one "exact".

    Parameters
    ----------
    params : iterable of tensors
        What is learned.
    lr : float
        1 / L, of every step unless ``adaptive``.
    solution_accuracy, adjoint_accuracy, adaptive
        As in :class:`HOAG`.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-2,
        solution_accuracy: float = 1e-1,
        adjoint_accuracy: float = 1e-1,
        adaptive: bool = True,
    ) -> None:
        super().__init__(params, "constant", lr, solution_accuracy, adjoint_accuracy, adaptive=adaptive)
