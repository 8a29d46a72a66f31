"""What learning problems share: training images, parameters, a counter, and intervals of what is minimized."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn

from recon.bilevel.certificate import Interval, first_order
from recon.bilevel.evaluation import Accuracy, Adjoint, CertifiedLoss, Chunk, Evaluation
from recon.bilevel.hypergradient import Errors, Hypergradient
from recon.bilevel.loss import SquaredError, UpperLoss, check_finite
from recon.errors import at_least
from recon.lower_level import Energy, Solution, Status, per_image_norm
from recon.lower_level.grade import grade_bounds, proved_part
from recon.lower_level.precision import full_precision
from recon.lower_level.saddle.pdhg import SaddleSolution
from recon.lower_level.saddle.problem import SaddlePoint


class Objective(ABC):
    """What is minimized over theta: a function of training images, which counts what it has cost.

    Parameters
    ----------
    target : tensor
        True images x*, ``(N, channel, height, width)``.
    y : tensor
        Data, ``(N, ...)``.

    Attributes
    ----------
    evaluations : float
        Gradients and Hessian-vector products so far, per image, mean over the images, trials included.

    Raises
    ------
    ValueError
        There are no images, or not as many as data; true images hold values that are NaN or infinite.
    """

    def __init__(self, target: Tensor, y: Tensor) -> None:
        if len(target) != len(y) or len(y) == 0:
            raise ValueError(f"needs as many true images as data, and at least one; got {len(target)} and {len(y)}")
        check_finite("true images", target)
        self.target, self.y = target, y
        self.evaluations = 0.0

    @property
    @abstractmethod
    def params(self) -> list[nn.Parameter]:
        """theta, as the list of tensors that are learned."""

    def state_dict(self) -> dict[str, float]:
        """The counter; data and parameters are saved by those who own them."""
        return {"evaluations": self.evaluations}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.evaluations = float(state["evaluations"])

    def _count(self, evaluations: Tensor) -> None:
        self.evaluations += float(evaluations.sum()) / len(self.y)


class InexactObjective(Objective):
    """f(theta) = (1/N) sum_i g(x^_i(theta), x_i*), where x^_i is the solution of a lower-level problem.

    Solutions are as accurate as methods ask for, and values come with intervals that hold the exact f. A kind of
    lower-level problem is a subclass with what is abstract here.

    Parameters
    ----------
    target, y
        As in :class:`Objective`.
    loss : UpperLoss, optional
        g, or 1/2||x - x*||^2.
    chunk_size : int, optional
        Images solved together; memory grows with it, not with N. All by default.
    max_adjoint_iterations : int
        Limit for the solver of the adjoint equations.

    Raises
    ------
    ValueError
        As in :class:`Objective`; ``chunk_size`` is less than 1.
    """

    #: steps of gradient descent that stand for the solutions whatever accuracy is asked for: no accuracy shortens the
    #: intervals then. None where solutions are as accurate as asked for
    unrolled_steps: int | None = None

    def __init__(
        self, target: Tensor, y: Tensor, loss: UpperLoss | None, chunk_size: int | None, max_adjoint_iterations: int
    ) -> None:
        at_least(1, chunk_size=chunk_size)
        super().__init__(target, y)
        self.loss = loss if loss is not None else SquaredError()
        self.chunk_size = chunk_size if chunk_size is not None else len(y)
        self.max_adjoint_iterations = max_adjoint_iterations

    # --- what the lower-level problem says ---------------------------------------------------------------------------

    @abstractmethod
    def _first_guess(self, c: slice) -> Tensor:
        """Where solvers start that know nothing, for the images ``c``."""

    @abstractmethod
    def _modulus(self) -> float:
        """mu: adjoints to mu times the accuracy of the solutions are as good as these. Raises if there is none."""

    @abstractmethod
    def _evaluate_chunk(self, c: slice, accuracy: Accuracy, start: Evaluation, second: bool) -> Chunk:
        """Solve for the images ``c``, and with ``second`` for their adjoints, if certificates can use them."""

    @abstractmethod
    def _differentiate(
        self, c: slice, evaluation: Evaluation, accuracy: Accuracy, errors: Errors | None
    ) -> tuple[Sequence[Tensor], Adjoint]:
        """The sum of the gradients of the images ``c``, tensor by tensor of theta, and the adjoints it is made with.

        Bounds of its error are added to ``errors``.
        """

    # --- what methods call -------------------------------------------------------------------------------------------

    def subset(self, index: Tensor) -> Self:
        """The objective of some of the images, with the same parameters and a counter of its own.

        Parameters
        ----------
        index : tensor
            Of the images.

        Returns
        -------
        Self
            Of the same class.

        Raises
        ------
        ValueError
            There are none.
        """
        if len(self.y[index]) == 0:
            raise ValueError("a subset needs at least one image")
        part = copy.copy(self)
        part.target, part.y, part.evaluations = self.target[index], self.y[index], 0.0
        return part

    def start(self, x: Tensor | None = None, w: Tensor | None = None) -> Evaluation:
        """Nothing known yet: solvers start from x and w; by default from the first guess of x, and w = 0."""
        x = x if x is not None else torch.cat([self._first_guess(c) for c in self._chunks()])
        inf = torch.full((len(self.y),), math.inf, dtype=torch.float64, device=self.y.device)
        running = torch.full((len(self.y),), int(Status.ITERATION_LIMIT), device=self.y.device)
        adjoint = Adjoint(w if w is not None else torch.zeros_like(x), inf, inf)
        unknown = CertifiedLoss(math.inf, -math.inf, math.inf)
        return Evaluation(x, adjoint, inf, inf, inf, inf, torch.ones_like(inf), running, unknown)

    @full_precision()
    @torch.no_grad()
    def evaluate(self, accuracy: Accuracy, start: Evaluation | None = None, goal_oriented: bool = True) -> Evaluation:
        """Solve every image at the current parameters.

        Parameters
        ----------
        accuracy : Accuracy
            Of the solutions and, if there are, of the adjoints.
        start : Evaluation, optional
            Where solvers start. It may belong to other parameters, and is not changed.
        goal_oriented : bool
            Whether the adjoint systems are solved, too, for the certificate of second order.

        Returns
        -------
        Evaluation
            The value, and an interval that holds the exact one.
        """
        start = start if start is not None else self.start()
        return Evaluation.of([self._evaluate_chunk(c, accuracy, start, goal_oriented) for c in self._chunks()])

    def refine(self, evaluation: Evaluation, accuracy: Accuracy, goal_oriented: bool = True) -> Evaluation:
        """``evaluation``, which belongs to the current parameters, improved to ``accuracy`` where it is not yet."""
        goal = accuracy if goal_oriented else Accuracy(accuracy.solution, math.inf)
        if evaluation.satisfies(goal):
            return evaluation
        return self.evaluate(accuracy, evaluation, goal_oriented)

    @full_precision()
    @torch.no_grad()
    def hypergradient(self, evaluation: Evaluation, accuracy: Accuracy, bound: bool = False) -> Hypergradient:
        """The gradient of f, by adjoints that are solved to ``accuracy.adjoint`` where they are not yet.

        Parameters
        ----------
        evaluation : Evaluation
            At the current parameters.
        accuracy : Accuracy
            Of the adjoints.
        bound : bool
            Whether omega >= ||z - grad f|| is computed, too.

        Returns
        -------
        Hypergradient
            z, and ``evaluation`` with the improved adjoints.
        """
        total: Tensor | None = None
        adjoints, errors = [], Errors()
        for c in self._chunks():
            gradients, adjoint = self._differentiate(c, evaluation, accuracy, errors if bound else None)
            part = torch.cat([g.double().flatten() for g in gradients])
            total = part if total is None else total + part
            adjoints.append(adjoint)
        assert total is not None
        return errors.hypergradient(total / len(self.y), replace(evaluation, adjoint=Adjoint.of(adjoints)))

    def accuracy_for(self, evaluation: Evaluation, margin: float, goal_oriented: bool = True) -> Accuracy:
        """The accuracy at which the interval of f is about ``margin`` long, by the constants of ``evaluation``.

        With delta = mu eps, the interval is C eps^2 long if goal-oriented, else 2 s eps + L eps^2 / 2; s, C and L are
        means over the images of slope, sensitivity and smoothness, times dg/dq.
        """
        mu = self._modulus()
        slope = float((evaluation.weight * evaluation.slope).mean())
        smoothness = float(evaluation.weight.mean()) * self.loss.smoothness
        linear = -slope + math.sqrt(slope**2 + 0.5 * margin * smoothness)
        solution = 2 * linear / smoothness if linear > 1e-12 * slope else margin / (2 * slope)
        sensitivity = float((evaluation.weight * evaluation.sensitivity).mean())
        if goal_oriented and math.isfinite(sensitivity):
            solution = max(solution, math.sqrt(margin / sensitivity))
        return Accuracy(solution, mu * solution)

    # --- what subclasses use -----------------------------------------------------------------------------------------

    def _chunks(self) -> Iterator[slice]:
        for i in range(0, len(self.y), self.chunk_size):
            yield slice(i, min(i + self.chunk_size, len(self.y)))

    def _by_first_order(
        self, c: slice, solution: Solution | SaddleSolution, image: Tensor, x: Tensor, w: Tensor
    ) -> Chunk:
        """What is known of the images ``c`` without adjoints; the interval is that of q, see :meth:`_of_loss`.

        image: of the solution; x, w: all of the solution, and the first guess of the adjoint.
        """
        target = self.target[c]
        value, slope = self.loss.value(image, target), per_image_norm(self.loss.grad(image, target))
        unknown = torch.full_like(slope, math.inf)
        return Chunk(
            x=x,
            adjoint=Adjoint(w, unknown, unknown),
            error=solution.error,
            error_rounding=solution.rounding,
            slope=slope,
            sensitivity=unknown,
            weight=self.loss.outer_slope(value, target),
            status=solution.status,
            interval=first_order(value, slope, solution.error, self.loss.smoothness, solution.rounding),
            grade=solution.grade,
        )

    def _of_loss(self, found: Chunk, c: slice, problem: Energy | SaddlePoint) -> Chunk:
        """The same with the interval of g for that of q, and its grade, at best that of the solution."""
        interval = self._mapped(found.interval, self.target[c])
        length = torch.maximum(interval.below, interval.above)
        own = grade_bounds(length, interval.rounding, problem.working_dtype(found.x.dtype), problem.basis)
        return replace(found, interval=interval, grade=torch.maximum(found.grade, own))

    def _mapped(self, interval: Interval, target: Tensor) -> Interval:
        """The interval of g = outer(q), which is increasing and not convex, from that of q; its ends, outwards."""
        interval = interval.outwards()
        if type(self.loss).outer is UpperLoss.outer:
            return interval  # without the rounding of the differences below
        least, most = interval.value - interval.below, interval.value + interval.above
        value, lower, upper = (self.loss.outer(v, target) for v in (interval.value, least, most))
        rounding = self.loss.outer(least + interval.rounding, target) - lower  # more than the same above the value
        return Interval(value, value - lower, upper - value, rounding).outwards()

    def _weight_error(self, c: slice, evaluation: Evaluation) -> Tensor:
        """A bound of the error of dg/dq, which does not increase in q, from the first-order interval of q.

        Two rows: with the model of rounding errors in the error of x, and without.
        """
        target, weight, error = self.target[c], evaluation.weight[c], evaluation.error[c]
        error = torch.stack([error, proved_part(error, evaluation.error_rounding[c])])
        value = self.loss.value(evaluation.x[c], target)
        interval = first_order(value, evaluation.slope[c], error, self.loss.smoothness)
        largest = self.loss.outer_slope(value - interval.below, target)
        return torch.maximum(largest - weight, weight - self.loss.outer_slope(value + interval.above, target))
