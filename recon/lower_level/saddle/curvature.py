"""Hessians that act group by group, and quadratic functions made of them: what linearizes a saddle-point problem."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: a step: a number, or a tensor ``(batch or 1, size or 1)``
Step = Tensor | float


def shaped_step(step: Step, shape: Sequence[int]) -> Step:
    """``step`` against vectors as ``(batch, *shape)``."""
    if not isinstance(step, Tensor):
        return step
    return step.view(-1, *([1] * len(shape) if step.shape[1] == 1 else shape))


def split_step(step: Step, sizes: list[int]) -> list[Step]:
    """``step`` for each block of a vector."""
    if isinstance(step, Tensor) and step.shape[1] > 1:
        return list(step.split(sizes, 1))
    return [step] * len(sizes)


class Curvature:
    """A symmetric positive semidefinite map H of flat vectors, ``(batch, size)``; eigenvalues may be infinite."""

    def __call__(self, v: Tensor) -> Tensor:
        """H v."""
        raise NotImplementedError

    def resolvent(self, v: Tensor, step: Step) -> Tensor:
        """(I + t H)^{-1} v, which exists for infinite eigenvalues, too."""
        raise NotImplementedError

    def select(self, index: Tensor) -> Curvature:
        """H for the images ``index`` alone."""
        raise NotImplementedError


@dataclass(eq=False)
class GroupCurvature(Curvature):
    """H = across (I - n n^T) + along n n^T in every group, n the ``direction`` of the group; ``across`` I without n."""

    shape: tuple[int, ...]
    across: Tensor
    along: Tensor | None = None
    direction: Tensor | None = None
    axis: int | None = None

    def __call__(self, v: Tensor) -> Tensor:
        z = v.reshape(len(v), *self.shape)
        if self.direction is None or self.along is None or self.axis is None:
            return (self.across * z).flatten(1)
        part = (self.direction * z).sum(self.axis, keepdim=True)
        return (self.across * z + ((self.along - self.across) * part) * self.direction).flatten(1)

    def resolvent(self, v: Tensor, step: Step) -> Tensor:
        z, step = v.reshape(len(v), *self.shape), shaped_step(step, self.shape)
        if self.direction is None or self.along is None or self.axis is None:
            return (z / (1 + step * self.across)).flatten(1)
        if isinstance(step, Tensor) and step.shape[self.axis] > 1:
            step = step.narrow(self.axis, 0, 1)
        across, along = 1 / (1 + step * self.across), 1 / (1 + step * self.along)
        part = (self.direction * z).sum(self.axis, keepdim=True)
        return (across * z + ((along - across) * part) * self.direction).flatten(1)

    def select(self, index: Tensor) -> GroupCurvature:
        part = copy.copy(self)
        vars(part).update({name: t[index] for name, t in vars(self).items() if isinstance(t, Tensor) and len(t) != 1})
        return part


@dataclass(eq=False)
class BlockCurvature(Curvature):
    """Block by block."""

    parts: list[Curvature]
    sizes: list[int]

    def __call__(self, v: Tensor) -> Tensor:
        return torch.cat([h(b) for h, b in zip(self.parts, v.split(self.sizes, 1), strict=True)], 1)

    def resolvent(self, v: Tensor, step: Step) -> Tensor:
        blocks = zip(self.parts, v.split(self.sizes, 1), split_step(step, self.sizes), strict=True)
        return torch.cat([h.resolvent(b, t) for h, b, t in blocks], 1)

    def select(self, index: Tensor) -> BlockCurvature:
        return BlockCurvature([p.select(index) for p in self.parts], self.sizes)
