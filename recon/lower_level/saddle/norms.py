"""Norms and their smoothings, as functionals of saddle-point problems, and the rectifier. Their conjugates are

HuberNorm(weight, eps)      the constraint |y_j| <= weight and (eps/2)||y||^2   (eps = 0: the constraint alone)
HuberReLU(weight, eps)      the box [0, weight] and (eps/2)||y||^2
SmoothedNorm(weight, nu)    sum_j nu (weight - sqrt(weight^2 - |y_j|^2)) with |y_j| <= weight
FairNorm(weight, nu)        sum_j -nu (|y_j| + weight log(1 - |y_j|/weight)) with |y_j| < weight
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from recon.errors import not_negative
from recon.lower_level.batch import per_image_norm
from recon.lower_level.saddle.curvature import Curvature, GroupCurvature, Step, shaped_step
from recon.lower_level.saddle.functionals import Functional, ParameterBound, value_range

#: sup of the third derivative of sqrt(t^2 + 1)
THIRD = 1.5 / 1.25**2.5


class GroupNorm(Functional):
    """phi(x) = sum_j psi_j(|x_j|) + (mu/2)||x||^2: groups x_j are the vectors along ``axis`` of ``shape``.

    With ``axis`` None, groups are single components. ``weight`` and other tensors broadcast to ``shape``, where
    ``axis`` has the length one.
    """

    def __init__(self, shape: Sequence[int], axis: int | None, weight: Tensor | float, mu: float) -> None:
        value_range(weight, "weights of a norm", 0.0)
        not_negative(mu=mu)
        self.shape, self.weight, self.mu = tuple(shape), weight, mu
        self.axis = None if axis is None else 1 + axis % len(self.shape)
        self.size, self.convexity = math.prod(self.shape), mu

    def profile(self, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """psi(r), psi'(r)/r and psi''(r); both infinite at a kink."""
        raise NotImplementedError

    def shrink(self, r: Tensor, step: Step) -> Tensor:
        """rho/r, with rho >= 0 the solution of (1 + t mu) rho + t psi'(rho) = r."""
        raise NotImplementedError

    def groups(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x as ``(batch, *shape)``, and the norms of its groups."""
        z = x.reshape(len(x), *self.shape)
        # not torch.norm, which takes ten times as long along an axis that is not the last one
        return z, z.abs() if self.axis is None else z.square().sum(self.axis, keepdim=True).sqrt()

    def along(self, z: Tensor) -> Tensor:
        """The sum over each group."""
        return z if self.axis is None else z.sum(self.axis, keepdim=True)

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
        step = shaped_step(step, self.shape)
        if isinstance(step, Tensor) and self.axis is not None:
            step = step.narrow(self.axis, 0, 1)  # one per group
        return (self.shrink(r, step) * z).flatten(1)

    def conjugate_distance(self, x: Tensor, p: Tensor) -> Tensor:
        """phi(x) + phi*(p) - <x, p> without the quadratic term: :meth:`fenchel` for mu = 0."""
        raise NotImplementedError

    def fenchel(self, x: Tensor, p: Tensor) -> Tensor:
        """With b = grad phi*(p) and q = p - mu b, a subgradient of the norm at b, it is

        that of the norm alone at (x, q), and (mu/2)||x - b||^2: a sum of what is not negative, where nothing cancels.
        """
        if not self.mu:
            return self.conjugate_distance(x, p)
        norm = copy.copy(self)
        norm.mu = 0.0
        b = norm.prox(p / self.mu, 1 / self.mu)
        q, size = self.groups(p - self.mu * b)
        # by rounding alone it may lie outside the ball of the weight
        q = q * (self.weight * (1 - torch.finfo(x.dtype).eps) / size.clamp_min(torch.finfo(x.dtype).tiny)).clamp_max(1)
        return self.conjugate_distance(x, q.flatten(1)) + 0.5 * self.mu * (x - b).double().square().sum(1)

    def _weight_bound(self, rate: float, x: Tensor, w: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """d_w <grad psi(x), u> = <psi'(|x|)/(w |x|) x, u>, of Lipschitz constant ``rate``: 1/nu, infinite for kinks."""
        z, r = self.groups(x)
        count, weight = math.sqrt(r[0].numel()), self.weight
        slope = (self.profile(r)[1] / weight * z) if value_range(weight)[0] > 0 else torch.ones_like(z)
        if math.isfinite(rate):
            norm = per_image_norm(torch.nan_to_num(slope, posinf=1.0))
            norm = (norm + rate * radius).clamp_max(count)
        else:
            norm = torch.full_like(radius, count)
        return norm, rate * per_image_norm(w)


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
        not_negative(eps=eps)
        self.eps = eps
        self.smoothness = 1 / eps + mu if eps > 0 else math.inf

    def profile(self, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        w, eps = self.weight, self.eps
        inside = r <= eps * w
        inner = 1 / eps if eps else math.inf
        value = torch.where(inside, 0.5 * inner * r.square() if eps else 0 * r, w * r - 0.5 * eps * w**2)
        ratio = torch.where(inside, inner, w / torch.where(inside, 1.0, r))
        return value, ratio, torch.where(inside, inner, torch.zeros_like(r))

    def shrink(self, r: Tensor, step: Step) -> Tensor:
        w, eps = self.weight, self.eps
        scale = 1 + step * self.mu
        inside = r <= (eps * scale + step) * w
        return torch.where(inside, eps / (eps * scale + step), (1 - step * w / torch.where(inside, 1.0, r)) / scale)

    def conjugate_distance(self, x: Tensor, p: Tensor) -> Tensor:
        z, r = self.groups(x)
        q, size = self.groups(p)
        w, eps = self.weight, self.eps
        outside = size > w * (1 + 8 * torch.finfo(x.dtype).eps)
        far = w * r - self.along(z * q) - 0.5 * eps * (w**2 - size.square())
        if eps:
            far = torch.where(r <= eps * w, self.along((z - eps * q).square() / (2 * eps)), far)
        return sum_within(far, outside)

    def tensors(self) -> list[tuple[Tensor, ParameterBound]]:
        return [(self.weight, partial(self._weight_bound, math.inf))] if isinstance(self.weight, Tensor) else []


class SmoothedNorm(GroupNorm):
    """psi(r) = w (sqrt(r^2 + nu^2) - nu): infinitely smooth; w and nu may be learned."""

    stable_fenchel = True
    #: third w/nu^2 is the Lipschitz constant of the Hessian; its derivative along v is at most relative/nu |v| times it
    third, relative = THIRD, 1.5

    def __init__(
        self,
        shape: Sequence[int],
        weight: Tensor | float,
        nu: Tensor | float,
        axis: int | None = 0,
        mu: float = 0.0,
    ) -> None:
        super().__init__(shape, axis, weight, mu)
        value_range(nu, "widths of a smoothed norm", sys.float_info.min)
        self.nu = nu
        self.smoothness = value_range(weight / nu)[1] + mu
        self.hessian_lipschitz = self.third * value_range(weight / nu**2)[1]

    def profile(self, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        w, nu = self.weight, self.nu
        root = (r.square() + nu**2).sqrt()
        ratio = w / root
        return w * r.square() / (root + nu), ratio, ratio * (nu / root) ** 2

    def shrink(self, r: Tensor, step: Step) -> Tensor:
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

    def conjugate_distance(self, x: Tensor, p: Tensor) -> Tensor:
        z, r = self.groups(x)
        q, size = self.groups(p)
        w, nu = self.weight, self.nu
        outside = size > w * (1 + 8 * torch.finfo(x.dtype).eps)
        # a w - <A, B> = (a w/2) |A/a - B/w|^2 with A = (z, nu) of norm a, B = (q, (w^2 - |q|^2)^(1/2)) of norm w: as it
        # stands in the definition it would cancel, and certify less than the rounding error
        a, b = (r.square() + nu**2).sqrt(), (w**2 - size.square()).clamp_min(0).sqrt()
        safe = _positive(w, x)
        turn = self.along((z / a - q / safe).square())
        return sum_within(0.5 * a * w * (turn + (nu / a - b / safe).square()), outside)

    def variation(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """kappa = relative/nu |w_j|, T = third weight/nu^2 |w_j|, maximal over the groups."""
        _, r = self.groups(w)
        kappa, lipschitz = self.relative / self.nu * r, self.third * self.weight / self.nu**2 * r
        return kappa.flatten(1).amax(1).double(), lipschitz.flatten(1).amax(1).double()

    def tensors(self) -> list[tuple[Tensor, ParameterBound]]:
        bounds: list[tuple[Tensor, ParameterBound]] = []
        if isinstance(self.weight, Tensor):
            bounds.append((self.weight, partial(self._weight_bound, 1 / value_range(self.nu)[0])))
        if isinstance(self.nu, Tensor):
            bounds.append((self.nu, self._width_bound))
        return bounds

    def _width_bound(self, x: Tensor, w: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """d_nu <grad psi(x), u> = <width_slope(|x|) x, u>, of Lipschitz constant w / nu^2."""
        z, r = self.groups(x)
        rate = value_range(self.weight / self.nu**2)[1]
        return per_image_norm(self.width_slope(r) * z) + rate * radius, rate * per_image_norm(w)

    def width_slope(self, r: Tensor) -> Tensor:
        """The derivative of psi'(r)/r in nu."""
        return -self.weight * self.nu * (r.square() + self.nu**2) ** -1.5


class FairNorm(SmoothedNorm):
    r"""psi(r) = w (r - nu log(1 + r/nu)), the function "fair" of robust statistics: its prox is a closed formula.

    psi'(r) = w r/(nu + r). Of class C^2. At r = 0 the derivative of the Hessian along e = <n, e> n + m is -(w/nu^2)
    (<n, e> (I + n n^T) + n m^T + m n^T), of norm at most 2; it falls with r, also in proportion to the Hessian.
    """

    third, relative = 2.0, 2.0

    def profile(self, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        w, nu = self.weight, self.nu
        ratio = w / (nu + r)
        return w * nu * _log_distance(r / nu), ratio, ratio * (nu / (nu + r))

    def shrink(self, r: Tensor, step: Step) -> Tensor:
        """The positive root of (1 + t mu) rho^2 + b rho - r nu, b = (1 + t mu) nu + t w - r."""
        nu, scale = self.nu, 1 + step * self.mu
        b = scale * nu + step * self.weight - r
        root = (b.square() + 4 * scale * nu * r).sqrt()
        return torch.where(b > 0, 2 * nu / (b + root), (root - b) / (2 * scale * r))

    def conjugate_distance(self, x: Tensor, p: Tensor) -> Tensor:
        """w nu (s - log(1 + s)) + |x||p| - <x, p>, s = |x|/nu - (1 + |x|/nu) |p|/w > -1, group by group."""
        (z, r), (q, size) = self.groups(x), self.groups(p)
        w, nu = self.weight, self.nu
        s = r / nu - (1 + r / nu) * (size / _positive(w, x))
        turn = r * size - self.along(z * q)
        if self.axis is not None:  # the same without cancellation where both are not tiny
            tiny = torch.finfo(x.dtype).tiny
            between = self.along((z / r.clamp_min(tiny) - q / size.clamp_min(tiny)).square())
            turn = torch.where((r > tiny) & (size > tiny), 0.5 * r * size * between, turn)
        gap = torch.where(s > -1, w * nu * _log_distance(s.clamp_min(-1)), math.inf) + turn
        return gap.flatten(1).double().sum(1)

    def width_slope(self, r: Tensor) -> Tensor:
        """The derivative of psi'(r)/r in nu."""
        return -self.weight / (self.nu + r).square()


def sum_within(terms: Tensor, outside: Tensor) -> Tensor:
    """The sum of the terms of every image, float64; infinite where one of its components is ``outside``."""
    return torch.where(outside.flatten(1).any(1), math.inf, terms.flatten(1).double().sum(1))


def _positive(w: Tensor | float, like: Tensor) -> Tensor | float:
    """w, or the smallest normal number where w is zero."""
    tiny = torch.finfo(like.dtype).tiny
    return w.clamp_min(tiny) if isinstance(w, Tensor) else max(w, tiny)


def _log_distance(s: Tensor) -> Tensor:
    """s - log(1 + s) >= 0, by its series where it would cancel."""
    series = s.square() * (0.5 - s * (1 / 3 - s * (0.25 - 0.2 * s)))
    return torch.where(s.abs() < 1e-3, series, s - torch.log1p(s))


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
