"""The learning problem with a saddle-point lower level, behind the same calls as with a smooth one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from recon.bilevel.certificate import Interval, middle_term, modelled_square
from recon.bilevel.evaluation import Accuracy, Adjoint, Chunk, Evaluation
from recon.bilevel.hypergradient import Errors
from recon.bilevel.loss import UpperLoss, check_finite
from recon.bilevel.objective import InexactObjective
from recon.bilevel.piggyback import AdjointPoint, AdjointSolution, Piggyback, error_bound, parameter_gradient
from recon.lower_level import HessianVariation, Status, over_image, per_image_dot, per_image_norm
from recon.lower_level.grade import modelled_part, proved_part
from recon.lower_level.saddle.maps import check_transpose
from recon.lower_level.saddle.pdhg import PDHG, SaddleSolution
from recon.lower_level.saddle.problem import SaddleModel, SaddlePoint


class SaddleObjective(InexactObjective):
    """f(theta) = (1/N) sum_i l(x^_i(theta), x_i*), x^_i the image in the saddle point of the problem of data i.

    In an :class:`Evaluation`, x holds the saddle points (x, y), flat, and ``adjoint`` the adjoint ones (X, Y), and R
    with ||X - X^|| <= R / mu_g; ``error`` and ``slope`` belong to the image. The hypergradient is
    z = (1/N) sum_i l_i' d_theta <pairing of (x, y) and (X, Y)>, and omega that of
    :func:`recon.bilevel.piggyback.error_bound`.

    Parameters
    ----------
    model : SaddleModel
        theta, and the saddle-point problem of given data.
    target : tensor
        True images, of the problem's ``image_shape``.
    y : tensor
        Data, ``(N, ...)``.
    loss : UpperLoss, optional
        l, or 1/2||x - x*||^2.
    solver : PDHG, optional
        Of saddle points where no adjoint is asked for.
    piggyback : Piggyback, optional
        Of both together, and of adjoints; with a fixed number of iterations it replaces the solver, and accuracies are
        not kept.
    chunk_size : int, optional
        Images solved together. All by default.
    max_adjoint_iterations : int
        Evaluations of one adjoint.

    Raises
    ------
    ValueError
        Data that do not fit, and a K whose transpose is wrong.
    """

    def __init__(
        self,
        model: SaddleModel,
        target: Tensor,
        y: Tensor,
        loss: UpperLoss | None = None,
        solver: PDHG | None = None,
        piggyback: Piggyback | None = None,
        chunk_size: int | None = None,
        max_adjoint_iterations: int = 10_000,
    ) -> None:
        super().__init__(target, y, loss, chunk_size, max_adjoint_iterations)
        self.model = model
        self.saddle_solver = solver if solver is not None else PDHG()
        self.piggyback = piggyback if piggyback is not None else Piggyback(self.saddle_solver)
        check_finite("data", y)
        saddle = self.saddle_point(slice(0, 1))
        check_transpose(saddle.operator)
        if tuple(target.shape[1:]) != saddle.image_shape:
            raise ValueError(f"true images have the shape {tuple(target.shape[1:])}, not {saddle.image_shape}")

    @property
    def params(self) -> list[nn.Parameter]:
        return self.model.trainable()

    def saddle_point(self, c: slice) -> SaddlePoint:
        """The problems of the images ``c`` at the current parameters, without graph."""
        with torch.no_grad():
            return self.model.saddle_point(self.y[c])

    def image(self, evaluation: Evaluation) -> Tensor:
        """The reconstructions, ``(N, channel, height, width)``."""
        return self.saddle_point(slice(0, 1)).image(evaluation.x)

    # -----------------------------------------------------------------------------------------------------------------

    def _first_guess(self, c: slice) -> Tensor:
        """(x, y) as the model says."""
        return self.model.initial(self.y[c])

    def _modulus(self) -> float:
        """sqrt(mu_u mu_g): with R = sqrt(mu_u mu_g) eps, R ||x - x^|| is as small as mu_u eps^2."""
        saddle = self.saddle_point(slice(0, 1))
        return math.sqrt(saddle.image_convexity * saddle.require_strong_convexity())

    def _slope(self, saddle: SaddlePoint, c: slice, x: Tensor, index: Tensor | None = None) -> Tensor:
        target = self.target[c] if index is None else self.target[c][index]
        return saddle.embed(self.loss.grad(saddle.image(x), target))

    def _solve_adjoint(
        self, saddle: SaddlePoint, c: slice, x: Tensor, w: Tensor, accuracy: float | Tensor
    ) -> AdjointSolution:
        """(X, Y) for the saddle points whose x is given, from w."""
        slope = self._slope(saddle, c, x)
        found = self.piggyback.adjoint(saddle, x, w, slope, accuracy, None, self.max_adjoint_iterations)
        self._count(found.evaluations)
        return found

    def _evaluate_chunk(self, c: slice, accuracy: Accuracy, start: Evaluation, second: bool) -> Chunk:
        saddle, z, w = self.saddle_point(c), start.x[c], start.adjoint.w[c]
        second = second and self.loss.quadratic and self._has_derivatives(saddle)
        adjoint: AdjointSolution | None = None
        if self.piggyback.iterations is not None or (second and self.piggyback.method == "pdhg"):
            slope = partial(self._slope, saddle, c)
            solution, adjoint = self.piggyback.together(saddle, z, w, slope, accuracy.solution, accuracy.adjoint)
            self._count(solution.evaluations + adjoint.evaluations)
        else:
            solution = self.saddle_solver(saddle, *saddle.split(z), accuracy.solution)
            self._count(solution.evaluations)
            if second and bool((solution.status != Status.NOT_FINITE).all()):
                adjoint = self._solve_adjoint(saddle, c, solution.x, w, accuracy.adjoint)
        image = saddle.image(solution.x)
        found = self._by_first_order(c, solution, image, torch.cat([solution.x, solution.y], 1), w)
        if adjoint is not None:
            found = replace(found, adjoint=adjoint.parts)
            if second:
                interval, sensitivity = self._second_order(saddle, found.interval, solution, adjoint.X, image, c)
                found = replace(found, interval=interval, sensitivity=sensitivity)
        return self._of_loss(found, c, saddle)

    def _differentiate(
        self, c: slice, evaluation: Evaluation, accuracy: Accuracy, errors: Errors | None
    ) -> tuple[Sequence[Tensor], Adjoint]:
        saddle = self.saddle_point(c)
        adjoint = evaluation.adjoint.select(c)
        x, y = saddle.split(evaluation.x[c])
        if self.piggyback.iterations is None and not adjoint.satisfies(accuracy):
            adjoint = self._solve_adjoint(saddle, c, x, adjoint.w, accuracy.adjoint).parts
        weight = evaluation.weight[c]
        big_x, big_y = saddle.split(adjoint.w)
        scaled = [over_image(weight, v) * v for v in (big_x, big_y, saddle.operator(big_x))]
        gradients = parameter_gradient(self.model, self.y[c], x, y, *scaled)
        if errors is not None:
            error, rounding = (v[c] * saddle.spread for v in (evaluation.error, evaluation.error_rounding))
            at = AdjointPoint(x, y, big_x, big_y, error, adjoint.residual, self.loss.smoothness)
            at = replace(at, error_rounding=rounding, adjoint_rounding=adjoint.rounding)
            omega = error_bound(self.model, self.y[c], at)
            self._count(4 * torch.ones_like(omega.omega))
            errors.add(omega, weight, self._weight_error(c, evaluation), saddle.working_dtype(x.dtype))
        return gradients, adjoint

    @staticmethod
    def _has_derivatives(saddle: SaddlePoint) -> bool:
        """Whether g and f have Hessians that move by a bounded amount: what goal-oriented certificates need."""
        return math.isfinite(saddle.g.hessian_lipschitz) and math.isfinite(saddle.f.hessian_lipschitz)

    def _second_order(
        self, saddle: SaddlePoint, interval: Interval, at: SaddleSolution, big_x: Tensor, image: Tensor, c: slice
    ) -> tuple[Interval, Tensor]:
        r"""The goal-oriented certificate of :mod:`recon.bilevel.certificate` for h(x) = g(x) + f(Kx) and w = -X.

        r = grad h(x), r_w = grad l + h''(x) X; the Hessian varies along w with the constants kappa of g along X and
        of f along KX, or T_g + \|\|K\|\|^2 T_f. Where f is quadratic, with phi = g less its quadratic part,

            \|<(B_bar - B(x)) w, e>\| <= kappa int_0^1 s <e, phi''(x^ + s e) e> ds
                                     <= kappa <phi'(x) - phi'(x^), e> <= kappa (P^2 + D^2)/4,

        because the residuals p = g'(x) + K^T y and d = s - Kx, s in the subdifferential of f* at y, satisfy
        <phi'(x) - phi'(x^), e> + a^2 + b^2 <= P a + D b, see :func:`recon.lower_level.saddle.problem.distances`. The
        smallest bound is taken. The better one of this certificate and ``interval``, and its length per eps^2.
        """
        x, error, exact = at.x, at.error, proved_part(at.error, at.rounding)
        whole, proved = error * saddle.spread, exact * saddle.spread
        kx, inner = saddle.operator(x), saddle.operator(big_x)
        back = saddle.operator.transpose(saddle.f.grad(kx))
        slope = self.loss.grad(image, self.target[c])
        r = saddle.g.grad(x) + back
        product = saddle.g.hessian(x)(big_x) + saddle.operator.transpose(saddle.f.hessian(kx)(inner))
        squares = self._squared_residuals(saddle, at, kx)
        self._count(2.5 * torch.ones_like(error))
        (kappa_g, t_g), (kappa_f, t_f) = saddle.g.variation(big_x), saddle.f.variation(inner)
        # an estimate of ||K|| certifies nothing; where f is quadratic, none is needed
        known = saddle.operator.norm_bound
        t = t_g + torch.where(t_f > 0, known**2 * t_f, 0.0)
        kappa = torch.maximum(kappa_g, kappa_f)
        variation = HessianVariation(kappa, t, torch.zeros_like(t))
        mu, l_g, unit = saddle.convexity, self.loss.smoothness, saddle.operator.eps(x.dtype) / 2
        curvature = saddle.g.smoothness + saddle.norm**2 * saddle.f.smoothness

        def rounding(v: Tensor, residual: Tensor) -> Tensor:
            return unit * (curvature * per_image_norm(v) + residual)

        norm, adjoint = per_image_norm(r), per_image_norm(product + saddle.embed(slope))
        noise = rounding(x, norm)
        systematic = 4 * unit * (norm + per_image_norm(back))
        spread = per_image_norm(big_x) * (noise * (8 / x.shape[1] ** 0.5) + systematic)
        by_residuals, by_computed = torch.where(t_f > 0, math.inf, kappa_g * squares / 4)
        middle = torch.fmin(middle_term(variation, norm + noise, mu, whole), by_residuals)
        moved = 4 * unit * t * per_image_norm(x)  # of x in its filter responses, as in Energy.adjoint_rounding
        low = (adjoint + rounding(big_x, adjoint) + moved) * whole + middle + spread
        value = self.loss.value(image, self.target[c]) + per_image_dot(big_x.double(), r.double())
        # an adjoint as accurate as x; the middle term falls like the square of the error
        sensitivity = 2 * (saddle.image_convexity + middle / error.square().clamp_min(1e-300)) + 0.5 * l_g
        least = adjoint * proved + torch.fmin(middle_term(variation, norm, mu, proved), by_computed)
        modelled = modelled_part(low, least) + modelled_square(error, error - exact, l_g)
        return interval.better(Interval(value, low, low + 0.5 * l_g * error.square(), modelled)), sensitivity

    @staticmethod
    def _squared_residuals(saddle: SaddlePoint, at: SaddleSolution, kx: Tensor) -> Tensor:
        """P^2 + D^2 of the residuals p, in the image and in the rest of x, and d.

        Two rows: with their rounding errors, and without.
        """
        unit, n = saddle.operator.eps(kx.dtype), saddle.pixels
        n_x, n_y, n_kx = (per_image_norm(v) for v in (at.x, at.y, kx))
        slope, back = saddle.g.grad(at.x), saddle.operator.transpose(at.y)
        p, d = slope + back, at.s - kx
        noise = unit * (saddle.norm * n_y + per_image_norm(slope) + saddle.g.smoothness * n_x)
        dual_noise = unit * (saddle.norm * n_x + n_kx + saddle.f.conjugate_terms(at.y))
        counted = noise.new_tensor([[1.0], [0.0]])
        image, rest = ((per_image_norm(v) + counted * noise).square() for v in (p[:, :n], p[:, n:]))
        dual = (per_image_norm(d) + counted * dual_noise).square() / saddle.dual_convexity
        return image / saddle.image_convexity + rest / saddle.convexity + dual

    def _weight_error(self, c: slice, evaluation: Evaluation) -> Tensor:
        saddle = self.saddle_point(slice(0, 1))
        return super()._weight_error(c, replace(evaluation, x=saddle.image(evaluation.x)))
