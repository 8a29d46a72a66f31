"""The learning problem with minimizers of energies below, and their gradients by implicit differentiation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from recon.bilevel.certificate import goal_oriented, middle_term
from recon.bilevel.evaluation import Accuracy, Adjoint, Chunk, Evaluation
from recon.bilevel.hypergradient import (
    Errors,
    Hypergradient,
    error_bound,
    gradient_descent,
    truncated_adjoint,
    unrolled_gradient,
)
from recon.bilevel.loss import UpperLoss
from recon.bilevel.objective import InexactObjective
from recon.errors import at_least
from recon.lower_level import (
    FISTA,
    LBFGS,
    DataFidelity,
    Energy,
    ProjectedLBFGS,
    Regularizer,
    Solution,
    Solver,
    SquaredL2,
    check_contract,
    first_guess,
    over_image,
)
from recon.lower_level.grade import Grade
from recon.lower_level.precision import full_precision
from recon.operators import Identity, LinearOperator

#: an accuracy that no solver reaches
TINY = 1e-300


@dataclass(frozen=True)
class Differentiation:
    """How minimizers are differentiated: by adjoint equations unless it says otherwise.

    Parameters
    ----------
    adjoint_steps : int, optional
        K, to differentiate K steps of gradient descent at the minimizer instead of solving the adjoint equations, see
        :func:`recon.bilevel.hypergradient.truncated_adjoint`; 1 is the one-step or Jacobian-free gradient. Cheap and
        biased: adjoint residuals are unknown, and certificates of first order.
    unrolled_steps : int, optional
        K, to take K steps of gradient descent from the first guess for the minimizer, whatever accuracy is asked for,
        and differentiate through them, see :func:`recon.bilevel.hypergradient.unrolled_gradient`. The gradient is that
        of the mean of g(x_K), exact wherever the step does not jump, and biased for f. Intervals still hold the exact
        f, but no accuracy shortens them: methods that need that (:class:`recon.bilevel.MAID`) refuse.
    max_adjoint_iterations : int
        Limit for conjugate gradients on the adjoint equations.

    Raises
    ------
    ValueError
        A number of steps is less than 1, or both are given.
    """

    adjoint_steps: int | None = None
    unrolled_steps: int | None = None
    max_adjoint_iterations: int = 10_000

    def __post_init__(self) -> None:
        at_least(1, adjoint_steps=self.adjoint_steps, unrolled_steps=self.unrolled_steps)
        if self.adjoint_steps is not None and self.unrolled_steps is not None:
            raise ValueError("adjoint_steps and unrolled_steps exclude each other: leave one of them out")


#: by the adjoint equations
IMPLICIT = Differentiation()


class BilevelObjective(InexactObjective):
    """f(theta) = (1/N) sum_i g(x^_i(theta), x_i*), x^_i = argmin of the energy of image i.

    Parameters
    ----------
    regularizer : Regularizer
        R_theta; its trainable parameters are theta.
    target : tensor
        True images x*, ``(N, channel, height, width)``.
    y : tensor
        Data, ``(N, *operator.range_shape)``.
    operator : LinearOperator, optional
        A of the energies, see :class:`recon.lower_level.Energy`; the identity by default.
    fidelity : DataFidelity, optional
        D of the energies; 1/2||Ax - y||^2 by default.
    mu : float
        Of the energies.
    loss : UpperLoss, optional
        g, or 1/2||x - x*||^2.
    solver : Solver, optional
        Of the lower level; L-BFGS by default.
    chunk_size : int, optional
        Images solved together; memory grows with it, not with N. All by default.
    differentiation : Differentiation
        How minimizers are differentiated.

    Raises
    ------
    ValueError
        What would fail later: images or data that do not fit each other or the operator, no trainable parameters, a
        solver with constraints (sections 3 and 4 of the mathematics hold for minimizers without), or an operator whose
        adjoint is not exact (the adjoint equations have no symmetric matrix then).
    ContractError
        (A ValueError) the regularizer is none, see :func:`recon.lower_level.check_contract`.
    """

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
        differentiation: Differentiation = IMPLICIT,
    ) -> None:
        super().__init__(target, y, loss, chunk_size, differentiation.max_adjoint_iterations)
        self.regularizer, self.mu = regularizer, mu
        self.adjoint_steps, self.unrolled_steps = differentiation.adjoint_steps, differentiation.unrolled_steps
        self.operator = operator if operator is not None else Identity()
        self.fidelity = fidelity if fidelity is not None else SquaredL2()
        self.solver: Solver = solver if solver is not None else LBFGS()
        self._theta: list[Tensor] = []
        self._energies: dict[tuple[int, int], Energy] = {}
        self._check()

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
        check_contract(self.regularizer.select(slice(0, 1)), self.target, overflow=True)

    @property
    def params(self) -> list[nn.Parameter]:
        return self.regularizer.trainable()

    def subset(self, index: Tensor) -> Self:
        part = super().subset(index)
        part.fidelity, part.regularizer = self.fidelity.select(index, self.y), self.regularizer.select(index)
        part._theta, part._energies = [], {}
        return part

    @full_precision()
    @torch.no_grad()
    def hypergradient(self, evaluation: Evaluation, accuracy: Accuracy, bound: bool = False) -> Hypergradient:
        """z = -(1/N) sum_i g_i' J_i^T w_i with ||B w_i - grad q_i|| <= ``accuracy.adjoint`` and g_i' = dg/dq.

        Parameters and result are those of :class:`InexactObjective`. With ``unrolled_steps``, the gradient of the mean
        of g(x_K), through K steps that are made again, and no bound.
        """
        if self.unrolled_steps is None:
            return super().hypergradient(evaluation, accuracy, bound)
        z = torch.zeros(sum(p.numel() for p in self.params), dtype=torch.float64, device=self.y.device)
        for c in self._chunks():
            energy, target = self._energy(c), self.target[c]
            points = gradient_descent(energy, self._first_guess(c), self.unrolled_steps)
            b = over_image(evaluation.weight[c], target) * self.loss.grad(points[-1], target)
            grads = unrolled_gradient(energy, points, b)
            self._count(torch.full((len(target),), 2 * self.unrolled_steps - 1))
            z += torch.cat([g.flatten() for g in grads]) / len(self.y)
        return Hypergradient(z, math.inf, math.inf, Grade.ESTIMATED, evaluation)

    # -----------------------------------------------------------------------------------------------------------------

    def _first_guess(self, c: slice) -> Tensor:
        """A multiple of A^T y, see :func:`recon.lower_level.solvers.first_guess`."""
        return first_guess(self.operator, self.y[c])

    def _energy(self, c: slice) -> Energy:
        """That of the images ``c`` at the current parameters, one for evaluation and hypergradient.

        Its constants and its preconditioner are those of the parameters, and take time.
        """
        if not self.regularizer.is_at(self._theta):
            self._theta, self._energies = [p.detach().clone() for p in self.regularizer.parameters()], {}
        found = self._energies.get((c.start, c.stop))
        if found is None:
            fidelity = self.fidelity.select(c, self.y)
            own = self.regularizer.select(c)
            found = Energy(self.y[c], own, self.operator, fidelity, self.mu, checked=True)
            self._energies[c.start, c.stop] = found
        return found

    def _modulus(self) -> float:
        """mu of the lower level, for those who need a certificate."""
        return self._energy(slice(0, 1)).require_strong_convexity()

    def _solve(self, energy: Energy, c: slice, x: Tensor, accuracy: float | Tensor) -> Solution:
        """The minimizers, from x, or what stands for them."""
        if self.unrolled_steps is None:
            solution = self.solver(energy, x, accuracy)
        else:
            points = gradient_descent(energy, self._first_guess(c), self.unrolled_steps)
            solution = FISTA(max_iterations=1)(energy, points[-1], TINY)  # only the certificate there
            self._count(torch.full((len(points[0]),), self.unrolled_steps))
        self._count(solution.evaluations)
        return solution

    def _solve_adjoint(self, energy: Energy, c: slice, x: Tensor, w: Tensor, accuracy: float | Tensor) -> Adjoint:
        """B w = grad q at x, from w."""
        b = self.loss.grad(x, self.target[c])
        if self.adjoint_steps is None:
            solved = energy.solve_adjoint(x, b, w, accuracy, self.max_adjoint_iterations)
        else:
            solved = truncated_adjoint(energy, x, b, self.adjoint_steps)
        self._count(solved.evaluations)
        return Adjoint(solved.w, solved.residual_norm, solved.rounding)

    def _evaluate_chunk(self, c: slice, accuracy: Accuracy, start: Evaluation, second: bool) -> Chunk:
        energy = self._energy(c)
        solution = self._solve(energy, c, start.x[c], accuracy.solution)
        found = self._by_first_order(c, solution, solution.x, solution.x, start.adjoint.w[c])
        solves = self.adjoint_steps is None and self.unrolled_steps is None
        if second and solves and self.loss.quadratic and self.fidelity.quadratic:
            adjoint = self._solve_adjoint(energy, c, solution.x, start.adjoint.w[c], accuracy.adjoint)
            found = self._by_second_order(found, energy, solution, adjoint)
        return self._of_loss(found, c, energy)

    def _by_second_order(self, found: Chunk, energy: Energy, at: Solution, adjoint: Adjoint) -> Chunk:
        """The same with an adjoint, and with the goal-oriented interval where it is shorter."""
        w, residual, rounding = adjoint
        found = replace(found, adjoint=adjoint)
        variation = energy.regularizer.hessian_variation(w)
        if variation is None:
            return found
        l_g, value = self.loss.smoothness, found.interval.value  # q(x), as long as the interval is of first order
        other = goal_oriented(
            energy, variation, value, l_g, w, at.gradient, residual, at.error, at.x, at.rounding, rounding
        )
        mu, one = energy.strong_convexity, torch.ones_like(residual)
        middle = middle_term(variation, mu * one, energy.data_convexity, one)
        return replace(found, interval=found.interval.better(other), sensitivity=2 * (mu + middle) + 0.5 * l_g)

    def _differentiate(
        self, c: slice, evaluation: Evaluation, accuracy: Accuracy, errors: Errors | None
    ) -> tuple[Sequence[Tensor], Adjoint]:
        energy, x, error = self._energy(c), evaluation.x[c], evaluation.error[c]
        adjoint = evaluation.adjoint.select(c)
        if not adjoint.satisfies(accuracy):
            adjoint = self._solve_adjoint(energy, c, x, adjoint.w, accuracy.adjoint)
        w, residual, rounding = adjoint
        weight = evaluation.weight[c]
        gradients = [-g for g in energy.parameter_vjp(x, over_image(weight, w) * w)]
        if errors is not None:
            of_x = evaluation.error_rounding[c]
            found = error_bound(energy, self.loss.smoothness, x, w, error, residual, of_x, rounding)
            errors.add(found, weight, self._weight_error(c, evaluation), energy.working_dtype(x.dtype))
        return gradients, adjoint
