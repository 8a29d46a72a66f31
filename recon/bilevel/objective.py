"""The learning problem: f(theta) = mean of g(x^_i(theta), x_i*) over the training images, with certified intervals."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor

from recon.bilevel.certificate import Interval, first_order, goal_oriented, middle_term
from recon.bilevel.evaluation import Accuracy, Errors, Evaluation
from recon.bilevel.hypergradient import (
    Hypergradient,
    error_bound,
    gradient_descent,
    truncated_adjoint,
    unrolled_gradient,
)
from recon.bilevel.loss import SquaredError, UpperLoss, check_finite
from recon.lower_level import (
    FISTA,
    LBFGS,
    DataFidelity,
    Energy,
    ProjectedLBFGS,
    Regularizer,
    Solver,
    SquaredL2,
    Status,
    check_contract,
    first_guess,
    over_image,
    per_image_norm,
)
from recon.lower_level.grade import Grade, grade_bounds, proved_part, worst
from recon.lower_level.precision import full_precision
from recon.operators import Identity, LinearOperator

#: an accuracy that no solver reaches
TINY = 1e-300


def check_steps(adjoint_steps: int | None, unrolled_steps: int | None) -> None:
    """Raise ``ValueError`` for numbers of steps that :class:`BilevelObjective` does not take."""
    for name, steps in (("adjoint_steps", adjoint_steps), ("unrolled_steps", unrolled_steps)):
        if steps is not None and steps < 1:
            raise ValueError(f"{name} is {steps}, but must be at least 1, or None to solve")
    if adjoint_steps is not None and unrolled_steps is not None:
        raise ValueError("adjoint_steps and unrolled_steps exclude each other: leave one of them out")


class BilevelObjective:
    """f(theta) = (1/N) sum_i g(x^_i(theta), x_i*), x^_i = argmin of the energy of image i.

    Parameters
    ----------
    regularizer: R_theta; its trainable parameters are theta.
    target: true images x*, ``(N, channel, height, width)``.
    y: data, ``(N, *operator.range_shape)``.
    operator, fidelity, mu: of the energies, see :class:`recon.lower_level.Energy`.
    loss: g. solver: of the lower level.
    chunk_size: images solved together; memory grows with it, not with N (all by default).
    max_adjoint_iterations: limit for conjugate gradients.
    adjoint_steps: K, to differentiate K steps of gradient descent at the minimizer instead of solving the adjoint
        equations, see :func:`recon.bilevel.hypergradient.truncated_adjoint`; 1 is the one-step or Jacobian-free
        gradient. Cheap and biased: adjoint residuals are unknown, and certificates of first order.
    unrolled_steps: K, to take K steps of gradient descent from the first guess for the minimizer, whatever accuracy is
        asked for, and differentiate through them, see :func:`recon.bilevel.hypergradient.unrolled_gradient`. The
        gradient is that of the mean of g(x_K), exact wherever the step does not jump, and biased for f. Intervals still
        hold the exact f, but no accuracy shortens them: methods that need that (:class:`MAID`) refuse.

    ``evaluations`` counts gradients and Hessian-vector products per image, mean over the images, trials included.

    Raises
    ------
    ValueError: what would fail later: images or data that do not fit each other or the operator, no trainable
        parameters, a solver with constraints (sections 3 and 4 of the mathematics hold for minimizers without), or an
        operator whose adjoint is not exact (the adjoint equations have no symmetric matrix then).
    ContractError: (a ValueError) the regularizer is none, see :func:`recon.lower_level.check_contract`.
    """

    adjoint_steps: int | None = None
    unrolled_steps: int | None = None

    def __init__(
        self,
        regularizer: Regularizer,
        target: Tensor,
        y: Tensor,
        operator: LinearOperator | None = None,
        fidelity: DataFidelity | None = None,
        mu: float = 0.0,
        loss: UpperLoss | None = None,
        solver: Solver | None = None,
        chunk_size: int | None = None,
        max_adjoint_iterations: int = 10_000,
        adjoint_steps: int | None = None,
        unrolled_steps: int | None = None,
    ) -> None:
        check_steps(adjoint_steps, unrolled_steps)
        self.regularizer, self.mu = regularizer, mu
        self.adjoint_steps, self.unrolled_steps = adjoint_steps, unrolled_steps
        self.operator = operator if operator is not None else Identity()
        self.fidelity = fidelity if fidelity is not None else SquaredL2()
        self.solver: Solver = solver if solver is not None else LBFGS()
        self._take(target, y, loss, chunk_size, max_adjoint_iterations)
        self._check()

    def _take(
        self, target: Tensor, y: Tensor, loss: UpperLoss | None, chunk_size: int | None, max_adjoint_iterations: int
    ) -> None:
        """What objectives of all kinds have."""
        if len(target) != len(y) or len(y) == 0:
            raise ValueError(f"needs as many true images as data, and at least one; got {len(target)} and {len(y)}")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size is {chunk_size}, but must be at least 1")
        check_finite("true images", target)
        self.target, self.y = target, y
        self.loss = loss if loss is not None else SquaredError()
        self.chunk_size = chunk_size if chunk_size is not None else len(y)
        self.max_adjoint_iterations = max_adjoint_iterations
        self.evaluations = 0.0

    def _check(self) -> None:
        Energy(self.y, self.regularizer, self.operator, self.fidelity, self.mu)  # checks the data
        images = self.y.shape[1:] if isinstance(self.operator, Identity) else self.operator.domain_shape
        if images is not None and tuple(self.target.shape[1:]) != tuple(images):
            raise ValueError(f"the true images have the shape {tuple(self.target.shape)}, not (N, {tuple(images)})")
        if not self.params:
            raise ValueError(f"{type(self.regularizer).__name__} has no trainable parameters: nothing can be learned")
        if isinstance(self.solver, ProjectedLBFGS):
            raise ValueError(
                "ProjectedLBFGS cannot be used in training: minimizers over x >= 0 have no implicit derivative here; "
                "train with LBFGS, and use ProjectedLBFGS to reconstruct"
            )
        if not self.operator.adjoint_exact:
            raise ValueError(
                f"{type(self.operator).__name__} cannot be used in training: its adjoint is not the exact transpose, "
                'so that nothing can be certified, nor the adjoint equations be solved; CT has backend="matrix"'
            )
        check_contract(self.regularizer, self.target, overflow=True)

    @property
    def _solves_adjoint(self) -> bool:
        return self.adjoint_steps is None and self.unrolled_steps is None

    @property
    def params(self) -> list[torch.nn.Parameter]:
        """theta, as the list of tensors that are learned."""
        return self.regularizer.trainable()

    def subset(self, index: Tensor) -> Self:
        """The objective of the images ``index`` alone, with the same parameters and a counter of its own.

        Raises ``ValueError`` if there are none.
        """
        if len(self.y[index]) == 0:
            raise ValueError("a subset needs at least one image")
        part = copy.copy(self)
        part.target, part.y, part.evaluations = self.target[index], self.y[index], 0.0
        if hasattr(self, "fidelity"):  # saddle-point models bring their own data term
            part.fidelity = self.fidelity.select(index, self.y)
        return part

    def start(self) -> Evaluation:
        """Nothing known yet: the first guess of x, and w = 0."""
        x = torch.cat([self._first_guess(c) for c in self._chunks()])
        inf = torch.full((len(self.y),), math.inf, dtype=torch.float64, device=self.y.device)
        running = torch.full((len(self.y),), int(Status.ITERATION_LIMIT), device=self.y.device)
        a, b, c, d = (inf.clone() for _ in range(4))
        w, weight = torch.zeros_like(x), torch.ones_like(inf)
        return Evaluation(x, w, a, b, c, d, weight, running, math.inf, -math.inf, math.inf, inf)

    def _first_guess(self, c: slice) -> Tensor:
        """A multiple of A^T y, see :func:`recon.lower_level.solvers.first_guess`."""
        return first_guess(self.operator, self.y[c])

    @full_precision()
    def evaluate(self, accuracy: Accuracy, start: Evaluation | None = None, goal_oriented: bool = True) -> Evaluation:
        """Solve every image to ``accuracy`` at the current parameters, warm-started at ``start``.

        ``goal_oriented``: also solve the adjoint systems, for the second-order certificate. ``start`` may belong to
        other parameters and is not changed.
        """
        start = start if start is not None else self.start()
        parts = [self._evaluate_chunk(c, accuracy, start, goal_oriented) for c in self._chunks()]
        return self._gather(parts)

    def refine(self, evaluation: Evaluation, accuracy: Accuracy, goal_oriented: bool = True) -> Evaluation:
        """``evaluation``, which belongs to the current parameters, improved to ``accuracy`` where it is not yet."""
        goal = accuracy if goal_oriented else Accuracy(accuracy.solution, math.inf)
        if evaluation.satisfies(goal):
            return evaluation
        return self.evaluate(accuracy, evaluation, goal_oriented)

    @full_precision()
    def hypergradient(self, evaluation: Evaluation, accuracy: Accuracy, bound: bool = False) -> Hypergradient:
        """z = -(1/N) sum_i g_i' J_i^T w_i with ||B w_i - grad q_i|| <= ``accuracy.adjoint`` and g_i' = dg/dq.

        At the parameters of ``evaluation``, which in the result has the improved adjoints. ``bound``: also compute
        omega >= ||z - grad f||.
        """
        if self.unrolled_steps is not None:
            return self._unrolled(evaluation, self.unrolled_steps)
        total: list[Tensor] | None = None
        adjoints, errors = [], Errors()
        for c in self._chunks():
            energy, x = self._energy(c), evaluation.x[c]
            w, residual, rounding = evaluation.w[c], evaluation.adjoint_residual[c], evaluation.adjoint_rounding[c]
            if not bool((residual <= accuracy.adjoint).all()):
                b = self.loss.grad(x, self.target[c])
                if self.adjoint_steps is None:
                    solved = energy.solve_adjoint(x, b, w, accuracy.adjoint, self.max_adjoint_iterations)
                else:
                    solved = truncated_adjoint(energy, x, b, self.adjoint_steps)
                self._count(solved.evaluations)
                w, residual, rounding = solved.w, solved.residual_norm, solved.rounding
            weight = evaluation.weight[c]
            grads = energy.parameter_vjp(x, over_image(weight, w) * w)
            total = [
                -g.double() if total is None else t - g.double() for g, t in zip(grads, total or grads, strict=True)
            ]
            if bound:
                found = error_bound(
                    energy,
                    self.loss.smoothness,
                    x,
                    w,
                    evaluation.error[c],
                    residual,
                    evaluation.error_rounding[c],
                    rounding,
                )
                errors.add(found, weight, self._weight_error(c, evaluation), energy.working_dtype(x.dtype))
            adjoints.append((w, residual, rounding))
        assert total is not None
        z = torch.cat([g.flatten() for g in total]) / len(self.y)
        return errors.hypergradient(z, evaluation.with_adjoints(adjoints))

    def _unrolled(self, evaluation: Evaluation, steps: int) -> Hypergradient:
        """The gradient of the mean of g(x_K), through K = ``steps`` steps that are made again."""
        z = torch.zeros(sum(p.numel() for p in self.params), dtype=torch.float64, device=self.y.device)
        for c in self._chunks():
            energy, target = self._energy(c), self.target[c]
            points = gradient_descent(energy, self._first_guess(c), steps)
            b = over_image(evaluation.weight[c], target) * self.loss.grad(points[-1], target)
            grads = unrolled_gradient(energy, points, b)
            self._count(torch.full((len(target),), 2 * steps - 1))
            z += torch.cat([g.flatten() for g in grads]) / len(self.y)
        return Hypergradient(z, math.inf, math.inf, Grade.ESTIMATED, evaluation)

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

    def state_dict(self) -> dict[str, Any]:
        """The counter; data and parameters are saved by those who own them."""
        return {"evaluations": self.evaluations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.evaluations = float(state["evaluations"])

    # -----------------------------------------------------------------------------------------------------------------

    def _chunks(self) -> Iterator[slice]:
        for i in range(0, len(self.y), self.chunk_size):
            yield slice(i, min(i + self.chunk_size, len(self.y)))

    def _energy(self, c: slice) -> Energy:
        fidelity = self.fidelity.select(c, self.y)
        return Energy(self.y[c], self.regularizer, self.operator, fidelity, self.mu, checked=True)

    def _modulus(self) -> float:
        """mu of the lower level, for those who need a certificate."""
        return self._energy(slice(0, 1)).require_strong_convexity()

    def _count(self, evaluations: Tensor) -> None:
        self.evaluations += float(evaluations.sum()) / len(self.y)

    @torch.no_grad()
    def _evaluate_chunk(self, c: slice, accuracy: Accuracy, start: Evaluation, second: bool) -> dict[str, Tensor]:
        energy = self._energy(c)
        if self.unrolled_steps is None:
            solution = self.solver(energy, start.x[c], accuracy.solution)
        else:
            points = gradient_descent(energy, self._first_guess(c), self.unrolled_steps)
            solution = FISTA(max_iterations=1)(energy, points[-1], TINY)  # only the certificate there
            self._count(torch.full((len(points[0]),), self.unrolled_steps))
        self._count(solution.evaluations)
        x, w, target = solution.x, start.w[c], self.target[c]
        slope = self.loss.grad(x, target)
        loss, size = self.loss.value(x, target), per_image_norm(slope)
        interval = first_order(loss, size, solution.error, self.loss.smoothness, solution.rounding)
        unknown = torch.full_like(size, math.inf)
        residual, adjoint_rounding, sensitivity = unknown, unknown, unknown
        if second and self._solves_adjoint and self.loss.quadratic and self.fidelity.quadratic:
            solved = energy.solve_adjoint(x, slope, w, accuracy.adjoint, self.max_adjoint_iterations)
            self._count(solved.evaluations)
            w, residual, adjoint_rounding = solved.w, solved.residual_norm, solved.rounding
            variation = self.regularizer.hessian_variation(w)
            if variation is not None:
                l_g, eps, r, modelled = self.loss.smoothness, solution.error, solution.gradient, solution.rounding
                interval = interval.better(
                    goal_oriented(energy, variation, loss, l_g, w, r, residual, eps, x, modelled, adjoint_rounding)
                )
                mu, one = energy.strong_convexity, torch.ones_like(size)
                middle = middle_term(variation, mu * one, energy.data_convexity, one)
                sensitivity = 2 * (mu + middle) + 0.5 * l_g
        return {
            "x": x,
            "w": w,
            "error": solution.error,
            "error_rounding": solution.rounding,
            "adjoint_residual": residual,
            "adjoint_rounding": adjoint_rounding,
            "slope": size,
            "sensitivity": sensitivity,
            "weight": self.loss.outer_slope(loss, target),
            "status": solution.status,
            **self._measured(
                self._mapped(interval, target), solution.grade, energy.working_dtype(x.dtype), energy.basis
            ),
        }

    @staticmethod
    def _measured(interval: Interval, grade: Tensor, dtype: torch.dtype, basis: Grade) -> dict[str, Tensor]:
        """The interval by the names of its parts, and its grade, at best that of the solution."""
        length = torch.maximum(interval.below, interval.above)
        own = grade_bounds(length, interval.rounding, dtype, basis)
        return vars(interval) | {"grade": torch.maximum(grade, own)}

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

    def _gather(self, parts: list[dict[str, Tensor]]) -> Evaluation:
        whole = {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
        mean, below, above, rounding = (float(whole.pop(n).mean()) for n in ("value", "below", "above", "rounding"))
        grade = worst(whole.pop("grade"))
        return Evaluation(
            **whole, value=mean, lower=mean - below, upper=mean + above, rounding=rounding, grade=int(grade)
        )
