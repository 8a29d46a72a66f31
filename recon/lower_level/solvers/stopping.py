"""When the iteration of one image may stop, and what is certified then."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from recon.lower_level.batch import PerImage, per_image_accuracy, per_image_norm
from recon.lower_level.energy import Energy
from recon.lower_level.grade import grade_bounds
from recon.lower_level.solution import RUNNING, Status
from recon.lower_level.solvers.compiled.descent import norms
from recon.lower_level.solvers.compiled.library import usable
from recon.lower_level.solvers.compiled.stopping import StoppingTest

# Evaluations without progress near the rounding error after which an image is at its floor. FISTA's gradients ripple
# with a period of about sqrt(L / mu) evaluations, which stays below this wherever single precision is of use.
PATIENCE = 100


class Patience(PerImage):
    """Which images are at the floor of their precision; ``best``, ``stale``: the smallest residual, and since when."""

    def __init__(self, accuracy: Tensor) -> None:
        self.accuracy = accuracy
        self.patience = PATIENCE
        self.best, self.stale = torch.full_like(accuracy, math.inf), torch.zeros_like(accuracy)

    def floor_status(self, size: Tensor, floor: Tensor | float) -> Tensor:
        """PRECISION_FLOOR for residuals within their rounding errors ``floor``, or near them for long; else RUNNING."""
        better = size <= 0.9 * self.best
        self.best = torch.where(better, size, self.best)
        self.stale = torch.where(better, 0.0, self.stale + 1)
        status = torch.full_like(size, RUNNING, dtype=torch.int64)
        status[size <= floor] = Status.PRECISION_FLOOR
        status[(self.stale >= self.patience) & (size <= 1000 * floor)] = Status.PRECISION_FLOOR
        return status


class Stopping(Patience):
    r"""Per-image stopping by the certificate \|\|x - x^\|\| <= (\|\|grad h(x)\|\| + rounding) / mu.

    An image is CONVERGED when the certificate is below ``accuracy``; it is at the PRECISION_FLOOR when the computed
    gradient is no larger than its own rounding error, which no further iteration can improve, or within a thousand
    times this and has not fallen by a tenth in ``PATIENCE`` evaluations: the model of the rounding error knows the
    energy, not how an operator computes.
    With ``certified=False`` the accuracy is asked of \|\|grad h\|\| itself, and the reported error is infinite unless
    the energy is known to be strongly convex. It is also infinite where the adjoint is not the exact transpose
    (:attr:`recon.operators.LinearOperator.adjoint_exact`): what is computed is no gradient then.
    """

    def __init__(self, energy: Energy, accuracy: float | Tensor, x0: Tensor, certified: bool = True) -> None:
        energy.check_start(x0)
        super().__init__(per_image_accuracy(accuracy, energy.y))
        modulus = energy.require_strong_convexity() if certified else energy.strong_convexity
        self.mu = modulus if modulus > 0 else math.nan
        self.scale = self.mu if certified else 1.0
        self._of: Energy | None = None

    def certificate(self, energy: Energy, x: Tensor, sizes: Tensor) -> Certificate:
        """The certified distance of x to the minimizer, for :func:`norms_of` what is left of the gradient, and x."""
        return certificate(energy, x, sizes[:, 0], self.mu)

    def status(
        self,
        energy: Energy,
        x: Tensor,
        sizes: Tensor,
        stalled: Tensor | None = None,
        evaluations: Tensor | None = None,
        most: int = 0,
    ) -> Tensor | None:
        """Status of every image still running, ``RUNNING`` where it has to go on; or None, if all have to.

        Parameters
        ----------
        energy, x
            Where the images are.
        sizes : Tensor
            Norms of what is left of the gradient, and of x, see :func:`norms_of`.
        stalled : Tensor, optional
            Images that cannot make progress any more.
        evaluations, most
            What images have spent, if there is a limit, and this limit.
        """
        if self._of is not energy:  # that of fewer images, maybe
            self._model, kernel = energy.rounding_model(x), usable(x)
            self._of, self._test = energy, None if kernel is None else StoppingTest(kernel, self, self._model)
        if self._test is not None:
            return self._test(sizes, stalled, evaluations, most)
        norm, size = sizes.unbind(1)
        rounding = self._model.at(size, norm)
        status = self.floor_status(norm, rounding)
        status[norm + rounding <= self.scale * self.accuracy] = Status.CONVERGED
        status[~torch.isfinite(norm)] = Status.NOT_FINITE
        if stalled is not None:
            status[stalled & (status == RUNNING)] = Status.PRECISION_FLOOR
        if evaluations is not None:
            status[(evaluations >= most) & (status == RUNNING)] = Status.ITERATION_LIMIT
        return status


def norms_of(left: Tensor, x: Tensor) -> Tensor:
    """Of two tensors of images, in this order, ``(images, 2)``, float64."""
    if left.shape == x.shape and left.dtype == x.dtype and (kernel := usable(x)) is not None:
        return norms(kernel, left, x)
    return torch.stack((per_image_norm(left), per_image_norm(x)), 1)


class Certificate(NamedTuple):
    """error, its modelled part, and its grade, per image: see :class:`recon.lower_level.Solution`."""

    error: Tensor
    rounding: Tensor
    grade: Tensor


def certificate(energy: Energy, x: Tensor, norm: Tensor, modulus: float) -> Certificate:
    """(norm + rounding) / modulus for the norms of what is left of the gradient; infinite without an exact adjoint."""
    rounding = energy.rounding(x, norm) / modulus
    error = norm / modulus + rounding
    known = torch.isfinite(error) & energy.operator.adjoint_exact
    error, rounding = (torch.where(known, v, torch.inf) for v in (error, rounding))
    return Certificate(error, rounding, grade_bounds(error, rounding, energy.working_dtype(x.dtype), energy.basis))


class Collector:
    """Gathers the images of a batch as they finish, each at its own time.

    Parameters
    ----------
    ended : dict of Tensor
        What there is to say of every image, by name, ``(batch, ...)``: tensors that are changed as images finish.

    Attributes
    ----------
    active : Tensor
        The images that have not finished.
    """

    def __init__(self, ended: dict[str, Tensor]) -> None:
        self.ended = ended
        some = next(iter(ended.values()))
        self.active = torch.arange(len(some), device=some.device)

    def finish(self, done: Tensor, **values: Tensor) -> Tensor:
        """Store what there is to say of the images where ``done`` holds; returns the positions of those that go on."""
        index = self.active[done]
        for name, value in values.items():
            self.ended[name][index] = value[done]
        rest = torch.nonzero(~done).flatten()
        self.active = self.active[rest]
        return rest

    def merged(self, **running: Tensor) -> dict[str, Tensor]:
        """Tensors of the whole batch from those of the images that go on, and what others ended with."""
        if len(self.active) == len(next(iter(self.ended.values()))):
            return running
        whole = {name: self.ended[name].clone() for name in running}
        for name, tensor in running.items():
            whole[name][self.active] = tensor
        return whole

    def tensors(self) -> dict[str, Tensor]:
        """All that a solve needs to go on, by name."""
        return {**self.ended, "active": self.active}

    @classmethod
    def of(cls, saved: Mapping[str, Tensor]) -> Collector:
        """One from what :meth:`tensors` returned."""
        ended = {name: tensor.clone() for name, tensor in saved.items()}
        active = ended.pop("active")
        collector = cls(ended)
        collector.active = active
        return collector
