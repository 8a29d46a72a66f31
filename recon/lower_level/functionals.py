"""Convex functions of flat vectors, image by image, with what saddle-point problems need of them.

phi is g itself, or f of f*: min_x g(x) + f(Kx) = min_x max_y <Kx, y> + g(x) - f*(y). Of f*, nothing has to be written
down: by Moreau's identity prox_{sigma f*}(v) = v - sigma prox_{f/sigma}(v/sigma), y = grad f(s) means s in the
subdifferential of f* at y, and f* has the modulus 1 / ``smoothness``. The conjugates of the classes below are

    HuberNorm(weight, eps)      the constraint |y_j| <= weight and (eps/2)||y||^2   (eps = 0: the constraint alone)
    HuberReLU(weight, eps)      the box [0, weight] and (eps/2)||y||^2
    SmoothedNorm(weight, nu)    sum_j nu (weight - sqrt(weight^2 - |y_j|^2)) with |y_j| <= weight
    Squared(weight, centre)     ||y||^2 / (2 weight) + <y, centre>
    Vanishing                   0
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from recon.lower_level.curvature import BlockCurvature, Curvature, GroupCurvature
from recon.lower_level.energy import NotStronglyConvexError

Step = Tensor | float
#: sup of the third derivative of sqrt(t^2 + 1)
THIRD = 1.5 / 1.25**2.5


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


class ParameterBound:
    """How d_t <grad phi(x), w> moves, t a tensor of phi: see :meth:`__call__`."""

    def __call__(self, x: Tensor, w: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        r"""N, V per image with, for all x^ at most ``radius`` from x and all u,

        \|\|d_t <grad phi(x^), u>\|\| <= N \|\|u\|\| and \|\|d_t <grad phi(x^) - grad phi(x), w>\|\| <= V radius.
        """
        raise NotImplementedError


class Squared(Functional):
    """phi(x) = 1/2 sum_j w_j (x_j - b_j)^2 with w_j >= 0, over x >= 0 alone if ``nonnegative``.

    Parameters
    ----------
    weight: w, a number or a tensor that broadcasts to ``shape``. centre: b, ``(batch, size)`` or a number.
    shape: of one image; by default flat.
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
        low, high = _range(weight, "weights of a squared distance", 0.0)
        self.convexity, self.smoothness = low, math.inf if nonnegative else high
        self.hessian_lipschitz = math.inf if nonnegative else 0.0

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

    def variation(self, w: Tensor) -> tuple[Tensor, Tensor]:
        if self.nonnegative:
            return super().variation(w)
        zero = w.new_zeros(len(w), dtype=torch.float64)
        return zero, zero

    def tensors(self) -> list[tuple[Tensor, ParameterBound]]:
        return [(self.weight, _SquaredWeight(self))] if isinstance(self.weight, Tensor) else []

    def select(self, index: Tensor) -> Squared:
        part = copy.copy(self)
        if isinstance(self.centre, Tensor):
            part.centre = self.centre[index]
        return part


