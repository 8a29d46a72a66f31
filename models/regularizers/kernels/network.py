"""Input convex networks in the compiled library: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.regularizers.kernels import calls, library
from models.regularizers.kernels.bank import LARGEST, Weights
from models.regularizers.leaky_relu import LeakyReLU

ACTIVATIONS = ("huber", "smooth")
_NARROWEST = 1e-12  # the square of the width is a number in single precision, too
_LARGEST_SUM = 1e9  # of the sizes of all numbers: sums of two rows do not overflow where those of one do not


@dataclass(frozen=True)
class Network:
    """Its numbers, and a level of instructions, for images like those of :func:`compiled_network`.

    Parameters
    ----------
    kernels
        V, ``(K, s, s)``.
    tables
        W_1, ..., W_L, ``(L, K, K, i, i)``; b_0, ..., b_L, ``(L + 1, K)``; a, ``(K,)``.
    activation
        sigma_0; sigma_1 is that with slope 0.
    """

    kernels: Tensor
    tables: tuple[Tensor, Tensor, Tensor]
    activation: LeakyReLU
    level: int

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """R of every image, float64, and its gradient, for x ``(images, height, width)``."""
        out = torch.empty_like(x)
        return self._run("gradient", x, out=out)[:, 0], out

    def curvature(self, x: Tensor) -> Weights:
        """sigma' and sigma'' dR/dz of all layers, for :meth:`product`."""
        stored = x.new_empty(calls.layout(self._task("curvature", x))[2])
        self._run("curvature", x, weights=stored)
        return Weights(stored, x.shape)

    def product(self, v: Tensor, weights: Weights, order: Tensor | None) -> Tensor:
        """R''(x) v, where v[i] belongs to the image order[i] of ``weights``."""
        order = calls.checked_order(v, weights.stored.dtype, weights.shape, order)
        out = torch.empty_like(v)
        self._run("product", v, out=out, weights=weights.stored, order=order)
        return out

    def derivative(self, x: Tensor, w: Tensor) -> list[Tensor]:
        """d/d(kernels, tables) of sum <grad R(x), w>, over all images."""
        total = calls.over_images(self._run("derivative", x, w=w)).to(x.dtype)
        like = (self.kernels, *self.tables)
        return [part.view_as(t) for part, t in zip(total.split([t.numel() for t in like]), like, strict=True)]

    def _task(self, operation: str, x: Tensor) -> library.Task:
        task = calls.task(operation, self.level, x, self.kernels, self.tables)
        task.layers, task.inner = self.tables[0].shape[0], self.tables[0].shape[3]
        task.kind = ACTIVATIONS.index(self.activation.kind)
        task.slope, task.softness = self.activation.slope, self.activation.width
        return task

    def _run(self, operation: str, x: Tensor, **others: Tensor | None) -> Tensor:
        return calls.run(self._task(operation, x), x, **others)


def compiled_network(
    x: Tensor, convolutions: Sequence[Tensor], biases: Sequence[Tensor], weights: Tensor, activation: LeakyReLU
) -> Network | None:
    """The network for images like x, ``(batch, channel, height, width)``; ``None`` where the code in torch has to do.

    As for :func:`compiled`. Activations with kinks are left to torch, and so are numbers that are huge or not finite:
    the kernels multiply by zeros around images, and add rows up, where torch does not.
    """
    sides = [c.shape[-1] for c in convolutions]
    reach = sides[0] + sum(side - 1 for side in sides[1:])
    if type(activation) is not LeakyReLU or activation.width < _NARROWEST or max(sides) > LARGEST:
        return None
    if not calls.suitable(x, reach, *convolutions, *biases, weights):
        return None
    level = library.level()
    if level is None:
        return None
    with torch.no_grad():
        kernels = convolutions[0][:, 0].contiguous()
        tables = torch.stack(list(convolutions[1:])), torch.stack(list(biases)), weights.flatten().contiguous()
        if not sum(float(t.abs().sum(dtype=torch.float64)) for t in (kernels, *tables)) <= _LARGEST_SUM:
            return None
    return Network(kernels, tables, activation, level)
