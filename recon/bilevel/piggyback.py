"""Hypergradients of saddle-point problems: the adjoint saddle point, by piggyback iterations, and error bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from recon.bilevel.evaluation import Adjoint
from recon.bilevel.hypergradient import ErrorBound
from recon.errors import at_least, one_of
from recon.lower_level import HessianMap, conjugate_gradients, per_image_norm
from recon.lower_level.grade import Grade, modelled_part, proved_part
from recon.lower_level.precision import SUMMATION, full_precision
from recon.lower_level.saddle.curvature import Curvature
from recon.lower_level.saddle.iteration import Iteration
from recon.lower_level.saddle.pdhg import PDHG, SaddleSolution
from recon.lower_level.saddle.problem import SaddleModel, SaddlePoint
from recon.lower_level.solution import Status

#: grad l(x) of the images ``index`` at x, flat
Slope = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class AdjointSolution:
    r"""Approximate solutions of the adjoint saddle-point problems, linearized at x and s = Kx.

    X, Y: flat. residual R: \|\|X - X^\|\| <= R / mu_g and \|\|f''(Kx)(KX + grad l_2) - Y^\|\| <= 2 R / sqrt(mu_g
    mu_f), per image; Y is that point, but after a fixed number of iterations. rounding: the part of R that a model of
    rounding errors adds.
    """

    X: Tensor
    Y: Tensor
    residual: Tensor
    status: Tensor
    evaluations: Tensor
    rounding: Tensor

    @property
    def parts(self) -> Adjoint:
        """(X, Y) in one, with its residual."""
        return Adjoint(torch.cat([self.X, self.Y], 1), self.residual, self.rounding)


class PiggybackIteration(Iteration):
    """Steps of PDHG on a saddle-point problem and, with the derivatives of its proximal maps, on the adjoint one.

    prox' at the argument of the step is (I + tau g''(x+))^{-1} for g and, by Moreau's identity,
    I - (I + f''(s)/sigma)^{-1} for f*: a step of the same method on the problem linearized at x+ and s.
    """

    cost = 2

    def __init__(self, saddle: SaddlePoint, z: Tensor, w: Tensor, slope: Slope) -> None:
        super().__init__(saddle, *saddle.split(z))
        self.index = torch.arange(len(z), device=z.device)
        self.slope = slope
        adjoint = saddle.linearized(self.x, self.kx, slope(self.x, self.index))
        self.adjoint = Iteration(adjoint, *saddle.split(w))

    def advance(self) -> tuple[Tensor, Tensor]:
        residuals = super().advance()
        self.adjoint.saddle = self.saddle.linearized(self.x, self.s, self.slope(self.x, self.index))
        self.adjoint.advance()
        return residuals

    def carried(self) -> dict[str, Tensor]:
        return {"X": self.adjoint.x, "Y": self.adjoint.y}

    def select(self, index: Tensor) -> None:
        super().select(index)
        self.adjoint.select(index)


class Piggyback:
    r"""Solves the saddle-point problem and its adjoint, each to its own accuracy (Bogensperger et al. 2025).

    Both run together until the saddle point is accurate enough; then the adjoint is linearized at x and s = Kx and goes
    on alone, if it has to. With ``iterations``, both run so many times instead, whatever accuracy they reach.

    Parameters
    ----------
    solver
        of the saddle point and of an adjoint that goes on alone.
    adjoint
        ``cg``: conjugate gradients on (g'' + K^T f'' K) X = -grad l_1 - K^T f'' grad l_2, Y = f''(KX + grad l_2), which
        needs the fewest products; ``pdhg``: as published. Problems that are not smooth take ``pdhg``.
    iterations
        a fixed number, for comparisons; None: as many as the accuracies ask for.
    """

    def __init__(self, solver: PDHG | None = None, adjoint: str = "cg", iterations: int | None = None) -> None:
        one_of(("cg", "pdhg"), adjoint=adjoint)
        at_least(1, iterations=iterations)
        self.solver = solver if solver is not None else PDHG()
        self.method, self.iterations = adjoint, iterations

    @full_precision()
    @torch.no_grad()
    def together(
        self, saddle: SaddlePoint, z: Tensor, w: Tensor, slope: Slope, accuracy: float | Tensor, adjoint: float | Tensor
    ) -> tuple[SaddleSolution, AdjointSolution]:
        """From z = (x, y) and w = (X, Y) to ||u - u^|| <= ``accuracy`` and R <= ``adjoint`` per image."""
        fixed = self.iterations is not None
        solver = PDHG(self.iterations, adaptive=False, certified=False) if self.iterations is not None else self.solver
        if not fixed and solver.certified:
            saddle.require_strong_convexity()
        solve = solver.begin(PiggybackIteration(saddle, z, w, slope), 1e-300 if fixed else accuracy)
        solution, ended = solve.run(), solve.collected.ended
        big_x, big_y = ended["X"], ended["Y"]
        index = torch.arange(len(z), device=z.device)
        at = slope(solution.x, index)
        if fixed:
            return solution, _as_they_are(saddle, solution, big_x, big_y, at)
        return solution, self.adjoint(saddle, solution.x, torch.cat([big_x, big_y], 1), at, adjoint)

    @full_precision()
    @torch.no_grad()
    def adjoint(
        self,
        saddle: SaddlePoint,
        x: Tensor,
        w: Tensor,
        slope: Tensor,
        accuracy: float | Tensor,
        dual_slope: Tensor | None = None,
        max_iterations: int = 100_000,
    ) -> AdjointSolution:
        """The adjoint at x, for losses with gradients ``slope`` (in x) and ``dual_slope`` (in y), from w = (X, Y).

        Raises :class:`NotStronglyConvexError` if a modulus is not positive.
        """
        primal, dual = saddle.require_strong_convexity(), saddle.require_dual_convexity()
        kx = saddle.operator(x)
        smooth = math.isfinite(saddle.g.smoothness)
        if self.method == "pdhg" or not smooth:
            linear = saddle.linearized(x, kx, slope, dual_slope)
            solver = PDHG(max_iterations, self.solver.adaptive, self.solver.diagonal)
            found = solver(linear, *saddle.split(w), accuracy / primal)
            spent = found.evaluations + 1  # and K x
            residual, modelled = found.error * primal, found.rounding * primal
            return AdjointSolution(found.x, found.y, residual, found.status, spent, modelled)
        g, f = saddle.g.hessian(x), saddle.f.hessian(kx)
        right = -slope
        if dual_slope is not None:
            right = right - saddle.operator.transpose(f(dual_slope))
        unit = saddle.operator.eps(x.dtype) / 2
        hessian = reduced_hessian(saddle, g, f)
        rounding = unit * (saddle.g.smoothness + saddle.norm**2 / dual)
        solved = conjugate_gradients(hessian, right, saddle.split(w)[0], accuracy, max_iterations, rounding=rounding)
        inner = saddle.operator(solved.w)
        y = f(inner if dual_slope is None else inner + dual_slope)
        spent = solved.evaluations + 2  # and K x, K X
        return AdjointSolution(solved.w, y, solved.residual_norm, solved.status, spent, solved.rounding)


def _as_they_are(saddle: SaddlePoint, at: SaddleSolution, x: Tensor, y: Tensor, slope: Tensor) -> AdjointSolution:
    """(X, Y) after a fixed number of iterations and, where f is smooth, the residual of X in the reduced equation.

    Y is that of the iteration, not f''(Kx) K X, which the residual belongs to: from there, the errors of X multiplied
    by ||f''|| ||K||, the next few iterations would make X worse, and warm starts diverge.
    """
    limit = torch.full_like(at.status, int(Status.ITERATION_LIMIT))
    if not (saddle.dual_convexity > 0 and math.isfinite(saddle.g.smoothness)):
        unknown = torch.full_like(at.error, math.inf)
        return AdjointSolution(x, y, unknown, limit, 0 * at.evaluations, unknown)
    own = saddle.f.hessian(saddle.operator(at.x))(saddle.operator(x))
    residual = per_image_norm(saddle.g.hessian(at.x)(x) + saddle.operator.transpose(own) + slope)
    return AdjointSolution(x, y, residual, limit, 0 * at.evaluations + 2, torch.zeros_like(residual))


def reduced_hessian(saddle: SaddlePoint, g: Curvature, f: Curvature) -> HessianMap:
    """v -> (g'' + K^T f'' K) v, one evaluation."""
    last: tuple[Tensor | None, Curvature, Curvature] = (None, g, f)

    def apply(v: Tensor, kept: Tensor | None) -> Tensor:
        nonlocal last
        if kept is not last[0]:
            last = (None, g, f) if kept is None else (kept, g.select(kept), f.select(kept))
        return last[1](v) + saddle.operator.transpose(last[2](saddle.operator(v)))

    return HessianMap(apply)


def pairing(saddle: SaddlePoint, x: Tensor, y: Tensor, big_x: Tensor, big_y: Tensor, q: Tensor) -> Tensor:
    """<Kx, Y> + <KX, y> + <grad g(x), X> + <grad f(s), q>, s = Kx and q = KX + grad l_2, summed over the images.

    Its derivative in theta at fixed vectors and fixed s is the hypergradient: the terms of K are those of Chambolle and
    Pock (2021). A parameter of f* contributes -<d grad f*(y), Y>, and y = grad f(s) turns this into <d grad f(s), q>.
    """
    operator = saddle.operator
    with torch.no_grad():
        s = operator(x)
    value = (operator(x) * big_y).sum() + (operator(big_x) * y).sum()
    return value + (saddle.g.grad(x) * big_x).sum() + (saddle.f.grad(s) * q).sum()


def parameter_gradient(
    model: SaddleModel, data: Tensor, x: Tensor, y: Tensor, big_x: Tensor, big_y: Tensor, q: Tensor
) -> tuple[Tensor, ...]:
    """d/dtheta of :func:`pairing`, one tensor for every trainable parameter. Two evaluations."""
    with torch.enable_grad():
        value = pairing(model.saddle_point(data), x, y, big_x, big_y, q)
        if not value.requires_grad:
            return tuple(torch.zeros_like(p) for p in model.trainable())
        return torch.autograd.grad(value, model.trainable(), allow_unused=True, materialize_grads=True)


class DualLoss(NamedTuple):
    """What an error bound takes of a loss l_2 of y: grad l_2(y), and a Lipschitz constant of grad l_2."""

    slope: Tensor
    smoothness: float


@dataclass(frozen=True)
class AdjointPoint:
    """Where an error bound is computed: x, y, X, Y, their slopes, and per image what is certified of them.

    error: ||x - x^||, of all of x; residual: R of :class:`AdjointSolution`; smoothness: a Lipschitz constant of grad
    l_1; dual: of l_2, None for no l_2. error_rounding, adjoint_rounding: the modelled parts of error and residual, None
    for all of them.
    """

    x: Tensor
    y: Tensor
    X: Tensor
    Y: Tensor
    error: Tensor
    residual: Tensor
    smoothness: float
    dual: DualLoss | None = None
    error_rounding: Tensor | None = None
    adjoint_rounding: Tensor | None = None

    @property
    def dual_smoothness(self) -> float:
        """L_2."""
        return 0.0 if self.dual is None else self.dual.smoothness


class _Radii(NamedTuple):
    """How far x, Kx, y, X and Y are from the exact ones, two rows each: the bound, and that without rounding errors.

    certified: whether all constants are proved.
    """

    x: Tensor
    kx: Tensor
    y: Tensor
    X: Tensor
    Y: Tensor
    certified: bool


def error_bound(model: SaddleModel, data: Tensor, at: AdjointPoint) -> ErrorBound:
    r"""omega_i >= \|\|z_i - grad f_i\|\| and a bound of \|\|z_i\|\|, per image.

    The exact adjoint differs from (X, Y) because its equations were not solved exactly (by R) and because they were
    linearized at x and Kx, not at x^ and Kx^. With T_g, T_f the Lipschitz constants of x -> g''(x) X, s -> f''(s) q,
    q = KX + grad l_2, and eps_s = \|\|K\|\| eps_x,

        A = ((T_g + L_1) eps_x + \|\|K\|\| T_f eps_s) / sqrt(mu_g),   B = L_2 eps_y / sqrt(mu_f),
        \|\|X^ - X\|\| <= D_X = R / mu_g + (A + sqrt(A^2 + B^2)) / (2 sqrt(mu_g)),
        \|\|Y^ - Y\|\| <= D_Y = 2 R / sqrt(mu_g mu_f) + (B + sqrt(A^2 + B^2)) / (2 sqrt(mu_f)) + L_2 eps_y / mu_f
                            + T_f eps_s,

    by the strong monotonicity of the equations at (x^, y^). omega then bounds, tensor by tensor, how far the derivative
    of :func:`pairing` can move. It takes the place of Theorem 2 of Bogensperger et al. (2025), where f* must be smooth;
    here it may be that of a norm, with a bounded domain. An estimate, with T = 0, where g or f are not C^2. Rounding
    errors of the derivative itself are added: 8 u times its size, and those of x and Kx in its terms.
    """
    with torch.no_grad():
        saddle = model.saddle_point(data)
        kx, inner = saddle.operator(at.x), saddle.operator(at.X)
        q = inner if at.dual is None else inner + at.dual.slope
        eps, eps_s, dual_error, d_x, d_y, certified = _radii(saddle, at, kx, q)
        sizes = [per_image_norm(v) for v in (at.x, at.y, at.X, at.Y, q)]
    unit = saddle.operator.eps(at.x.dtype) / 2
    omega, size, own = torch.zeros_like(eps), torch.zeros_like(eps), torch.zeros_like(at.error)
    with torch.enable_grad():
        live = model.saddle_point(data)
        n_x, n_y, n_big_x, n_big_y, n_q = sizes
        for tensor, c in live.operator.tensors():
            gain = c * _chain_norm(tensor, model)
            if gain:
                move = n_big_y * eps + (n_x + eps) * d_y + n_y * d_x + (n_big_x + d_x) * dual_error
                omega, size = omega + gain * move, size + gain * (n_x * n_big_y + n_big_x * n_y)
        d_q = saddle.norm * d_x + at.dual_smoothness * dual_error
        for part, point, w, n_w, radius, d_w in (
            (live.g, at.x, at.X, n_big_x, eps, d_x),
            (live.f, kx, q, n_q, eps_s, d_q),
        ):
            for tensor, bound in part.tensors():
                gain = _chain_norm(tensor, model)
                if gain:
                    with torch.no_grad():
                        n, v = (torch.stack(rows) for rows in zip(*(bound(point, w, r) for r in radius), strict=True))
                        v, proved = _finite(v)
                    certified &= proved
                    omega, size = omega + gain * (n * d_w + v * radius), size + gain * n * n_w
                    own = own + gain * unit * v[0] * per_image_norm(point)
    whole, exact = omega
    whole = whole + own + SUMMATION * unit * size[0]
    basis = saddle.basis if certified else Grade.ESTIMATED
    return ErrorBound(whole, size[0], modelled_part(whole, exact), basis, modelled_part(*size))


@torch.no_grad()
def _radii(saddle: SaddlePoint, at: AdjointPoint, kx: Tensor, q: Tensor) -> _Radii:
    """Of the exact ones around ``at``, as derived in :func:`error_bound`."""
    primal, dual, norm = saddle.require_strong_convexity(), saddle.require_dual_convexity(), saddle.norm
    unit = saddle.operator.eps(at.x.dtype) / 2
    curvature = saddle.g.smoothness if math.isfinite(saddle.g.smoothness) else primal
    rounding = unit * ((curvature + norm**2 / dual) * per_image_norm(at.X) + at.residual)
    # two rows from here: the bound, and what it is without rounding errors
    residual = torch.stack([at.residual + rounding, proved_part(at.residual, at.adjoint_rounding)])
    eps = torch.stack([at.error, proved_part(at.error, at.error_rounding)])
    eps_s, dual_error = norm * eps, _dual_error(saddle, at, kx, eps)
    solved = residual / primal
    t_g, proved_g = _finite(saddle.g.variation(at.X)[1] + _product(saddle.g.hessian_lipschitz, solved))
    t_f, proved_f = _finite(saddle.f.variation(q)[1] + _product(saddle.f.hessian_lipschitz, norm * solved))
    # what is computed is linearized where x and Kx are rounded to, as in Energy.adjoint_rounding
    moved = 4 * unit * (t_g[0] + norm**2 * t_f[0]) * per_image_norm(at.x)
    residual = torch.stack([residual[0] + moved, residual[1]])
    solved = residual / primal
    a = ((t_g + at.smoothness / saddle.spread) * eps + norm * t_f * eps_s) / math.sqrt(primal)
    b = at.dual_smoothness * dual_error / math.sqrt(dual)
    root = torch.hypot(a, b)
    d_x = solved + (a + root) / (2 * math.sqrt(primal))
    d_y = 2 * residual / math.sqrt(primal * dual) + (b + root) / (2 * math.sqrt(dual))
    d_y = d_y + at.dual_smoothness * dual_error / dual + t_f * eps_s
    # the residual is that of X, and of Y = f''(Kx) q, from which the Y of a fixed number of iterations differs
    d_y = d_y + per_image_norm(at.Y - saddle.f.hessian(kx)(q))
    return _Radii(eps, eps_s, dual_error, d_x, d_y, proved_g and proved_f)


def _dual_error(saddle: SaddlePoint, at: AdjointPoint, kx: Tensor, eps: Tensor) -> Tensor:
    r"""\|\|y - y^\|\| by the primal-dual gap, or by y^ = grad f(K x^) and the Lipschitz constant of grad f.

    Two rows: with rounding errors, and without. ``eps``: bounds of the error of x in both.
    """
    dual = saddle.dual_convexity
    gap, noise = saddle.gap_parts(at.x, at.y, kx, saddle.operator.transpose(at.y))
    slope = saddle.f.grad(kx)
    sizes = per_image_norm(at.y) + per_image_norm(slope) + saddle.f.conjugate_terms(at.y) / dual
    rounding = 4 * saddle.operator.eps(at.y.dtype) * sizes
    distance, moved = per_image_norm(at.y - slope), saddle.norm * eps / dual
    by_gradient = torch.stack([distance + rounding, distance]) + moved
    return torch.fmin((2 * torch.stack([gap + noise, gap]) / dual).sqrt(), by_gradient)


def _finite(value: Tensor) -> tuple[Tensor, bool]:
    """Zero for what is not finite, and whether all was."""
    finite = torch.isfinite(value)
    return torch.where(finite, value, 0.0), bool(finite.all())


def _product(constant: float, value: Tensor) -> Tensor:
    return constant * value if math.isfinite(constant) else torch.full_like(value, math.inf)


def _chain_norm(tensor: Tensor, model: SaddleModel) -> float:
    """The spectral norm of the derivative of ``tensor`` in theta, row by row: for kernels and weights, not images."""
    if not tensor.requires_grad:
        return 0.0
    if tensor.is_leaf:
        return 1.0
    flat = tensor.flatten()
    rows = torch.eye(len(flat), dtype=flat.dtype, device=flat.device)
    grads = [
        torch.autograd.grad(flat, model.trainable(), row, retain_graph=True, allow_unused=True, materialize_grads=True)
        for row in rows
    ]
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in grads])
    return float(torch.linalg.matrix_norm(jacobian.double(), 2))
