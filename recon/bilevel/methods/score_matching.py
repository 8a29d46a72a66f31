"""Adam on mini-batches of denoising score matching."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from recon.bilevel.methods.passes import Passes
from recon.bilevel.methods.record import Record
from recon.bilevel.score_matching import ScoreMatchingObjective


class ScoreMatchingAdam(Passes[ScoreMatchingObjective], torch.optim.Adam):  # type: ignore[misc]
    """Adam on mini-batches of a :class:`ScoreMatchingObjective`; ``step(objective=...)`` is one pass over its images.

    The order of the images in pass k is decided by ``seed`` and k alone, so that a resumed training goes on with the
    same numbers. In pass k = 0, 1, ... the step is lr (k+1)^-lr_decay.

    The ``Record`` of a pass: loss is the mean over the mini-batches, each at the parameters before its step; nothing is
    inexact, so lower and upper are the same; nothing certifies that it falls.

    Parameters
    ----------
    params : iterable of tensors
        What is learned.
    lr : float
        Of Adam, in the first pass.
    batch_size : int
        Images in a mini-batch; the last one may have fewer.
    lr_decay : float
        How the step falls, at least 0.
    betas : tuple of two floats
        Of Adam.
    seed : int
        Of the order of the images.

    Raises
    ------
    ValueError
        An option is out of range, or the parameters are in several groups; in ``step``, the objective is another one.
    DivergedError
        (A ValueError, in ``step``) the gradient is not finite.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-2,
        batch_size: int = 8,
        lr_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.99),
        seed: int = 0,
    ) -> None:
        torch.optim.Adam.__init__(self, params, lr=max(lr, 0.0), betas=betas)
        self._take_passes(lr, batch_size, lr_decay, seed)

    def _check(self, objective: ScoreMatchingObjective) -> None:
        if not isinstance(objective, ScoreMatchingObjective):
            raise ValueError(
                f"ScoreMatchingAdam minimizes a ScoreMatchingObjective, not {type(objective).__name__}; "
                "InexactAdam is its relative for bilevel learning"
            )

    def _iterate(self, objective: ScoreMatchingObjective) -> Record:
        """One pass."""
        device = objective.y.device
        _, batches = self._start_pass(len(objective.y))
        return self._exact_pass(objective, batches, lambda index: objective.gradient(index.to(device)))

    def _move(self) -> None:
        torch.optim.Adam.step(self)
