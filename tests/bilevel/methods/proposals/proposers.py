"""Proposers that do what a test wants."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from recon.bilevel import CertifiedLoss, InexactObjective, Progress, Record, UpperLevelMethod
from recon.bilevel.methods.record import NO_GUARANTEE


class Jump(UpperLevelMethod[InexactObjective]):
    """Moves theta by what a function says; costs nothing, and says that the loss it saw was ``seen``."""

    def __init__(self, params: Iterable[Tensor], move: Callable[[Tensor], Tensor], seen: float = float("nan")) -> None:
        super().__init__(params, lr=1.0)
        self.move, self.seen, self.hesitations = move, seen, 0

    def _iterate(self, objective: InexactObjective) -> Record:
        self._set(self.move(self._theta()))
        loss = CertifiedLoss(self.seen, self.seen, self.seen)
        iteration = self.progress["iteration"] + 1
        return Record(iteration, loss, 0, 0, 0, 1.0, 1, objective.evaluations, 0, Progress.ACCEPTED, NO_GUARANTEE)

    def hesitate(self) -> None:
        super().hesitate()
        self.hesitations += 1


def wanderer(seed: int, length: float) -> Callable[[Tensor], Tensor]:
    """Steps of random directions and of this length."""
    generator = torch.Generator().manual_seed(seed)

    def move(theta: Tensor) -> Tensor:
        step = torch.randn(theta.shape, generator=generator, dtype=theta.dtype)
        return theta + length * step / step.norm()

    return move
