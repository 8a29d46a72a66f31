"""The accelerated primal-dual method for total variation: when to look at the certificate, and when to stop."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from recon.errors import at_least
from recon.lower_level.grade import Grade, grade_bounds
from recon.lower_level.solution import RUNNING, Status
from recon.lower_level.solvers.iterate import Callback, Snapshot, ends
from recon.lower_level.solvers.total_variation.certificate import GapCertificate, Middle
from recon.lower_level.solvers.total_variation.iteration import Step, Stepper, stepper, transpose
from recon.lower_level.solvers.total_variation.problem import TotalVariationProblem, TotalVariationSolution

#: what steps take for the modulus, relative to it: with half of it the certificate falls as soon, and x sooner
MODULUS = 0.5
#: the first tau, in units of the inverse largest weight
FIRST_TAU = 1.0
#: steps before the first look at the certificate, which costs as much as five; later half as many at least
FIRST_LOOK = 16
#: the power of the steps that certificates fall with, until two of them say which
USUAL_POWER = 1.5
#: images are at their floor if the certificate has fallen by less than a tenth while the steps doubled, and is within
#: this factor of what rounding errors of x make of it
NEAR = 30.0


class TotalVariationSolver:
    r"""Minimizers of total variation, by the accelerated primal-dual method (Chambolle and Pock 2011, Algorithm 2).

    Points are certified by the primal-dual gap (docs/mathematics.md, ``certificate.py``), which is looked at when its
    fall so far says that it suffices. An image is CONVERGED when its certified distance is at most ``accuracy``:
    ``error``, or where weights are zero ``error_weighted``; at the PRECISION_FLOOR when its type of numbers allows no
    smaller one. Images do not know of each other: bits depend neither on the batch nor on the number of threads.

    Parameters
    ----------
    max_iterations : int
        Steps of one image after which it counts as not converged.

    Raises
    ------
    ValueError
        ``max_iterations`` is less than 1.
    """

    def __init__(self, max_iterations: int = 100_000) -> None:
        at_least(1, max_iterations=max_iterations)
        self.max_iterations = max_iterations

    def __call__(
        self,
        problem: TotalVariationProblem,
        accuracy: float | Tensor,
        start: TotalVariationSolution | None = None,
        callback: Callback | None = None,
    ) -> TotalVariationSolution:
        """Solve to a certified distance of ``accuracy``.

        Parameters
        ----------
        problem : TotalVariationProblem
            The images.
        accuracy : float or Tensor
            A number, or one per image.
        start : TotalVariationSolution, optional
            Where to begin, e.g. the solution with another alpha.
        callback : callable, optional
            ``callback(snapshot)`` is told the batch whenever a certificate has been looked at, see
            :class:`recon.lower_level.Snapshot`. If it raises ``StopIteration``, images that are still running end
            there with ``Status.ITERATION_LIMIT``.

        Returns
        -------
        TotalVariationSolution
            Of the whole batch.

        Raises
        ------
        ValueError
            ``accuracy`` is not positive, or does not fit the batch, as ``start`` may.
        """
        batch = len(problem.y)
        goal = torch.as_tensor(accuracy, dtype=torch.float64).cpu()
        if goal.numel() not in (1, batch) or goal.ndim > 1:
            raise ValueError(f"needs one accuracy, or one for each of {batch} images, got {tuple(goal.shape)}")
        if not bool((goal > 0).all()):
            raise ValueError(f"the accuracy asked for is {float(goal.min()):g}, but must be positive")
        if start is not None and start.x.shape != problem.y.shape:
            raise ValueError(f"start is for images {tuple(start.x.shape)}, but y is {tuple(problem.y.shape)}")
        goals, told = goal.expand(batch).tolist(), _Told(problem.y, callback)
        runs = [_Run(problem, index, goals[index], self.max_iterations) for index in range(batch)]

        def solve(run: _Run) -> _Ended:
            return run.solve(start, told)

        # kernels let other threads run; where torch computes, they share its own
        threads = 1 if callback is not None else min(batch, torch.get_num_threads())
        if threads <= 1:
            return _solution(problem, [solve(run) for run in runs])
        with ThreadPoolExecutor(threads) as pool:
            return _solution(problem, list(pool.map(solve, runs)))


class _Told:
    """What the callback is told of the whole batch."""

    def __init__(self, y: Tensor, callback: Callback | None) -> None:
        self.callback, self.stopped, self.looks = callback, False, 0
        if callback is not None:
            self.x = y.detach().clone()
            self.evaluations = torch.zeros(len(y), dtype=torch.int64)
            self.error = torch.full((len(y),), math.inf, dtype=torch.float64)

    def __call__(self, index: int, x: Tensor, evaluations: int, error: float) -> bool:
        """Whether the solve is to end."""
        if self.callback is not None and not self.stopped:
            self.x[index], self.evaluations[index], self.error[index] = x, evaluations, error
            self.stopped = ends(self.callback, self._snapshot)
            self.looks += 1
        return self.stopped

    def _snapshot(self) -> Snapshot:
        return Snapshot(self.looks, self.x.clone(), self.evaluations.clone(), self.error.clone())


class _Ended(NamedTuple):
    """An image that has stopped; numbers in the scale of the problem."""

    x: Tensor
    gradient: Tensor
    p: Tensor
    status: Status
    evaluations: int
    error: float
    rounding: float
    weighted: float
    gap: float


class _Run:
    """The solve of one image."""

    def __init__(self, problem: TotalVariationProblem, index: int, goal: float, limit: int) -> None:
        self.index, self.goal, self.limit = index, goal, limit
        self.image, self.scale = problem.image(index)
        self.modulus = float(problem.modulus[index])
        self.certificate = GapCertificate(self.image)

    @torch.no_grad()
    def solve(self, start: TotalVariationSolution | None, told: _Told) -> _Ended:
        """Steps and looks, until it may stop."""
        # from another solution, too: a tau that has fallen takes long for what is smooth
        iterating, tau = self._begin(start), FIRST_TAU
        looks: list[tuple[int, float]] = []
        # at a cold start there is nothing to see
        done, due, best = 0, min(FIRST_LOOK, self.limit) if start is None else 0, None
        while True:
            steps = self._steps(tau, due - done)
            iterating.advance(steps)
            tau, done = steps[-1].primal * steps[-1].theta if steps else tau, due
            found = self.certificate.look(iterating)
            best = found if best is None or not found.weighted >= best.weighted else best
            looks.append((done, best.weighted))
            error = self._distance(best)
            stopped = told(self.index, best.x, done + len(looks), error)
            status = self._status(best, error, looks, stopped)
            if status != RUNNING:
                return self._end(iterating, best, Status(status), done + len(looks))
            due = min(self._next(looks, error), self.limit)

    def _begin(self, start: TotalVariationSolution | None) -> Stepper:
        image = self.image
        p = torch.zeros(2, *image.y.shape, dtype=image.y.dtype, device=image.y.device)
        if start is not None:
            p[0, :, :-1] = start.dual[self.index, 0, :, :-1]
            p[1, :, :, :-1] = start.dual[self.index, 1, :, :, :-1]
        iterating = stepper(image, image.y.clamp(image.low, image.high), p)
        if start is not None:
            iterating.move(iterating.certify()[0])
        return iterating

    def _steps(self, tau: float, count: int) -> list[Step]:
        r"""Tau sigma \|\|D\|\|^2 <= 1 with \|\|D\|\|^2 <= 8; tau falls where the modulus is positive."""
        modulus, steps = MODULUS * self.modulus / self.scale, []
        for _ in range(count):
            theta = 1 / math.sqrt(1 + 2 * modulus * tau)
            steps.append(Step(1 / (8 * tau * self.image.alpha) if self.image.alpha else 0.0, tau, theta))
            tau *= theta
        return steps

    def _distance(self, found: Middle) -> float:
        """The bound that ``accuracy`` asks for."""
        if self.modulus > 0:
            return found.weighted * math.sqrt(self.scale / self.modulus) + found.output
        return self._weighted(found)

    def _weighted(self, found: Middle) -> float:
        return (found.weighted + found.output) * math.sqrt(self.scale)

    def _status(self, found: Middle, error: float, looks: list[tuple[int, float]], stopped: bool) -> int:
        done = looks[-1][0]
        if not math.isfinite(error):
            return Status.NOT_FINITE
        if error <= self.goal:
            return Status.CONVERGED
        earlier = [weighted for steps, weighted in looks if 2 * steps <= done]
        stale = done >= 8 * FIRST_LOOK and found.weighted > 0.9 * min(earlier, default=math.inf)
        if found.rounding > 0.5 * found.weighted or (stale and found.weighted**2 <= NEAR**2 * self.certificate.floor):
            return Status.PRECISION_FLOOR
        return Status.ITERATION_LIMIT if stopped or done >= self.limit else RUNNING

    def _next(self, looks: list[tuple[int, float]], error: float) -> int:
        """When to look again: where the certificate suffices if it goes on to fall like a power of the steps."""
        done, now = looks[-1]
        power = USUAL_POWER
        if len(looks) > 1 and looks[-2][0] > 0 and looks[-2][1] > now:
            power = math.log(looks[-2][1] / now) / math.log(done / looks[-2][0])
        guess = done * (error / self.goal) ** (1 / min(max(power, 0.5), 3.0))
        return math.ceil(max(min(guess, 3 * done), 1.05 * done, done + FIRST_LOOK / 2))

    def _end(self, iterating: Stepper, found: Middle, status: Status, evaluations: int) -> _Ended:
        """What is said of an image, in the scale of the problem; the gap is that of the very x that is returned."""
        image, p, known = self.image, iterating.p, self.modulus > 0
        pull = found.x - image.y if image.weights is None else image.weights * (found.x - image.y)
        return _Ended(
            x=found.x,
            gradient=self.scale * (pull + image.alpha * transpose(p)),
            p=p,
            status=status,
            evaluations=evaluations,
            error=self._distance(found) if known else math.inf,
            rounding=found.rounding * math.sqrt(self.scale / self.modulus) if known else math.inf,
            weighted=self._weighted(found),
            gap=self.scale * self.certificate.gap(found.x, p),
        )


def _solution(problem: TotalVariationProblem, ended: list[_Ended]) -> TotalVariationSolution:
    """Of the whole batch, on its device."""
    y = problem.y

    def images(parts: list[Tensor], *shape: int) -> Tensor:
        return torch.stack(parts) if parts else y.new_zeros(0, *shape)

    def numbers(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=y.device)

    def counts(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=y.device)

    error, rounding = numbers([e.error for e in ended]), numbers([e.rounding for e in ended])
    return TotalVariationSolution(
        x=images([e.x for e in ended], *y.shape[1:]),
        gradient=images([e.gradient for e in ended], *y.shape[1:]),
        error=error,
        status=counts([int(e.status) for e in ended]),
        evaluations=counts([e.evaluations for e in ended]),
        rounding=rounding,
        # all of the certificate is in double precision, whatever the type of x
        grade=grade_bounds(error, rounding, torch.float64, Grade.PROVED),
        dual=images([e.p for e in ended], 2, *y.shape[1:]),
        error_weighted=numbers([e.weighted for e in ended]),
        gap=numbers([e.gap for e in ended]),
    )
