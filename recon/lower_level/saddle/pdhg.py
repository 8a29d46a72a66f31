"""The primal-dual hybrid gradient method (Chambolle and Pock) for batches of saddle-point problems."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from recon.errors import at_least
from recon.lower_level.batch import per_image_norm
from recon.lower_level.grade import grade_bounds, modelled_part
from recon.lower_level.precision import full_precision
from recon.lower_level.saddle.problem import SaddlePoint, distances
from recon.lower_level.solution import RUNNING, Status
from recon.lower_level.solvers.iterate import Callback, Snapshot, ends
from recon.lower_level.solvers.stopping import PATIENCE, merged

#: ratio of the residuals above which steps are balanced, and how fast the adaptation dies out (Goldstein et al. 2015)
IMBALANCE, DECAY = 1.5, 0.95
#: iterations between two evaluations of the primal-dual gap
GAP_EVERY = 5


@dataclass(frozen=True)
class SaddleSolution:
    """Approximate saddle points of a batch of problems, with certificates for these very points.

    x: ``(batch, n)``; y: ``(batch, m)``; s: ``(batch, m)``, a subgradient of f* at y (near Kx).
    error: certified ||u - u^|| of the images that x begins with; ||x - x^|| <= error * :attr:`SaddlePoint.spread`.
    dual_error: certified ||y - y^||. Per image; infinite where nothing is certified.
    residual: max(||p||, ||d||), see :class:`SaddlePoint`. status: values of :class:`Status`.
    evaluations: products with K and with K^T, per image: one evaluation is one of each, as a gradient of
    g(x) + f(Kx) is for the smooth solvers.
    rounding: the part of ``error`` that a model of rounding errors adds; grade: values of :class:`Grade`.
    """

    x: Tensor
    y: Tensor
    s: Tensor
    error: Tensor
    dual_error: Tensor
    residual: Tensor
    status: Tensor
    evaluations: Tensor
    rounding: Tensor
    grade: Tensor

    @property
    def converged(self) -> bool:
        """Whether every image reached the accuracy asked for."""
        return bool((self.status == Status.CONVERGED).all())


class Iteration:
    r"""The state of the method, and one step of it; every image has its own step sizes tau, sigma.

        s = prox_{f/sigma}(y/sigma + K x_bar),  y+ = y + sigma (K x_bar - s),
        x+ = prox_{tau g}(x - tau K^T y+),  x_bar = x+ + theta (x+ - x).

    By Moreau's identity y+ = prox_{sigma f*}(y + sigma K x_bar), and s is in the subdifferential of f* at y+: the
    residuals p = (x - x+)/tau and d = s - K x+ of the optimality conditions at (x+, y+) cost nothing.

    Steps: tau sigma \|\|K\|\|^2 = 1 with tau/sigma = mu_f/mu_g where both moduli are positive, and theta = 1/(1 +
    2 min(tau mu_g, sigma mu_f)): linear convergence (Chambolle and Pock 2011, Algorithm 3). ``diagonal``: tau_j,
    sigma_i the inverse absolute sums of the columns and rows of K (Pock and Chambolle 2011, alpha = 1).
    """

    #: evaluations of a step, and of the start
    cost = 1

    def __init__(self, saddle: SaddlePoint, x: Tensor, y: Tensor, diagonal: bool = False) -> None:
        self.saddle, self.x, self.y = saddle, x.detach().clone(), y.detach().clone()
        self.primal, self.dual = saddle.convexity, saddle.dual_convexity
        batch = len(x)
        sums = saddle.operator.absolute_sums() if diagonal else None
        if diagonal and sums is None:
            raise ValueError(f"{saddle.operator.name} knows no absolute_sums: no diagonal preconditioning")
        if sums is not None:
            self.tau, self.sigma = ((1 / t.clamp_min(1e-30)).to(x).expand(batch, -1) for t in sums)
        else:
            step = 1 / max(saddle.norm, 1e-30)
            self.tau = self.sigma = x.new_full((batch, 1), step)
        if self.primal > 0 and 0 < self.dual < math.inf:
            ratio = math.sqrt(self.dual / self.primal)
            self.tau, self.sigma = self.tau * ratio, self.sigma / ratio
        self.alpha = x.new_full((batch, 1), 0.5)
        self.kx = saddle.operator(self.x)
        self.kx_bar, self.s = self.kx, self.kx
        self._set_theta()

    def _set_theta(self) -> None:
        dual = self.dual if math.isfinite(self.dual) else 0.0
        tau, sigma = self.tau.amin(1, keepdim=True), self.sigma.amin(1, keepdim=True)
        self.theta = 1 / (1 + 2 * torch.minimum(tau * max(self.primal, 0.0), sigma * dual))
        self.largest = 1 / tau[:, 0].double(), 1 / sigma[:, 0].double()

    def advance(self) -> tuple[Tensor, Tensor]:
        """One step; the residuals p and d at the new point."""
        v = self.y / self.sigma + self.kx_bar
        self.s = self.saddle.f.prox(v, 1 / self.sigma)
        self.y = self.sigma * (v - self.s)
        self.kty = self.saddle.operator.transpose(self.y)
        x = self.saddle.g.prox(self.x - self.tau * self.kty, self.tau)
        kx = self.saddle.operator(x)
        p, d = (self.x - x) / self.tau, self.s - kx
        self.kx_bar = kx + self.theta * (kx - self.kx)
        self.x, self.kx = x, kx
        return p, d

    def rounding(self) -> tuple[Tensor, Tensor]:
        """First-order models of the rounding errors in p and d, per image: u (||K|| ||y|| + ||x||/tau) and alike.

        That of d also has the rounding errors of s, which may be the difference of larger terms, y/w and a centre.
        """
        unit, norm = self.saddle.operator.eps(self.x.dtype), self.saddle.norm
        x, y = per_image_norm(self.x), per_image_norm(self.y)
        terms = self.saddle.f.conjugate_terms(self.y)
        return unit * (norm * y + self.largest[0] * x), unit * (norm * x + self.largest[1] * y + terms)

    def balance(self, p: Tensor, d: Tensor) -> None:
        """Move tau/sigma, less and less, so that both residuals weigh as much in the certificate (tau sigma stays)."""
        if self.primal > 0 and 0 < self.dual < math.inf:
            p, d = p * self.primal**-0.5, d * self.dual**-0.5
        up = (p > IMBALANCE * d)[:, None]
        down = (d > IMBALANCE * p)[:, None]
        if not bool((up | down).any()):
            return
        factor = torch.where(up, 1 / (1 - self.alpha), torch.where(down, 1 - self.alpha, 1.0))
        self.tau, self.sigma = self.tau * factor, self.sigma / factor
        self.alpha = torch.where(up | down, DECAY * self.alpha, self.alpha)
        self._set_theta()

    def carried(self) -> tuple[Tensor, ...]:
        """What is kept of an image when it stops: x, y, s, and more if a subclass has more."""
        return self.x, self.y, self.s

    def gap(self) -> tuple[Tensor, Tensor]:
        """The primal-dual gap at the current point, and its rounding error."""
        return self.saddle.gap_parts(self.x, self.y, self.kx, self.kty)

    def select(self, index: Tensor) -> None:
        """Go on with the images ``index`` only."""
        self.saddle = self.saddle.select(index)
        for name in ("x", "y", "s", "kx", "kx_bar", "kty", "tau", "sigma", "alpha", "theta"):
            setattr(self, name, getattr(self, name)[index])
        self.largest = self.largest[0][index], self.largest[1][index]


class PDHG:
    r"""PDHG with certified per-image stopping, see :class:`Iteration` for its steps.

    An image is CONVERGED when its certified error is at most ``accuracy``; at the PRECISION_FLOOR when its residuals
    are no larger than their rounding errors, or within a thousand times these without a tenth of progress for a
    while; NOT_FINITE when x or y holds NaN or infinite values. Certificates: the smaller one of :func:`distances` and
    the primal-dual gap. Without a positive modulus of f* only the gap certifies x, and nothing y.

    Parameters
    ----------
    max_iterations : int
        Steps of one image after which it counts as not converged: an evaluation each, besides that of the start.
    adaptive : bool
        Balance tau/sigma by the residuals, image by image.
    diagonal : bool
        Diagonal preconditioning; K must know its ``absolute_sums``.
    certified : bool
        False asks the accuracy of max(\|\|p\|\|, \|\|d\|\|), for problems without moduli; errors are reported where
        they are known.

    Raises
    ------
    ValueError
        ``max_iterations`` is less than 1.
    """

    def __init__(
        self, max_iterations: int = 100_000, adaptive: bool = True, diagonal: bool = False, certified: bool = True
    ) -> None:
        at_least(1, max_iterations=max_iterations)
        self.max_iterations, self.adaptive = max_iterations, adaptive
        self.diagonal, self.certified = diagonal, certified

    @full_precision()
    @torch.no_grad()
    def __call__(
        self, saddle: SaddlePoint, x: Tensor, y: Tensor, accuracy: float | Tensor, callback: Callback | None = None
    ) -> SaddleSolution:
        """Solve from (x, y) to ||u - u^|| <= ``accuracy`` for the image u of x.

        Parameters
        ----------
        saddle : SaddlePoint
            The problems of the batch.
        x, y : Tensor
            Where to start, flat.
        accuracy : float or Tensor
            A number, or one per image.
        callback : callable, optional
            ``callback(snapshot)`` is told the images and their certified errors after every step, see
            :class:`recon.lower_level.Snapshot`. If it raises ``StopIteration``, images that are still running end
            there with ``Status.ITERATION_LIMIT``.

        Returns
        -------
        SaddleSolution
            Points, their certificates, and why the solver stopped.

        Raises
        ------
        NotStronglyConvexError
            A certificate is asked for and g has no positive modulus.
        """
        if self.certified:
            saddle.require_strong_convexity()
        return self.run(Iteration(saddle, x, y, self.diagonal), accuracy, callback)[0]

    @full_precision()
    @torch.no_grad()
    def run(
        self, iteration: Iteration, accuracy: float | Tensor, callback: Callback | None = None
    ) -> tuple[SaddleSolution, list[Tensor]]:
        """Advance until every image may stop; the solution, and what else the iteration carries."""
        goal = torch.as_tensor(accuracy, dtype=torch.float64, device=iteration.x.device).expand(len(iteration.x))
        if not bool((goal > 0).all()):
            raise ValueError(f"the accuracy asked for is {float(goal.min()):g}, but must be positive")
        collected, track = _Collected(iteration), _Track(goal)
        steps = 0
        while True:
            p, d = iteration.advance()
            steps += 1
            primal, dual = per_image_norm(p), per_image_norm(d)
            noise = iteration.rounding()
            error, dual_error = distances(primal + noise[0], dual + noise[1], iteration.primal, iteration.dual)
            proved = distances(primal, dual, iteration.primal, iteration.dual)[0]
            if iteration.primal > 0:
                error, proved = error / iteration.saddle.spread, proved / iteration.saddle.spread
            if steps % GAP_EVERY == 0 or steps >= self.max_iterations:
                error, dual_error, proved = _smaller(error, dual_error, proved, iteration)
            status = track.status(primal, dual, noise, error if self.certified else None)
            bad = ~torch.isfinite(primal + dual)
            status[bad] = Status.NOT_FINITE
            error, dual_error = (torch.where(bad | e.isnan(), math.inf, e) for e in (error, dual_error))
            stopped = ends(callback, partial(collected.snapshot, steps, iteration, error))
            if stopped or steps >= self.max_iterations:
                status[status == RUNNING] = Status.ITERATION_LIMIT
            done = status != RUNNING
            if done.any():
                rounding = modelled_part(error, proved)
                dtype = iteration.saddle.working_dtype(iteration.x.dtype)
                grade = grade_bounds(error, rounding, dtype, iteration.saddle.basis)
                numbers = (error, dual_error, rounding, torch.maximum(primal, dual))
                values = (*numbers, status, grade, *iteration.carried())
                rest = collected.finish(done, values, steps, iteration)
                if rest.numel() == 0:
                    return collected.solution()
                iteration.select(rest)
                track.select(rest)
                primal, dual = primal[rest], dual[rest]
            if self.adaptive:
                iteration.balance(primal.to(iteration.x), dual.to(iteration.x))


def _smaller(error: Tensor, dual_error: Tensor, proved: Tensor, iteration: Iteration) -> tuple[Tensor, Tensor, Tensor]:
    """The certificates or, where they are smaller, those of the primal-dual gap; the last without rounding errors."""
    (gap, noise), image = iteration.gap(), iteration.saddle.image_convexity
    if image > 0:
        by_gap = (2 * (gap + noise) / image).sqrt()
        proved = torch.where(by_gap < error, (2 * gap / image).sqrt(), proved)
        error = torch.fmin(error, by_gap)
    if iteration.dual > 0:
        dual_error = torch.fmin(dual_error, (2 * (gap + noise) / iteration.dual).sqrt())
    return error, dual_error, proved


class _Track:
    """Which images may stop."""

    def __init__(self, goal: Tensor) -> None:
        self.goal = goal.clone()
        self.best, self.stale = torch.full_like(goal, math.inf), torch.zeros_like(goal)

    def status(self, p: Tensor, d: Tensor, noise: tuple[Tensor, Tensor], error: Tensor | None) -> Tensor:
        size, floor = torch.maximum(p / noise[0], d / noise[1]), 1.0
        better = size <= 0.9 * self.best
        self.best = torch.where(better, size, self.best)
        self.stale = torch.where(better, 0.0, self.stale + 1)
        status = torch.full_like(p, RUNNING, dtype=torch.int64)
        status[size <= floor] = Status.PRECISION_FLOOR
        status[(self.stale >= PATIENCE) & (size <= 1000 * floor)] = Status.PRECISION_FLOOR
        reached = torch.maximum(p + noise[0], d + noise[1]) if error is None else error
        status[reached <= self.goal] = Status.CONVERGED
        return status

    def select(self, index: Tensor) -> None:
        self.goal, self.best, self.stale = self.goal[index], self.best[index], self.stale[index]


def _spent(steps: int, iteration: Iteration) -> int:
    """Evaluations after so many steps."""
    return iteration.cost * (steps + 1)  # K x at the start counts as one


class _Collected:
    """Gathers the images of a batch as they finish, each at its own time."""

    def __init__(self, iteration: Iteration) -> None:
        batch = len(iteration.x)
        number = torch.full((batch,), math.inf, dtype=torch.float64, device=iteration.x.device)
        count = torch.zeros(batch, dtype=torch.int64, device=iteration.x.device)
        self.values = [t.clone() for t in (*4 * (number,), count, count, *iteration.carried())]
        self.evaluations = count.clone()
        self.active = torch.arange(batch, device=iteration.x.device)

    def finish(self, done: Tensor, values: tuple[Tensor, ...], evaluations: int, iteration: Iteration) -> Tensor:
        """Store the images where ``done`` holds; returns the positions of those that go on."""
        index = self.active[done]
        for mine, new in zip(self.values, values, strict=True):
            mine[index] = new[done]
        self.evaluations[index] = _spent(evaluations, iteration)
        rest = torch.nonzero(~done).flatten()
        self.active = self.active[rest]
        return rest

    def snapshot(self, steps: int, iteration: Iteration, error: Tensor) -> Snapshot:
        """The whole batch, given the errors of the images that still run."""
        running = iteration.x, torch.full_like(self.active, _spent(steps, iteration)), error
        known, _, _, _, _, _, x, *_ = self.values
        x, evaluations, error = merged(self.active, running, (x, self.evaluations, known))
        return Snapshot(steps, iteration.saddle.image(x), evaluations, error)

    def solution(self) -> tuple[SaddleSolution, list[Tensor]]:
        error, dual_error, rounding, residual, status, grade, x, y, s, *more = self.values
        solution = SaddleSolution(x, y, s, error, dual_error, residual, status, self.evaluations, rounding, grade)
        return solution, more
