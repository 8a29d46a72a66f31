"""Descent directions of the upper level, from inexact hypergradients. All of them have <z, d> > 0."""

from __future__ import annotations

import torch
from torch import Tensor

from recon.lower_level.solvers.quasi_newton import InverseHessian


class Direction:
    """Steepest descent: d = z."""

    def apply(self, z: Tensor) -> Tensor:
        """d for the hypergradient z, both flat."""
        return z

    def first_step(self, lr: float) -> float:
        """The first trial step along d."""
        return lr

    def next_step(self, lr: float, step: float, trial: int, growth: float) -> float:
        """The step of the next iteration after ``step`` was accepted."""
        return growth * step

    def learn(self, move: Tensor, change: Tensor) -> None:
        """Take note of an accepted move of theta and the change of z that it caused."""

    def reset(self) -> None:
        """Forget what was learned."""

    def state_dict(self) -> dict[str, Tensor] | None:
        """Everything that a checkpoint needs."""
        return None


class AdaGrad(Direction):
    """d = z / (sqrt(sum of squares of all z so far) + 1e-12), component by component."""

    def __init__(self, like: Tensor, state: dict[str, Tensor] | None) -> None:
        self.squares = torch.zeros_like(like) if state is None else state["squares"]
        self.counted = self.squares if state is None else state["counted"]

    def apply(self, z: Tensor) -> Tensor:
        self.counted = self.squares + z.square()
        return z / (self.counted.sqrt() + 1e-12)

    def learn(self, move: Tensor, change: Tensor) -> None:
        self.squares = self.counted

    def state_dict(self) -> dict[str, Tensor]:
        return {"squares": self.squares, "counted": self.counted}


class QuasiNewton(Direction):
    """L-BFGS on pairs of moves s and changes c with <s, c> > 1e-3 ||s|| ||c||; a move of length lr before the first."""

    def __init__(self, like: Tensor, memory: int, state: dict[str, Tensor] | None) -> None:
        self.history = InverseHessian(like[None], memory)
        if state is not None:
            # copies: learning must not change what the progress of an interrupted iteration is put back to
            self.history.load_state_dict({name: value.clone() for name, value in state.items()})

    @property
    def _empty(self) -> bool:
        return int(self.history.count[0]) == 0

    def apply(self, z: Tensor) -> Tensor:
        d = self.history.apply(z[None], (1 / z.norm()).view(1))[0]
        # rounding in the history must not cost the descent property
        return d if float(z @ d) > 1e-10 * float(z.norm() * d.norm()) else z / z.norm()

    def first_step(self, lr: float) -> float:
        return lr if self._empty else 1.0

    def next_step(self, lr: float, step: float, trial: int, growth: float) -> float:
        return 2 * step if self._empty else lr  # moves through a concave region, where no pair is kept, grow

    def learn(self, move: Tensor, change: Tensor) -> None:
        if float(move @ change) > 1e-3 * float(move.norm() * change.norm()):
            self.history.update(torch.zeros(1, dtype=torch.int64, device=move.device), move[None], change[None])

    def reset(self) -> None:
        self.history = InverseHessian(self.history.pairs[:, 0], self.history.memory)

    def state_dict(self) -> dict[str, Tensor]:
        return self.history.state_dict()


def make_direction(name: str, memory: int, like: Tensor, state: dict[str, Tensor] | None) -> Direction:
    """The direction of that name, with its state; ``memory``: pairs of ``lbfgs``."""
    if name == "lbfgs":
        return QuasiNewton(like, memory, state)
    return AdaGrad(like, state) if name == "adagrad" else Direction()
