"""Hessians that act group by group, and quadratic functions made of them: what linearizes a saddle-point problem."""

from __future__ import annotations

from collections.abc import Sequence

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


class GroupCurvature(Curvature):
    """H = across (I - n n^T) + along n n^T in every group, n the ``direction`` of the group; ``across`` I without n."""

    def __init__(
        self,
        shape: Sequence[int],
        across: Tensor,
        along: Tensor | None = None,
        direction: Tensor | None = None,
        axis: int | None = None,
    ) -> None:
        self.shape, self.across, self.along = tuple(shape), across, along
        self.direction, self.axis = direction, axis

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
        def pick(t: Tensor | None) -> Tensor | None:
            return t if t is None or t.shape[0] == 1 else t[index]

        across = pick(self.across)
        assert across is not None
        return GroupCurvature(self.shape, across, pick(self.along), pick(self.direction), self.axis)


class BlockCurvature(Curvature):
    """Block by block."""

    def __init__(self, parts: list[Curvature], sizes: list[int]) -> None:
        self.parts, self.sizes = parts, sizes

    def __call__(self, v: Tensor) -> Tensor:
        return torch.cat([h(b) for h, b in zip(self.parts, v.split(self.sizes, 1), strict=True)], 1)

    def resolvent(self, v: Tensor, step: Step) -> Tensor:
        blocks = zip(self.parts, v.split(self.sizes, 1), split_step(step, self.sizes), strict=True)
        return torch.cat([h.resolvent(b, t) for h, b, t in blocks], 1)

    def select(self, index: Tensor) -> BlockCurvature:
        return BlockCurvature([p.select(index) for p in self.parts], self.sizes)
