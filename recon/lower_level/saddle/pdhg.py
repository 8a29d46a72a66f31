"""The primal-dual hybrid gradient method (Chambolle and Pock) for batches of saddle-point problems."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from recon.errors import at_least
from recon.lower_level.batch import PerImage, per_image_accuracy, per_image_norm
from recon.lower_level.grade import grade_bounds, modelled_part
from recon.lower_level.precision import full_precision
from recon.lower_level.saddle.iteration import Iteration
from recon.lower_level.saddle.problem import SaddlePoint, distances
from recon.lower_level.solution import RUNNING, Solved, Status
from recon.lower_level.solvers.iterate import Callback, Loop, Saved, Snapshot
from recon.lower_level.solvers.stopping import Collector, Patience

#: iterations between two evaluations of the primal-dual gap
GAP_EVERY = 5


@dataclass(frozen=True)
class SaddleSolution(Solved):
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
        return self.start(saddle, x, y, accuracy).run(callback)

    @full_precision()
    @torch.no_grad()
    def start(self, saddle: SaddlePoint, x: Tensor, y: Tensor, accuracy: float | Tensor) -> SaddleSolve:
        """A solve that has made its first step; arguments and errors are those of the call."""
        if self.certified:
            saddle.require_strong_convexity()
        return self.begin(Iteration(saddle, x, y, self.diagonal), accuracy)

    def resume(self, saddle: SaddlePoint, saved: Saved) -> SaddleSolve:
        """A solve that goes on where another one was saved.

        Parameters
        ----------
        saddle : SaddlePoint
            The same as before, of the whole batch.
        saved : mapping
            What :meth:`SaddleSolve.state_dict` returned.

        Returns
        -------
        SaddleSolve
            Its ``run()`` returns what that of the other one would have returned, bit for bit.

        Raises
        ------
        ValueError
            ``saved`` is no state of such a solve, or not one of this problem.
        """
        try:
            collected, iteration = Collector.of(saved["collected"]), int(saved["progress"]["iteration"])
            x, state, track = collected.ended["x"], saved["state"], _Track(saved["track"]["accuracy"])
            track.load(saved["track"])
            if x.shape[1] != saddle.operator.domain_size:
                raise ValueError(f"the saved x has {x.shape[1]} components, but K takes {saddle.operator.domain_size}")
            part = Iteration.of(saddle.select(collected.active), state)
        except KeyError as error:
            raise ValueError(f"this is not what a solve of {type(self).__name__} saved: {error}") from error
        return SaddleSolve(self, part, track, collected, iteration)

    @full_precision()
    @torch.no_grad()
    def begin(self, iteration: Iteration, accuracy: float | Tensor) -> SaddleSolve:
        """A solve by the steps of ``iteration``, which has made the first one."""
        goal = per_image_accuracy(accuracy, iteration.x)
        ended = {"x": iteration.x, "y": iteration.y, "s": iteration.s, **iteration.carried()}
        ended |= dict.fromkeys(("error", "dual_error", "rounding", "residual"), torch.full_like(goal, math.inf))
        ended |= dict.fromkeys(("status", "grade", "evaluations"), torch.zeros_like(goal, dtype=torch.int64))
        collected = Collector({name: tensor.clone() for name, tensor in ended.items()})
        solve = SaddleSolve(self, iteration, _Track(goal), collected)
        solve._advance()
        return solve


@dataclass(eq=False)
class SaddleSolve(Loop[SaddleSolution]):
    """One solve by PDHG, which :meth:`PDHG.resume` goes on with.

    ``method`` and ``track`` are those of the images in ``collected.active``.
    """

    solver: PDHG
    method: Iteration
    track: _Track
    collected: Collector
    iteration: int = 0

    def __post_init__(self) -> None:
        if self.iteration and self.collected.active.numel():
            self._certify()

    @torch.no_grad()
    def run(self, callback: Callback | None = None) -> SaddleSolution:
        """Go on until every image may stop; ``callback`` as in :meth:`PDHG.__call__`."""
        return super().run(callback)

    @torch.no_grad()
    def snapshot(self) -> Snapshot:
        """Where the whole batch is; tensors are not changed any more."""
        whole = self.collected.merged(x=self.method.x, evaluations=self._evaluations(), error=self.error)
        return Snapshot(self.iteration, **whole | {"x": self.method.saddle.image(whole["x"])})

    def _parts(self) -> dict[str, PerImage]:
        return {"state": self.method, "track": self.track}

    def _evaluations(self) -> Tensor:
        """Of every image that runs; K x at the start counts as one."""
        return torch.full_like(self.collected.active, self.method.cost * (self.iteration + 1))

    def _advance(self) -> None:
        method, track = self.method, self.track
        if self.solver.adaptive and self.iteration:
            method.balance(track.primal.to(method.x), track.dual.to(method.x))
        p, d = method.advance()
        track.primal, track.dual = per_image_norm(p), per_image_norm(d)
        self.iteration += 1
        self._certify()

    @full_precision()
    @torch.no_grad()
    def _certify(self) -> None:
        """What the last step is worth: both errors, that of the image without rounding errors, which it has, too."""
        method, primal, dual, noise = self.method, self.track.primal, self.track.dual, self.method.rounding()
        error, dual_error = distances(primal + noise[0], dual + noise[1], method.primal, method.dual)
        proved = distances(primal, dual, method.primal, method.dual)[0]
        if method.primal > 0:
            error, proved = error / method.saddle.spread, proved / method.saddle.spread
        if self.iteration % GAP_EVERY == 0 or self.iteration >= self.solver.max_iterations:
            error, dual_error, proved = _smaller(error, dual_error, proved, method)
        bad = ~torch.isfinite(primal + dual)
        self.error, self.dual_error = (torch.where(bad | e.isnan(), math.inf, e) for e in (error, dual_error))
        self.proved, self.noise = proved, noise

    def _finish(self, stopped: bool) -> None:
        method, track, error = self.method, self.track, self.error
        status = track.status(self.noise, error if self.solver.certified else None)
        if stopped or self.iteration >= self.solver.max_iterations:
            status[status == RUNNING] = Status.ITERATION_LIMIT
        done = status != RUNNING
        if not done.any():
            return
        rounding = modelled_part(error, self.proved)
        rest = self.collected.finish(
            done,
            **{"x": method.x, "y": method.y, "s": method.s} | method.carried(),
            error=error,
            dual_error=self.dual_error,
            rounding=rounding,
            grade=grade_bounds(error, rounding, method.saddle.working_dtype(method.x.dtype), method.saddle.basis),
            residual=torch.maximum(track.primal, track.dual),
            status=status,
            evaluations=self._evaluations(),
        )
        if rest.numel():
            method.select(rest)
            track.select(rest)

    def _result(self) -> SaddleSolution:
        return SaddleSolution(**{field.name: self.collected.ended[field.name] for field in fields(SaddleSolution)})


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


class _Track(Patience):
    """Which images may stop: ``primal`` and ``dual`` are the norms of p and d of the last step."""

    primal: Tensor
    dual: Tensor

    def status(self, noise: tuple[Tensor, Tensor], error: Tensor | None) -> Tensor:
        """Of every image that runs, ``RUNNING`` where it has to go on; ``error``: None asks the residuals."""
        p, d = self.primal, self.dual
        status = self.floor_status(torch.maximum(p / noise[0], d / noise[1]), 1.0)
        reached = torch.maximum(p + noise[0], d + noise[1]) if error is None else error
        status[reached <= self.accuracy] = Status.CONVERGED
        status[~torch.isfinite(p + d)] = Status.NOT_FINITE
        return status
