"""The interface of a regularizer R_theta(x), and defaults by automatic differentiation.

A subclass must define ``forward``. What certificates and fast solvers need on top (``smoothness``, ``convexity``,
analytic derivatives) has honest defaults: a bound that is not known is infinite, never a guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from recon.lower_level.batch import per_image_norm
from recon.lower_level.recreatable import Recreatable


class HessianMap:
    """The Hessian of a function of images at a fixed point, linearized once and applied many times.

    ``apply(v, kept)`` computes H_i v_i for the images ``i`` in ``kept`` (``None``: all of them).
    """

    def __init__(self, apply: Callable[[Tensor, Tensor | None], Tensor], kept: Tensor | None = None) -> None:
        self._apply, self._kept = apply, kept

    def __call__(self, v: Tensor) -> Tensor:
        return self._apply(v, self._kept)

    def select(self, index: Tensor) -> HessianMap:
        """The same map for the images ``index`` of those it holds now."""
        return HessianMap(self._apply, index if self._kept is None else self._kept[index])


@dataclass(frozen=True)
class HessianVariation:
    r"""How far the Hessian of R can move along a fixed image w, per image of the batch.

    For every x, e and B_R(t) = R''(x - te), B_bar its mean over t in [0, 1]:

    * ``relative`` kappa: \|<(B_bar - R''(x)) w, e>\| <= kappa (<e, B_bar e> + ``concavity`` \|\|e\|\|^2)
      (generalized self-concordance; infinite where R has no such constant);
    * ``lipschitz`` T: \|\|(R''(x) - R''(x - e)) w\|\| <= T \|\|e\|\|.
    """

    relative: Tensor
    lipschitz: Tensor
    concavity: Tensor


@dataclass(frozen=True)
class JacobianBounds:
    r"""Bounds on J(x) = d/dtheta grad R(x) over the ball \|\|x - x~\|\| <= radius, per image of the batch.

    ``norm``: \|\|J(x)\|\| <= norm. ``variation``: \|\|(J(x) - J(x~))^T w\|\| <= variation \|\|x - x~\|\|.
    ``certified`` says whether they are proved or estimated.
    """

    norm: Tensor
    variation: Tensor
    certified: bool = True


class Regularizer(Recreatable):
    """A function R_theta of images, ``(batch, channel, height, width) -> (batch,)``; theta are its parameters."""

    #: width in pixels of the band along the boundary where R acts less than inside; denoising mirrors so much data
    margin: int = 0
    #: a noise level that R is for, where it depends on them
    typical_noise: float | None = None

    @property
    def in_channels(self) -> int:
        """Channels of the images that R is for; 1: those of any images, one by one."""
        return 1

    def forward(self, x: Tensor) -> Tensor:
        """R(x) image by image, differentiable in x and in the parameters."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def is_at(self, theta: Sequence[Tensor]) -> bool:
        """Whether these are the parameters, all of them in order, with their types and devices.

        By value: a version counter does not notice changes of ``p.data``.
        """
        own = list(self.parameters())
        return len(own) == len(theta) and all(
            p.dtype == t.dtype and p.device == t.device and torch.equal(p, t) for p, t in zip(own, theta, strict=True)
        )

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """R(x) and its gradient in x. By default automatic differentiation of ``forward``."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            value = self(x)
            (grad,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), grad

    def grad(self, x: Tensor) -> Tensor:
        """The gradient of R in x, of the shape of x."""
        return self.value_and_grad(x)[1]

    def hessian(self, x: Tensor) -> HessianMap:
        """v -> R''(x) v. By default double backward through ``forward``, with the graph of the gradient kept."""
        graphs: dict[tuple[int, ...] | None, tuple[Tensor, Tensor]] = {}

        def apply(v: Tensor, kept: Tensor | None) -> Tensor:
            key = None if kept is None else tuple(kept.tolist())
            if key not in graphs:
                with torch.enable_grad():
                    point = (x if kept is None else x[kept]).detach().requires_grad_(True)
                    (grad,) = torch.autograd.grad(self(point).sum(), point, create_graph=True)
                graphs.clear()
                graphs[key] = (point, grad)
            point, grad = graphs[key]
            if not grad.requires_grad:  # R is affine in x
                return torch.zeros_like(v)
            (product,) = torch.autograd.grad(
                grad, point, v, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            return product

        return HessianMap(apply)

    def parameter_vjp(self, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        """d/dtheta of sum_i <grad R(x_i), w_i> at fixed x and w, one tensor for every trainable parameter."""
        params = self.trainable()
        with torch.enable_grad():
            point = x.detach().requires_grad_(True)
            (grad,) = torch.autograd.grad(self(point).sum(), point, create_graph=True)
            return torch.autograd.grad((grad * w).sum(), params, allow_unused=True, materialize_grads=True)

    def select(self, index: Tensor | slice) -> Self:
        """R for some of the images of a batch: itself, unless it knows something of every image."""
        return self

    def at(self, sigma: Tensor | float | None) -> Regularizer:
        """R for images whose noise has these standard deviations: itself, unless it depends on them.

        Parameters
        ----------
        sigma
            a number for all images, or ``(batch,)``; None where nothing is known.

        Raises
        ------
        ValueError
            R depends on noise levels, and they are unknown or outside of what it is for.
        """
        return self

    def trainable(self) -> list[nn.Parameter]:
        """The parameters that are learned, in a fixed order."""
        return [p for p in self.parameters() if p.requires_grad]

    def smoothness(self) -> float:
        """A guaranteed Lipschitz constant of the gradient in x; infinite where none is known."""
        return math.inf

    def rounding_gain(self) -> float:
        """How many times rounding errors in x, of relative size u, grow in the computed gradient: at most smoothness().

        Errors of different pixels and filters are independent, and fewer of them add up than in the worst case.
        """
        return self.smoothness()

    def rounding_offset(self, x: Tensor) -> float:
        """The part of the rounding error of grad R, in units of u, that does not shrink with x; images like x.

        Zero where the gradient vanishes with x. Where terms cancel that do not, it is their size.
        """
        return 0.0

    def convexity(self) -> float:
        """The largest known m such that R - (m/2)||x||^2 is convex: positive, 0 (convex) or negative (weakly convex).

        Minus infinity where nothing is known: certificates are then refused.
        """
        return -math.inf

    def hessian_variation(self, w: Tensor) -> HessianVariation | None:
        """Constants of the goal-oriented certificate for the image w; ``None`` where R has none."""
        return None

    def jacobian_bounds(self, x: Tensor, w: Tensor, radius: Tensor) -> JacobianBounds:
        """Bounds of the mixed derivative for the a-priori bound of the hypergradient.

        By default an estimate, hence not certified: the norm of J(x) by a few power iterations, its variation by
        a finite difference along w.
        """
        norms, variations = [], []
        for xi, wi, ri in zip(x.split(1), w.split(1), radius, strict=True):
            vjp = torch.cat([g.flatten() for g in self.parameter_vjp(xi, wi)])
            size = per_image_norm(wi).clamp_min(torch.finfo(x.dtype).tiny)
            norms.append(vjp.double().norm() / size[0])
            step = wi * float(torch.clamp(ri, min=1e-3) / size)
            moved = torch.cat([g.flatten() for g in self.parameter_vjp(xi + step, wi)])
            variations.append((moved - vjp).double().norm() / per_image_norm(step)[0])
        return JacobianBounds(2 * torch.stack(norms), 2 * torch.stack(variations), certified=False)
