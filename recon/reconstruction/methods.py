"""Methods of reconstruction: their interface, what is asked of them, what they return; those that solve nothing."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from recon.lower_level import Snapshot, Solution, Status
from recon.operators import LinearOperator
from recon.reconstruction.problem import Data
from recon.reconstruction.reconstructor import Reconstructor, naive_reconstruction

#: the status of results that nothing is certified of
NOT_CERTIFIED = "not certified"

#: is told the phase, the number of evaluations and the distance that is certified, on the scale of x
Watch = Callable[[str, int, float], None]
#: is told the distance that is certified at every evaluation
WatchError = Callable[[float], None]


def told(watch: WatchError | None) -> Callable[[Snapshot], None] | None:
    """The callback of a solver that tells ``watch`` the certified distance of the whole batch."""
    return None if watch is None else lambda snapshot: watch(float(snapshot.error.norm()))


@dataclass(frozen=True)
class Request:
    """What is asked of a reconstruction.

    Parameters
    ----------
    accuracy : float, optional
        Certified ||x - x^|| in the unit of the result; None leaves it to the method.
    weight : float, optional
        Of the regularizer; None leaves R as it is, or to ``choose``.
    choose : {"discrepancy", "sweep"}, optional
        How to find the weight; None is as trained, or the discrepancy principle for what was not.
    quality : callable, optional
        Of images x, what a sweep makes as large as possible.
    nonnegative : bool
        Whether to minimize over x >= 0. Methods that minimize nothing do not regard it.
    """

    accuracy: float | None = None
    weight: float | None = None
    choose: str | None = None
    quality: Callable[[Tensor], float] | None = None
    nonnegative: bool = False


@dataclass(frozen=True)
class Reconstruction:
    """Images with what is certified of them, on the scale of x.

    Parameters
    ----------
    solution : Solution
        Its error is infinite where nothing is certified, and its gradient NaN where nothing is minimized.
    """

    solution: Solution

    @property
    def certifies(self) -> bool:
        """Whether the method bounds errors."""
        return False

    @property
    def status(self) -> str:
        """Of the first image, in words."""
        return Status(int(self.solution.status[0])).name.lower().replace("_", " ")


class Method(ABC):
    """Reconstructs images from data."""

    @abstractmethod
    def reconstruct(self, problem: Data, request: Request, watch: Watch | None = None) -> Reconstruction:
        """Images of the data of ``problem``.

        Parameters
        ----------
        problem : Data
            Data and operator; choosing a weight takes the noise of a :class:`recon.reconstruction.Problem`.
        request : Request
            What is asked for.
        watch : callable, optional
            See ``Watch``.

        Returns
        -------
        Reconstruction
            What was found.

        Raises
        ------
        ValueError
            The problem does not fit the method, or it has no place for what is asked.
        """


class OnePass(Method):
    """What reconstructs without solving anything: nothing is certified, and there is no weight."""

    @torch.no_grad()
    def reconstruct(self, problem: Data, request: Request, watch: Watch | None = None) -> Reconstruction:
        return Reconstruction(uncertified(self.image(problem.y, problem.operator)))

    @abstractmethod
    def image(self, y: Tensor, operator: LinearOperator) -> Tensor:
        """The images of data y."""


@dataclass(frozen=True)
class Direct(OnePass):
    """Filtered back-projection for ray transforms, y itself for the identity, and A^T y / ||A||^2 (zero-filled) else.

    Parameters
    ----------
    filter, frequency_scaling
        Of filtered back-projection, see :class:`recon.operators.FilteredBackProjection`.
    """

    filter: str = "hann"
    frequency_scaling: float = 1.0

    def image(self, y: Tensor, operator: LinearOperator) -> Tensor:
        return naive_reconstruction(y, operator, self.filter, self.frequency_scaling)


@dataclass(frozen=True)
class Network(OnePass):
    """A network that reconstructs in one pass.

    Parameters
    ----------
    reconstructor : Reconstructor
        The network, on the device and in the precision of the data.
    """

    reconstructor: Reconstructor

    def image(self, y: Tensor, operator: LinearOperator) -> Tensor:
        x: Tensor = self.reconstructor(y, operator)
        return x


def uncertified(
    x: Tensor, gradient: Tensor | None = None, evaluations: int = 0, status: Status = Status.CONVERGED
) -> Solution:
    """Images that nothing is known of, with this ``status`` where they are finite."""
    finite = torch.isfinite(x).flatten(1).all(1)
    return Solution(
        x,
        torch.full_like(x, math.nan) if gradient is None else gradient,
        torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device),
        torch.where(finite, int(status), int(Status.NOT_FINITE)),
        torch.full((len(x),), evaluations, device=x.device),
    )
