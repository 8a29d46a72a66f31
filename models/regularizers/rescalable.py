"""Regularizers of filters that can be given gains: their tensors, and how these depend on the parameters."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from recon.lower_level import Regularizer


class Rescalable(Regularizer):
    """A regularizer whose filters can be given gains s_k > 0, which :class:`models.NoiseConditioned` makes use of.

    It is a function of tensors (filters, profiles, ...) that are functions of its parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self._cached: tuple[list[Tensor], list[Tensor]] | None = None
        self._source: Callable[[], list[Tensor]] | None = None

    @abstractmethod
    def gain_count(self) -> int:
        """How many gains there are."""

    @abstractmethod
    def own_tensors(self) -> list[Tensor]:
        """The tensors without gains, differentiable in the parameters."""

    @abstractmethod
    def rescaled(self, tensors: list[Tensor], gains: Tensor) -> list[Tensor]:
        """Those of the regularizer with gains, from its own; differentiable in both."""

    def gain_rounding(self) -> float:
        """What rounding errors of gains add to the modulus of weak convexity, relative to it; 0 where R is convex."""
        return 0.0

    @abstractmethod
    def derivative(self, x: Tensor, w: Tensor) -> list[Tensor]:
        """d/d(tensors) of sum_i <grad R(x_i), w_i>, for those of :meth:`current`."""

    def effective(self) -> list[Tensor]:
        """The tensors that R is made of, differentiable in the parameters; with gains in copies that have them."""
        return self.own_tensors() if self._source is None else self._source()

    def current(self) -> list[Tensor]:
        """:meth:`effective` without its graph, computed once per change of the parameters, however they change."""
        if self._cached is None or not self.is_at(self._cached[0]):
            with torch.no_grad():
                self._cached = ([p.clone() for p in self.parameters()], [e.detach() for e in self.effective()])
        return self._cached[1]

    def copy_at(self, source: Callable[[], list[Tensor]], tensors: list[Tensor]) -> Self:
        """The same with other tensors: ``source()`` for :meth:`effective`, ``tensors`` as long as parameters stay."""
        self.current()
        assert self._cached is not None
        other = copy.copy(self)
        other._source, other._cached = source, (self._cached[0], tensors)
        return other

    def chain(self, grads: list[Tensor]) -> tuple[Tensor, ...]:
        """Derivatives in the trainable parameters from those in the tensors of :meth:`effective`."""
        with torch.enable_grad():
            known = [(t, g) for t, g in zip(self.effective(), grads, strict=True) if t.requires_grad]
            return torch.autograd.grad(
                [t for t, _ in known],  # the others are frozen
                self.trainable(),
                [g for _, g in known],
                allow_unused=True,
                materialize_grads=True,
            )
