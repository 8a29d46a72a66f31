"""Convex functions of flat vectors, image by image, with what saddle-point problems need of them.

phi is g itself, or f of f*: min_x g(x) + f(Kx) = min_x max_y <Kx, y> + g(x) - f*(y). Of f*, nothing has to be written
down: by Moreau's identity prox_{sigma f*}(v) = v - sigma prox_{f/sigma}(v/sigma), y = grad f(s) means s in the
subdifferential of f* at y, and f* has the modulus 1 / ``smoothness``. The conjugates of the classes below are

    Squared(weight, centre)     ||y||^2 / (2 weight) + <y, centre>
    Vanishing                   0

Norms are in :mod:`recon.lower_level.saddle.norms`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial
from typing import Protocol, Self

import torch
from torch import Tensor

from recon.lower_level.batch import per_image_norm
from recon.lower_level.energy import NotStronglyConvexError
from recon.lower_level.saddle.curvature import BlockCurvature, Curvature, GroupCurvature, Step, split_step


class Functional:
    """phi(x), ``(batch, size) -> (batch,)``, a sum over groups of components (pixels, or vectors of a field).

    What depends on learned parameters are tensors, made from these by differentiable operations if gradients are on.
    A step t of :meth:`prox` is a number, or a tensor ``(batch or 1, size or 1)``, constant in every group.
    """

    size: int
    #: largest known m such that phi - (m/2)||x||^2 is convex
    convexity: float = 0.0
    #: Lipschitz constant of the gradient; infinite where phi has none
    smoothness: float = math.inf
    #: whether :meth:`fenchel` is computed from terms that are not negative, so that nothing cancels
    stable_fenchel: bool = False

    def leading_convexity(self, count: int) -> float:
        """m with phi - (m/2)||a||^2 - (convexity/2)||b||^2 convex, a the first ``count`` components of x = (a, b)."""
        return self.convexity

    def value(self, x: Tensor) -> Tensor:
        """phi(x) per image, float64."""
        raise NotImplementedError

    def grad(self, x: Tensor) -> Tensor:
        """The gradient, differentiable in the tensors of phi; of constraints, x is in the interior."""
        raise NotImplementedError

    def hessian(self, x: Tensor) -> Curvature:
        """phi''(x); an element of the generalized Hessian where phi is not twice differentiable, infinite at kinks."""
        raise NotImplementedError

    def prox(self, v: Tensor, step: Step) -> Tensor:
        """argmin_x phi(x) + ||x - v||^2 / (2 t)."""
        raise NotImplementedError

    def fenchel(self, x: Tensor, p: Tensor) -> Tensor:
        """phi(x) + phi*(p) - <x, p> >= 0 per image, zero where p is a subgradient at x; infinite where not known."""
        return x.new_full((len(x),), math.inf, dtype=torch.float64)

    def conjugate_terms(self, p: Tensor) -> Tensor:
        """The norms of what :meth:`fenchel` adds up to grad phi*(p), per image: its rounding errors follow them."""
        return p.new_zeros(len(p), dtype=torch.float64)

    def variation(self, w: Tensor) -> tuple[Tensor, Tensor]:
        r"""How far phi'' moves along fixed w, per image: kappa, T.

        \|\|(phi''(x) - phi''(x - e)) w\|\| <= T \|\|e\|\|, and, with the mean H of phi'' on the segment between x and
        x - e, \|<(H - phi''(x)) w, e>\| <= kappa <e, H e>. Infinite where phi is not smooth enough.
        """
        unknown = w.new_full((len(w),), math.inf, dtype=torch.float64)
        return unknown, unknown

    #: Lipschitz constant of phi''
    hessian_lipschitz: float = math.inf

    def tensors(self) -> list[tuple[Tensor, ParameterBound]]:
        """The tensors that depend on parameters, each with its bound."""
        return []

    def select(self, index: Tensor) -> Self:
        """phi for the images ``index`` alone."""
        return self


class ParameterBound(Protocol):
    """How d_t <grad phi(x), w> moves, t a tensor of phi: see :meth:`__call__`."""

    def __call__(self, x: Tensor, w: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        r"""N, V per image with, for all x^ at most ``radius`` from x and all u,

        \|\|d_t <grad phi(x^), u>\|\| <= N \|\|u\|\| and \|\|d_t <grad phi(x^) - grad phi(x), w>\|\| <= V radius.
        """


class Squared(Functional):
    """phi(x) = 1/2 sum_j w_j (x_j - b_j)^2 with w_j >= 0, over x >= 0 alone if ``nonnegative``.

    Parameters
    ----------
    weight
        w, a number or a tensor that broadcasts to ``shape``.
    centre
        b, ``(batch, size)`` or a number.
    shape
        of one image; by default flat.
    """

    def __init__(
        self,
        size: int,
        weight: Tensor | float = 1.0,
        centre: Tensor | float = 0.0,
        shape: Sequence[int] | None = None,
        nonnegative: bool = False,
    ) -> None:
        self.size, self.weight, self.centre, self.nonnegative = size, weight, centre, nonnegative
        self.shape = tuple(shape) if shape is not None else (size,)
        low, high = value_range(weight, "weights of a squared distance", 0.0)
        self.convexity, self.smoothness = low, math.inf if nonnegative else high
        self.hessian_lipschitz = math.inf if nonnegative else 0.0

    stable_fenchel = True

    def _weight(self, x: Tensor) -> Tensor:
        if not isinstance(self.weight, Tensor):
            return x.new_full((1, 1), self.weight)
        if self.weight.numel() == 1:
            return self.weight.reshape(1, 1)
        return self.weight.expand(self.shape).reshape(1, -1)

    def value(self, x: Tensor) -> Tensor:
        value = 0.5 * (self._weight(x) * (x - self.centre).square()).double().sum(1)
        return torch.where((x < 0).any(1), math.inf, value) if self.nonnegative else value

    def grad(self, x: Tensor) -> Tensor:
        return self._weight(x) * (x - self.centre)

    def hessian(self, x: Tensor) -> Curvature:
        w = self._weight(x)
        if self.nonnegative:
            w = torch.where(x > 0, w, math.inf)
        return GroupCurvature((self.size,), w)

    def prox(self, v: Tensor, step: Step) -> Tensor:
        tw = step * self._weight(v)
        x = (v + tw * self.centre) / (1 + tw)
        return x.clamp_min(0) if self.nonnegative else x

    def fenchel(self, x: Tensor, p: Tensor) -> Tensor:
        if not self.convexity > 0:
            return super().fenchel(x, p)
        w = self._weight(x)
        best = self.centre + p / w  # grad phi*(p)
        if not self.nonnegative:
            return 0.5 * (w * (x - best).square()).double().sum(1)
        best = best.clamp_min(0)
        gap = 0.5 * w * (x - best).square() + (w * (best - self.centre) - p) * (x - best)
        return torch.where((x < 0).any(1), math.inf, gap.double().sum(1))

    def conjugate_terms(self, p: Tensor) -> Tensor:
        if not self.convexity > 0:
            return super().conjugate_terms(p)
        scaled = per_image_norm(p / self._weight(p))
        if isinstance(self.centre, Tensor):
            return scaled + per_image_norm(self.centre)
        return scaled + abs(self.centre) * math.sqrt(self.size)

    def variation(self, w: Tensor) -> tuple[Tensor, Tensor]:
        if self.nonnegative:
            return super().variation(w)
        zero = w.new_zeros(len(w), dtype=torch.float64)
        return zero, zero

    def tensors(self) -> list[tuple[Tensor, ParameterBound]]:
        return [(self.weight, self._weight_bound)] if isinstance(self.weight, Tensor) else []

    def _weight_bound(self, x: Tensor, w: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """d_w <w (x - b), u> = (x - b) u, summed over what one weight belongs to."""
        return per_image_norm(x - self.centre) + radius, per_image_norm(w)

    def select(self, index: Tensor) -> Squared:
        part = copy.copy(self)
        if isinstance(self.centre, Tensor):
            part.centre = self.centre[index]
        return part


class Vanishing(Functional):
    """phi(0) = 0, infinite elsewhere: the constraint s = 0, whose conjugate is zero. It certifies nothing."""

    def __init__(self, size: int) -> None:
        self.size = size

    def value(self, x: Tensor) -> Tensor:
        return torch.where((x == 0).all(1), 0.0, math.inf).double()

    def prox(self, v: Tensor, step: Step) -> Tensor:
        return torch.zeros_like(v)

    def fenchel(self, x: Tensor, p: Tensor) -> Tensor:
        return self.value(x)


class Blocks(Functional):
    """phi(x) = sum_b phi_b(x_b): x consists of the blocks x_b, one after the other."""

    def __init__(self, parts: Sequence[Functional]) -> None:
        if not parts:
            raise ValueError("a sum of functionals needs at least one")
        self.parts, self.sizes = list(parts), [p.size for p in parts]
        self.size = sum(self.sizes)
        self.convexity = min(p.convexity for p in parts)
        self.smoothness = max(p.smoothness for p in parts)
        self.hessian_lipschitz = max(p.hessian_lipschitz for p in parts)
        self.stable_fenchel = all(p.stable_fenchel for p in parts)

    def leading_convexity(self, count: int) -> float:
        moduli = []
        for part in self.parts:
            if count > 0:
                moduli.append(part.leading_convexity(min(count, part.size)))
            count -= part.size
        return min(moduli)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """The blocks of x."""
        return x.split(self.sizes, 1)

    def value(self, x: Tensor) -> Tensor:
        return torch.stack([f.value(b) for f, b in zip(self.parts, self.split(x), strict=True)]).sum(0)

    def grad(self, x: Tensor) -> Tensor:
        return torch.cat([f.grad(b) for f, b in zip(self.parts, self.split(x), strict=True)], 1)

    def hessian(self, x: Tensor) -> Curvature:
        return BlockCurvature([f.hessian(b) for f, b in zip(self.parts, self.split(x), strict=True)], self.sizes)

    def prox(self, v: Tensor, step: Step) -> Tensor:
        blocks = zip(self.parts, self.split(v), split_step(step, self.sizes), strict=True)
        return torch.cat([f.prox(b, t) for f, b, t in blocks], 1)

    def fenchel(self, x: Tensor, p: Tensor) -> Tensor:
        pairs = zip(self.parts, self.split(x), self.split(p), strict=True)
        return torch.stack([f.fenchel(a, b) for f, a, b in pairs]).sum(0)

    def conjugate_terms(self, p: Tensor) -> Tensor:
        return torch.stack([f.conjugate_terms(b) for f, b in zip(self.parts, self.split(p), strict=True)]).norm(dim=0)

    def variation(self, w: Tensor) -> tuple[Tensor, Tensor]:
        kappa, lipschitz = zip(*(f.variation(b) for f, b in zip(self.parts, self.split(w), strict=True)), strict=True)
        return torch.stack(kappa).amax(0), torch.stack(lipschitz).amax(0)

    def tensors(self) -> list[tuple[Tensor, ParameterBound]]:
        bounds: list[tuple[Tensor, ParameterBound]] = []
        start = 0
        for part in self.parts:
            window = slice(start, start + part.size)
            bounds += [(t, partial(_of_block, bound, window)) for t, bound in part.tensors()]
            start += part.size
        return bounds

    def select(self, index: Tensor) -> Blocks:
        part = copy.copy(self)
        part.parts = [p.select(index) for p in self.parts]
        return part


def _of_block(bound: ParameterBound, window: slice, x: Tensor, w: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    return bound(x[:, window], w[:, window], radius)


def value_range(value: Tensor | float, name: str = "", least: float = -math.inf) -> tuple[float, float]:
    """The smallest and the largest value; with a ``name``, raises ValueError unless they are valid.

    Values that are not finite come from learned parameters that went astray: a trial of a line search may meet them,
    hence the error that upper-level methods take for a point where nothing can be certified.
    """
    low, high = (value, value) if not isinstance(value, Tensor) else map(float, value.detach().aminmax())
    if name and not (math.isfinite(low) and math.isfinite(high)):
        raise NotStronglyConvexError(f"{name} are {low:g} to {high:g}, but must be finite")
    if name and low < least:
        raise ValueError(f"{name} are {low:g} to {high:g}, but must be {'positive' if least else 'not negative'}")
    return low, high
