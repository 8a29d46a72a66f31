"""The certified solution of one inverse problem with a saddle-point model, as :class:`Solver` is for energies."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from models import LearnedTV
from recon.lower_level import PDHG, SaddleModel, SaddlePoint, Solution
from recon.lower_level.saddle.maps import check_transpose
from recon.operators import Identity
from recon.reconstruction.problem import Problem, require_tried

#: what is certified of saddle-point models and what is not, as every report says it
SADDLE_CERTIFICATE = (
    "||x - x^|| <= error in the Euclidean norm over all pixels, on the scale of the output, for the image x^ in the "
    "saddle point of the strongly convex-concave problem of the model, R multiplied by `weight`, with "
    "mu/2 ||x||^2 where A is not the identity. error is the smaller one of a bound by the residuals of both optimality "
    "conditions over the moduli and of one by the primal-dual gap. It says nothing about the plain problem, nor about "
    "the truth."
)
PLAIN_CERTIFICATE = (
    "the plain form of the model, which is not strongly convex: no distance to x^ is certified except by the "
    "primal-dual gap, where that is finite (error is null where it is not); accuracy is that of the residuals of both "
    "optimality conditions, the larger norm of two"
)


class SaddleSolver:
    """Solves the saddle-point problems of one model and one problem, for any weight of its regularizer.

    Images that are denoised are solved channel by channel, as all regularizers here act; data with an operator as the
    model takes it. Weights multiply R as it was trained, see :func:`multiply`.

    Parameters
    ----------
    problem: data, operator, noise. model: not changed. mu: the model's ``image_convexity``; None: as it is.
    max_evaluations: of PDHG. plain: without strong convexity, to an accuracy of the residuals. watch: is told what is
        certified at every evaluation.

    Raises ``ValueError`` for an inexact adjoint, a mu that the model has no place for, and a model without plain form.
    """

    nonnegative = False

    def __init__(
        self,
        problem: Problem,
        model: SaddleModel,
        mu: float | None,
        max_evaluations: int,
        plain: bool = False,
        watch: Callable[[float], None] = lambda error: None,
    ) -> None:
        if not problem.operator.adjoint_exact:
            raise ValueError(
                f"{problem.data}: saddle-point models need the exact transpose of A, which "
                f"{type(problem.operator).__name__} has not; use --backend matrix"
            )
        self.problem, self.regularizer, self.max_evaluations = problem, model, max_evaluations
        self.plain, self.watch = plain, watch
        self.denoises = isinstance(problem.operator, Identity)
        if mu is not None and (self.denoises or not hasattr(model, "image_convexity")):
            where = "for denoising" if self.denoises else "that could be changed"
            raise ValueError(f"{type(model).__name__} has no mu {where}; leave out --mu")
        self._mu = mu
        # by weight, (x, y) where the solver ended, and the last of them
        self._ends: dict[float, Tensor] = {}
        self._last: Tensor | None = None
        self.saddle_point(1.0)

    @property
    def mu(self) -> float:
        """The weight of 1/2 ||x||^2 in the problem."""
        return 0.0 if self.denoises else float(getattr(self._model(1.0), "image_convexity", 0.0))

    def strong_convexity(self, weight: float) -> float:
        """The modulus of g, 0 for the plain form."""
        return self.saddle_point(weight).convexity

    def saddle_point(self, weight: float) -> SaddlePoint:
        """The problem with this weight.

        Raises:
            ValueError: the model has no such form, no weight that can be changed, or does not fit the data; its
                transpose is wrong.
            NotStronglyConvexError: (a ValueError) nothing could be certified.
        """
        problem, model = self.problem, self._model(weight)
        y = problem.y.flatten(0, 1)[:, None] if self.denoises else problem.y
        if not self.denoises:
            operator = problem.operator
            if problem.weights is not None:
                root = problem.weights.to(problem.y).sqrt()
                operator, y = root * operator, root * y
            measured_by = getattr(model, "measured_by", None)
            if measured_by is None:
                raise ValueError(f"{type(model).__name__} takes no operator, so it can only denoise images")
            measured_by(operator)
        with torch.no_grad():
            saddle = model.plain_saddle_point(y) if self.plain else model.saddle_point(y)
        if self._last is None:
            check_transpose(saddle.operator)
        if not self.plain:
            saddle.require_strong_convexity()
        return saddle

    def certified(self, weight: float, start: Tensor, accuracy: float) -> Solution:
        """The image in the saddle point, to the certified ``accuracy``; of the residuals, for the plain form."""
        return self._solve(weight, start, accuracy, not self.plain)

    def rough(self, weight: float, start: Tensor, gradient: float) -> Solution:
        """A point whose primal residual is at most ``gradient``, and the dual one alike: enough to compare weights.

        What noise makes of the gradient it multiplies by the gain of A^T, so that it goes without in the data.

        Raises:
            ValueError: it was not reached within the evaluations allowed.
        """
        solution = self._solve(weight, start, gradient / max(1.0, self.problem.noise_gain()), False)
        require_tried(self.problem, weight, solution)
        return solution

    def _model(self, weight: float) -> SaddleModel:
        """A copy whose regularizer is multiplied by ``weight``, and with mu."""
        model = copy.deepcopy(self.regularizer).requires_grad_(False)
        if self._mu is not None:
            model.image_convexity = self._mu  # type: ignore[assignment]
        if weight != 1:
            multiply(model, weight)
        return model

    def _solve(self, weight: float, start: Tensor, accuracy: float, certified: bool) -> Solution:
        saddle = self.saddle_point(weight)
        images = start.flatten(0, 1)[:, None] if self.denoises else start
        z = self._ends.get(weight, self._last)
        if z is None:
            z = images.new_zeros(len(images), saddle.operator.domain_size + saddle.operator.range_size)
            z[:, : saddle.pixels] = images.flatten(1)
        diagonal = saddle.operator.absolute_sums() is not None
        method = PDHG(self.max_evaluations, diagonal=diagonal, certified=certified)
        accuracy /= math.sqrt(len(images))
        found = method(saddle, *saddle.split(z), accuracy, lambda snapshot: self.watch(float(snapshot.error.norm())))
        with torch.no_grad():
            gradient = saddle.g.grad(found.x) + saddle.operator.transpose(found.y)
        if bool(torch.isfinite(found.x).all() and torch.isfinite(found.y).all()):
            self._last = self._ends[weight] = torch.cat([found.x, found.y], 1)
        shape = start.shape
        return Solution(
            saddle.image(found.x).reshape(shape),
            saddle.image(gradient).reshape(shape),
            found.error.norm()[None],
            found.status.max()[None],  # larger ones are worse
            found.evaluations.max()[None],
            found.rounding.norm()[None],
            found.grade.max()[None],
        )


def multiply(model: SaddleModel, weight: float) -> None:
    """Make of R(u) = min_v max_p <Du - K^T v, p> - (e/2)||p||^2 + lambda phi(v) + (mu_v/2)||v||^2 ``weight`` times it.

    With p' = weight p: e is divided, lambda and mu_v are multiplied by it; Huber's nu, which belongs to 1/(2 nu)
    ||v||^2, is divided.

    Raises ``ValueError`` for other models than :class:`models.LearnedTV`, and weights that are not positive.
    """
    if not isinstance(model, LearnedTV):
        raise ValueError(f"the weight of {type(model).__name__} cannot be changed, only that of LearnedTV")
    if not 0 < weight < math.inf:
        raise ValueError(f"the weight is {weight}, but must be positive and finite")
    with torch.no_grad():
        model.log_weight.add_(math.log(weight))
    model.dual_convexity /= weight
    model.field_convexity *= weight
    if model.norm == "huber":
        model.smoothing /= weight
