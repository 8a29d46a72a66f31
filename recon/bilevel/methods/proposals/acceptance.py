"""Whether the loss is smaller at a point that was proposed: by the intervals of all images, or of a sample."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recon.bilevel.evaluation import Accuracy, Evaluation
from recon.bilevel.methods.method import assign
from recon.bilevel.methods.proposals.sampling import KAPPA, deviation
from recon.bilevel.objective import InexactObjective

#: of the decrease seen, for the interval at each end
SHARE = 0.4
#: times that intervals are shortened before a point is given up
MOST = 8


@dataclass
class Trial:
    """Two points and what is known there; theta is at the point.

    objective: where; theta, point: the parameters that are accepted, and those that are proposed; current, new: the
    evaluations there; accuracy: what was asked of the new one; promise: by how much the loss has to fall; second:
    whether by certificates of second order; expected: a guess of the decrease; sample: the images that
    :meth:`by_sample` has looked at last.
    """

    objective: InexactObjective
    theta: Tensor
    point: Tensor
    current: Evaluation
    new: Evaluation
    accuracy: Accuracy
    promise: float
    second: bool
    expected: float = 0.0
    sample: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    @property
    def certain(self) -> bool:
        """U(new) + promise <= L(current): the exact loss has fallen by at least the promise."""
        return self.new.upper + self.promise <= self.current.lower

    @property
    def decrease(self) -> float:
        """That of the values."""
        return self.current.value - self.new.value

    def by_all(self) -> bool:
        """Whether the exact loss falls, by the intervals of all images, shortened as far as the decrease seen needs."""
        for k in range(MOST):
            if self.certain:
                return True
            if not self.decrease > self.promise or not self._shorten(SHARE * 0.5**k * self.decrease):
                return False
        return self.certain

    def _shorten(self, margin: float) -> bool:
        """Refine what is not as certain as ``margin``; whether the solvers had anything to do."""
        changed = False
        if self.new.upper - self.new.value > margin and not self.new.at_precision_floor:
            self.new, changed = self._refined(self.new, margin), True
        if self.current.value - self.current.lower > margin and not self.current.at_precision_floor:
            with self._back():
                self.current, changed = self._refined(self.current, margin), True
        return changed

    def _refined(self, evaluation: Evaluation, margin: float) -> Evaluation:
        accuracy = self.objective.cheapest_accuracy(evaluation, margin, self.second)
        return self.objective.refine(evaluation, accuracy, self.second)

    @contextlib.contextmanager
    def _back(self) -> Iterator[None]:
        """At theta for a while."""
        assign(self.objective.params, self.theta)
        try:
            yield
        finally:
            assign(self.objective.params, self.point)

    # --- by a sample -------------------------------------------------------------------------------------------------

    def by_sample(self, orders: Iterator[Tensor], first: int, deltas: Iterator[float]) -> bool:
        r"""Whether the loss falls, but for the probabilities of ``deltas``, one for every look.

        The losses of all N images change by X_i in [m_i - r_i, m_i + r_i], by the intervals that are known of each.
        Those of a sample S are made shorter, X_i <= h_i, at an accuracy that is decided before S is drawn, so that h_i
        is a number of the image. Then Z_i = min(h_i - m_i, r_i) is in [-r, r], r = max r_i, and, but for delta,

            mean X_i <= mean m_i + mean_S Z_i + deviation(Z_S, N, 2 r).

        The sample is doubled until that decides. Where the h_i are too inaccurate for it, another one is drawn for more
        accurate ones; where all images have been looked at, nothing is left to chance.

        Parameters
        ----------
        orders : iterator of tensors
            The images in random orders; samples are beginnings of them.
        first : int
            The least number of images of a sample.
        deltas : iterator of floats
            With what probability a look may be wrong.

        Returns
        -------
        bool
            Whether the bound and the promise are at most 0.
        """
        expected = max(self.decrease, self.expected)
        for _ in range(MOST):
            self.accuracy = self.objective.cheapest_accuracy(self.current, 0.5 * SHARE * expected, self.second)
            found = self._in_order(next(orders), first, deltas, expected)
            if isinstance(found, bool):
                return found
            expected = found
        return self.by_all()

    def _in_order(self, order: Tensor, first: int, deltas: Iterator[float], expected: float) -> bool | float:
        """Whether the loss falls, or which decrease accuracies have to be made for before that can be said."""
        middle, radius = self._changes()
        width, count = 2 * float(radius.max()), len(order)
        if not math.isfinite(width):
            return self.by_all()
        delta, n = next(deltas), first
        while KAPPA * width * math.log(5 / delta) > n * expected and n < count:
            n *= 2  # nothing could come of fewer
        self.sample = order[:0]
        while True:
            n = min(n, count)
            self._look(order[len(self.sample) : n])
            self.sample = order[:n]
            highest, value = self._highest()[self.sample], self._change()[self.sample]
            z = torch.minimum(highest - middle[self.sample], radius[self.sample])
            if float(middle.mean() + z.mean()) + self.promise + deviation(z, count, width, delta) <= 0:
                return True
            if n == count:  # nothing is left to chance, only to accuracies
                return self.by_all()
            decrease = -float(middle.mean() + (value - middle[self.sample]).mean())
            if float((highest - value).mean()) > 0.5 * abs(decrease):
                return max(abs(decrease), self.promise, 1e-300)
            if decrease <= self.promise:
                return False
            delta, n = next(deltas), 2 * n

    def _change(self) -> Tensor:
        """X of all images, as it was computed."""
        return self.new.intervals.value - self.current.intervals.value

    def _changes(self) -> tuple[Tensor, Tensor]:
        """m and r of all images."""
        old, new = self.current.intervals, self.new.intervals
        lowest = (new.value - new.below) - (old.value + old.above)
        return (lowest + self._highest()) / 2, (self._highest() - lowest) / 2

    def _highest(self) -> Tensor:
        """The upper end of X for all images."""
        old, new = self.current.intervals, self.new.intervals
        return (new.value + new.above) - (old.value - old.below)

    def _look(self, index: Tensor) -> None:
        """Refine these images at both points."""
        part, accuracy = self.objective.subset(index), self.accuracy.select(index)
        self.new = self.new.with_images(index, part.refine(self.new.select(index), accuracy, self.second))
        with self._back():
            at = part.refine(self.current.select(index), accuracy, self.second)
        self.current = self.current.with_images(index, at)
        self.objective.evaluations += part.evaluations * len(index) / len(self.objective.y)
