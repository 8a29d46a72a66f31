"""Images in the saddle points of learned saddle-point problems, certified, or in their plain form."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recon.lower_level import PDHG, SaddleModel, SaddlePoint, Solution
from recon.lower_level.saddle.maps import check_transpose
from recon.reconstruction.methods import WatchError, told
from recon.reconstruction.problem import Data, Problem
from recon.reconstruction.regularized import RegularizedMethod
from recon.reconstruction.variational import RELATIVE_ACCURACY
from recon.reconstruction.weight import WeightedSolver, require_tried

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


@dataclass(frozen=True)
class Saddle(RegularizedMethod):
    """The image in the saddle point of the problem that a model makes of the data, R multiplied by the weight.

    Images that are denoised are solved channel by channel by models of one channel; data with an operator as the model
    takes it. Weights W of the data are taken into them: W^(1/2) A and W^(1/2) y for A and y, image by image.

    Parameters
    ----------
    model : SaddleModel
        It is copied, not changed.
    mu : float, optional
        The model's ``image_convexity``; None is as it is.
    plain : bool
        Without strong convexity, to an accuracy of the residuals.
    minimize : PDHG, optional
        What solves; by default with diagonal steps where the operator knows its sums.
    max_evaluations : int
        Of the solver by default.
    """

    model: SaddleModel
    mu: float | None = None
    plain: bool = False
    minimize: PDHG | None = None
    max_evaluations: int = 10_000
    trained: bool = field(default=True, init=False)

    def solver(self, problem: Data, nonnegative: bool, watch: WatchError | None) -> WeightedSolver:
        name = type(self.model).__name__
        if nonnegative:
            raise ValueError(
                f"x >= 0 does not go with saddle-point models, whose g has no place for it, such as {name}"
            )
        if not problem.operator.adjoint_exact:
            raise ValueError(
                f"{problem.source}: saddle-point models need the exact transpose of A, which "
                f"{type(problem.operator).__name__} has not; use --backend matrix"
            )
        if problem.denoises and problem.weights is not None:
            raise ValueError("weights belong to data that an operator measured; images without one have none")
        if problem.denoises and self.mu is not None:
            raise ValueError(f"{name} has no mu for denoising; leave out --mu")
        return _SaddlePoints(problem, self, watch)


class _SaddlePoints(WeightedSolver):
    """The saddle-point problems of one model and one problem, by weight.

    All images are solved together, unless each of them has weights of its own.
    """

    def __init__(self, problem: Data, method: Saddle, watch: WatchError | None) -> None:
        self.problem, self.method, self.watch = problem, method, watch
        self.regularizer, self.plain = method.model, method.plain
        self.mu = 0.0 if problem.denoises else self._model(1.0).image_convexity or 0.0
        each = problem.weights is not None and problem.weights.ndim == problem.y.ndim
        self.parts = [slice(i, i + 1) for i in range(len(problem.y))] if each else [slice(None)]
        # by weight and part, (x, y) where the solver ended, and the last of them
        self._ends: dict[tuple[float, int], Tensor] = {}
        self._last: dict[int, Tensor] = {}
        self._checked = False

    def strong_convexity(self, weight: float) -> float:
        """The modulus of g, 0 for the plain form."""
        return self._saddle_point(weight, self.parts[0])[0].convexity

    def accuracy(self, weight: float, given: float | None) -> tuple[float, str]:
        """The accuracy on the scale of x, and its rule; of the residuals for the plain form."""
        what = ", of the residuals" if self.plain else ""
        if given is not None:
            return given / self.problem.scale, "given" + what
        norm = float(self.problem.guess().double().norm())
        return RELATIVE_ACCURACY * norm, f"{100 * RELATIVE_ACCURACY:g} % of the norm of the first guess{what}"

    def certified(self, weight: float, start: Tensor | None, accuracy: float) -> Solution:
        """The image in the saddle point, to the certified ``accuracy``; of the residuals, for the plain form."""
        return self._solve(weight, start, accuracy, not self.plain)

    def rough(self, weight: float, start: Tensor, gradient: float) -> Solution:
        """A point whose primal residual is at most ``gradient``, and the dual one alike.

        What noise makes of the gradient it multiplies by the gain of A^T, so that it goes without in the data.
        """
        assert isinstance(self.problem, Problem)  # whose noise is known
        solution = self._solve(weight, start, gradient / max(1.0, self.problem.noise_gain()), False)
        require_tried(self.problem, weight, solution)
        return solution

    def _model(self, weight: float) -> SaddleModel:
        return self.method.model.scaled(weight, self.method.mu)

    def _saddle_point(self, weight: float, part: slice) -> tuple[SaddlePoint, SaddleModel, Tensor]:
        """The problems of some images with this weight, their model, and their data as the model takes them.

        Raises
        ------
        ValueError
            The model has no such form, no weight that can be changed, or does not fit the data; its transpose is
            wrong.
        NotStronglyConvexError
            (A ValueError) nothing could be certified.
        """
        problem, model, y = self.problem, self._model(weight), self.problem.y[part]
        if problem.denoises:
            y = y.reshape(-1, model.channels, *y.shape[2:])
        else:
            operator = problem.operator
            if problem.weights is not None:
                weights = (problem.weights[part][0] if len(self.parts) > 1 else problem.weights).to(y)
                weights = weights[0] if weights.ndim == y.ndim else weights
                operator, y = weights.sqrt() * operator, weights.sqrt() * y
            model.measured_by(operator)
        with torch.no_grad():
            saddle = model.plain_saddle_point(y) if self.plain else model.saddle_point(y)
        if not self._checked:
            check_transpose(saddle.operator)
            self._checked = True
        if not self.plain and (self.method.minimize is None or self.method.minimize.certified):
            saddle.require_strong_convexity()
        return saddle, model, y

    def _solve(self, weight: float, start: Tensor | None, accuracy: float, certified: bool) -> Solution:
        found = []
        for number, part in enumerate(self.parts):
            first = None if start is None else start[part]
            found.append(self._solve_part(weight, number, first, accuracy, certified))
        if len(found) == 1:
            return found[0]
        return Solution(*(torch.cat(parts) for parts in zip(*(vars(one).values() for one in found), strict=True)))

    def _solve_part(
        self, weight: float, number: int, start: Tensor | None, accuracy: float, certified: bool
    ) -> Solution:
        saddle, model, y = self._saddle_point(weight, self.parts[number])
        z = self._ends.get((weight, number), self._last.get(number))
        if z is None:
            z = model.initial(y)
            if start is not None:
                z = torch.zeros_like(z)
                z[:, : saddle.pixels] = start.reshape(len(z), -1)
        method = self._method(saddle, certified)
        batch = len(self.problem.y[self.parts[number]])
        slices = len(y) // batch  # of an image, solved on their own
        with torch.no_grad():
            found = method(saddle, *saddle.split(z), accuracy / math.sqrt(slices), told(self.watch))
            gradient = saddle.g.grad(found.x) + saddle.operator.transpose(found.y)
        if bool(torch.isfinite(found.x).all() and torch.isfinite(found.y).all()):
            self._last[number] = self._ends[weight, number] = torch.cat([found.x, found.y], 1)
        image, slope = saddle.image(found.x), saddle.image(gradient)
        numbers = (found.error, found.status, found.evaluations, found.rounding, found.grade)
        if slices == 1:
            return Solution(image, slope, *numbers)
        image, slope = (v.reshape(batch, -1, *saddle.image_shape[1:]) for v in (image, slope))
        error, status, evaluations, rounding, grade = (v.reshape(batch, slices) for v in numbers)
        worst, most = status.amax(1), evaluations.amax(1)  # larger statuses and grades are worse
        return Solution(image, slope, error.norm(dim=1), worst, most, rounding.norm(dim=1), grade.amax(1))

    def _method(self, saddle: SaddlePoint, certified: bool) -> PDHG:
        given = self.method.minimize
        if given is None:
            diagonal = saddle.operator.absolute_sums() is not None
            return PDHG(self.method.max_evaluations, diagonal=diagonal, certified=certified)
        return PDHG(given.max_iterations, given.adaptive, given.diagonal, given.certified and certified)