class _SquaredWeight(ParameterBound):
    """d_w <w (x - b), u> = (x - b) u, summed over what one weight belongs to."""

    def __init__(self, squared: Squared) -> None:
        self.squared = squared

    def __call__(self, x: Tensor, w: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        return (x - self.squared.centre).norm(dim=1).double() + radius, w.norm(dim=1).double()


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


class GroupNorm(Functional):
    """phi(x) = sum_j psi_j(|x_j|) + (mu/2)||x||^2: groups x_j are the vectors along ``axis`` of ``shape``.

    With ``axis`` None, groups are single components. ``weight`` and other tensors broadcast to ``shape``, where
    ``axis`` has the length one.
    """

    def __init__(self, shape: Sequence[int], axis: int | None, weight: Tensor | float, mu: float) -> None:
        _range(weight, "weights of a norm", 0.0)
        if not 0 <= mu < math.inf:
            raise ValueError(f"mu is {mu}, but must be finite and not negative")
        self.shape, self.weight, self.mu = tuple(shape), weight, mu
        self.axis = None if axis is None else 1 + axis % len(self.shape)
        self.size, self.convexity = math.prod(self.shape), mu

    def profile(self, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """psi(r), psi'(r)/r and psi''(r); both infinite at a kink."""
        raise NotImplementedError

    def shrink(self, r: Tensor, step: Tensor | float) -> Tensor:
        """rho/r, with rho >= 0 the solution of (1 + t mu) rho + t psi'(rho) = r."""
        raise NotImplementedError

    def groups(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x as ``(batch, *shape)``, and the norms of its groups."""
        z = x.reshape(len(x), *self.shape)
        # not torch.norm, which takes ten times as long along an axis that is not the last one
        return z, z.abs() if self.axis is None else z.square().sum(self.axis, keepdim=True).sqrt()

    def steps(self, step: Step) -> Step:
        """One step per group."""
        if not isinstance(step, Tensor):
            return step
        if step.shape[1] == 1:
            return step.view(-1, *[1] * len(self.shape))
        view = step.view(-1, *self.shape)
        return view if self.axis is None else view.narrow(self.axis, 0, 1)

    def value(self, x: Tensor) -> Tensor:
        _, r = self.groups(x)
        return self.profile(r)[0].flatten(1).double().sum(1) + 0.5 * self.mu * x.double().square().sum(1)

    def grad(self, x: Tensor) -> Tensor:
        z, r = self.groups(x)
        ratio = self.profile(r)[1]
        return ((torch.where(torch.isfinite(ratio), ratio, 0.0) + self.mu) * z).flatten(1)

    def hessian(self, x: Tensor) -> Curvature:
        z, r = self.groups(x)
        _, across, along = self.profile(r)
        if self.axis is None:
            return GroupCurvature(self.shape, along + self.mu)
        direction = z / r.clamp_min(torch.finfo(r.dtype).tiny)
        return GroupCurvature(self.shape, across + self.mu, along + self.mu, direction, self.axis)

    def prox(self, v: Tensor, step: Step) -> Tensor:
        z, r = self.groups(v)
        return (self.shrink(r, self.steps(step)) * z).flatten(1)


class HuberNorm(GroupNorm):
    """psi(r) = r^2 / (2 eps) for r <= eps w, w r - eps w^2 / 2 beyond: the norm w r for eps = 0. Not C^2.

    ``one_sided``: for axis None only, psi = 0 for negative components (:class:`HuberReLU`).
    """

    def __init__(
        self,
        shape: Sequence[int],
        weight: Tensor | float = 1.0,
        eps: float = 0.0,
        axis: int | None = 0,
        mu: float = 0.0,
    ) -> None:
        super().__init__(shape, axis, weight, mu)
        if not 0 <= eps < math.inf:
            raise ValueError(f"eps is {eps}, but must be finite and not negative")
        self.eps = eps
        self.smoothness = 1 / eps + mu if eps > 0 else math.inf

    def profile(self, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        w, eps = self.weight, self.eps
        inside = r <= eps * w
        inner = 1 / eps if eps else math.inf
        value = torch.where(inside, 0.5 * inner * r.square() if eps else 0 * r, w * r - 0.5 * eps * w**2)
        ratio = torch.where(inside, inner, w / torch.where(inside, 1.0, r))
        return value, ratio, torch.where(inside, inner, torch.zeros_like(r))

    def shrink(self, r: Tensor, step: Tensor | float) -> Tensor:
        w, eps = self.weight, self.eps
        scale = 1 + step * self.mu
        inside = r <= (eps * scale + step) * w
        return torch.where(inside, eps / (eps * scale + step), (1 - step * w / torch.where(inside, 1.0, r)) / scale)

    def fenchel(self, x: Tensor, p: Tensor) -> Tensor:
        z, r = self.groups(x)
        if self.mu:
            # Bregman distance of x to grad phi*(p)
            best = HuberNorm(self.shape, self.weight, self.eps, self._axis, 0.0).prox(p / self.mu, 1 / self.mu)
            return self.value(x) - self.value(best) - ((x - best) * p).double().sum(1)
        q, size = self.groups(p)
        w, eps = self.weight, self.eps
        outside = size > w * (1 + 8 * torch.finfo(x.dtype).eps)
        dot = (z * q).sum(self.axis, keepdim=True) if self.axis is not None else z * q
        far = w * r - dot - 0.5 * eps * (w**2 - size.square())
        if eps:
            near = (z - eps * q).square() / (2 * eps)
            near = near.sum(self.axis, keepdim=True) if self.axis is not None else near
            far = torch.where(r <= eps * w, near, far)
        return torch.where(outside.flatten(1).any(1), math.inf, far.flatten(1).double().sum(1))

    @property
    def _axis(self) -> int | None:
        return None if self.axis is None else self.axis - 1

    def tensors(self) -> list[tuple[Tensor, ParameterBound]]:
        return [(self.weight, _NormWeight(self, math.inf))] if isinstance(self.weight, Tensor) else []


class SmoothedNorm(GroupNorm):
    """psi(r) = w (sqrt(r^2 + nu^2) - nu): infinitely smooth; w and nu may be learned."""

    def __init__(
        self,
        shape: Sequence[int],
        weight: Tensor | float,
        nu: Tensor | float,
        axis: int | None = 0,
        mu: float = 0.0,
    ) -> None:
        super().__init__(shape, axis, weight, mu)
        _range(nu, "widths of a smoothed norm", sys.float_info.min)
        self.nu = nu
        self.smoothness = _range(weight / nu)[1] + mu
        self.hessian_lipschitz = THIRD * _range(weight / nu**2)[1]

    def profile(self, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        w, nu = self.weight, self.nu
        root = (r.square() + nu**2).sqrt()
        ratio = w / root
        return w * r.square() / (root + nu), ratio, ratio * (nu / root) ** 2

    def shrink(self, r: Tensor, step: Tensor | float) -> Tensor:
        """Newton's method: the equation is concave in rho, so that iterates below its solution rise to it."""
        w, nu = self.weight, self.nu
        scale, pull = 1 + step * self.mu, step * w
        rho = torch.maximum((r - pull) / scale, r / (scale + pull / nu)).clamp_min(0)
        for _ in range(50):
            root = (rho.square() + nu**2).sqrt()
            move = (r - scale * rho - pull * rho / root) / (scale + pull * nu**2 / root**3)
            rho = rho + move
            if bool((move.abs() <= 4 * torch.finfo(r.dtype).eps * r).all()):
                break
        return torch.where(r > 0, rho / torch.where(r > 0, r, 1.0), 1 / (scale + pull / nu))

    def fenchel(self, x: Tensor, p: Tensor) -> Tensor:
        if self.mu:
            best = SmoothedNorm(self.shape, self.weight, self.nu, None if self.axis is None else self.axis - 1)
            point = best.prox(p / self.mu, 1 / self.mu)
            return self.value(x) - self.value(point) - ((x - point) * p).double().sum(1)
        z, r = self.groups(x)
        q, size = self.groups(p)
        w, nu = self.weight, self.nu
        outside = size > w * (1 + 8 * torch.finfo(x.dtype).eps)
        # a w - <A, B> = (a w/2) |A/a - B/w|^2 with A = (z, nu) of norm a, B = (q, (w^2 - |q|^2)^(1/2)) of norm w: as it
        # stands in the definition it would cancel, and certify less than the rounding error
        a, b = (r.square() + nu**2).sqrt(), (w**2 - size.square()).clamp_min(0).sqrt()
        safe = torch.as_tensor(w).clamp_min(torch.finfo(x.dtype).tiny)
        turn = (z / a - q / safe).square()
        turn = turn.sum(self.axis, keepdim=True) if self.axis is not None else turn
        gap = 0.5 * a * w * (turn + (nu / a - b / safe).square())
        return torch.where(outside.flatten(1).any(1), math.inf, gap.flatten(1).double().sum(1))

    def variation(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """kappa = 3/(2 nu) |w_j|, T = 0.859 weight / nu^2 |w_j|, maximal over the groups."""
        _, r = self.groups(w)
        kappa, lipschitz = 1.5 / self.nu * r, THIRD * self.weight / self.nu**2 * r
        return kappa.flatten(1).amax(1).double(), lipschitz.flatten(1).amax(1).double()

    def tensors(self) -> list[tuple[Tensor, ParameterBound]]:
        bounds: list[tuple[Tensor, ParameterBound]] = []
        if isinstance(self.weight, Tensor):
            bounds.append((self.weight, _NormWeight(self, 1 / _range(self.nu)[0])))
        if isinstance(self.nu, Tensor):
            bounds.append((self.nu, _NormWidth(self)))
        return bounds


class _NormWeight(ParameterBound):
    """d_w <grad psi(x), u> = <x/sqrt(|x|^2 + nu^2), u>, of Lipschitz constant 1/nu (infinite for kinks)."""

    def __init__(self, norm: GroupNorm, rate: float) -> None:
        self.norm, self.rate = norm, rate

    def __call__(self, x: Tensor, w: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        z, r = self.norm.groups(x)
        count = math.sqrt(r[0].numel())
        weight = self.norm.weight
        slope = (self.norm.profile(r)[1] / weight * z) if _range(weight)[0] > 0 else torch.ones_like(z)
        norm = torch.nan_to_num(slope, posinf=1.0).flatten(1).norm(dim=1).double()
        rate = self.rate if math.isfinite(self.rate) else 0.0
        norm = (norm + rate * radius).clamp_max(count) if rate else torch.full_like(radius, count)
        return norm, self.rate * w.norm(dim=1).double()


class _NormWidth(ParameterBound):
    """d_nu <grad psi(x), u> = -<w nu x (|x|^2 + nu^2)^{-3/2}, u>, of Lipschitz constant w / nu^2."""

    def __init__(self, norm: SmoothedNorm) -> None:
        self.norm = norm

    def __call__(self, x: Tensor, w: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        z, r = self.norm.groups(x)
        weight, nu = self.norm.weight, self.norm.nu
        slope = weight * nu * z * (r.square() + nu**2) ** -1.5
        rate = _range(weight / nu**2)[1]
        return slope.flatten(1).norm(dim=1).double() + rate * radius, rate * w.norm(dim=1).double()


class HuberReLU(Functional):
    """phi(x) = sum_j w_j max(0, x_j), smoothed: x^2/(2 eps) for 0 <= x <= eps w, w x - eps w^2 / 2 beyond. Not C^2.

    ``weight``: w >= 0, a number or a tensor that broadcasts to ``shape``.
    """

    def __init__(self, shape: Sequence[int], weight: Tensor | float = 1.0, eps: float = 0.0) -> None:
        self._norm = HuberNorm(shape, weight, eps, None)
        self.size, self.smoothness = self._norm.size, self._norm.smoothness

    def value(self, x: Tensor) -> Tensor:
        return self._norm.value(x.clamp_min(0))

    def grad(self, x: Tensor) -> Tensor:
        return self._norm.grad(x.clamp_min(0))

    def hessian(self, x: Tensor) -> Curvature:
        z, r = self._norm.groups(x)
        return GroupCurvature(self._norm.shape, torch.where(z < 0, 0.0, self._norm.profile(r)[2]))

    def prox(self, v: Tensor, step: Step) -> Tensor:
        return v.clamp_max(0) + self._norm.prox(v.clamp_min(0), step)

    def fenchel(self, x: Tensor, p: Tensor) -> Tensor:
        bad = (p < 0).any(1)
        below = (x.clamp_max(0) * p).double().sum(1)
        return torch.where(bad, math.inf, self._norm.fenchel(x.clamp_min(0), p) - below)

    def tensors(self) -> list[tuple[Tensor, ParameterBound]]:
        return self._norm.tensors()


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
        whole = not isinstance(step, Tensor) or step.shape[1] == 1
        steps = [step] * len(self.parts) if whole else list(step.split(self.sizes, 1))  # type: ignore[union-attr]
        return torch.cat([f.prox(b, t) for f, b, t in zip(self.parts, self.split(v), steps, strict=True)], 1)

    def fenchel(self, x: Tensor, p: Tensor) -> Tensor:
        pairs = zip(self.parts, self.split(x), self.split(p), strict=True)
        return torch.stack([f.fenchel(a, b) for f, a, b in pairs]).sum(0)

    def variation(self, w: Tensor) -> tuple[Tensor, Tensor]:
        kappa, lipschitz = zip(*(f.variation(b) for f, b in zip(self.parts, self.split(w), strict=True)), strict=True)
        return torch.stack(kappa).amax(0), torch.stack(lipschitz).amax(0)

    def tensors(self) -> list[tuple[Tensor, ParameterBound]]:
        bounds: list[tuple[Tensor, ParameterBound]] = []
        start = 0
        for part in self.parts:
            window = slice(start, start + part.size)
            bounds += [(t, _OfBlock(bound, window)) for t, bound in part.tensors()]
            start += part.size
        return bounds

    def select(self, index: Tensor) -> Blocks:
        part = copy.copy(self)
        part.parts = [p.select(index) for p in self.parts]
        return part


class _OfBlock(ParameterBound):
    def __init__(self, bound: ParameterBound, window: slice) -> None:
        self.bound, self.window = bound, window

    def __call__(self, x: Tensor, w: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        return self.bound(x[:, self.window], w[:, self.window], radius)


def _range(value: Tensor | float, name: str = "", least: float = -math.inf) -> tuple[float, float]:
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
