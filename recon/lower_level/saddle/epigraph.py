"""Functionals of convex networks: epigraphs of leaky ReLUs, sums of ReLUs, and functionals of x + b.

    min_x a^T sigma_1(W sigma_0(Vx + b_0) + b_1)  =  min_{x,z} a^T sigma_1(Wz + b_1)   s.t. (Vx + b_0, z) in epi sigma_0

where a, W >= 0 and sigma_1 does not decrease (Ehrhardt, Mukherjee, Wong 2024).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from recon.errors import not_negative
from recon.lower_level.batch import per_image_norm
from recon.lower_level.saddle.curvature import Curvature, GroupCurvature, Step, shaped_step
from recon.lower_level.saddle.functionals import Functional, ParameterBound, value_range
from recon.lower_level.saddle.norms import sum_within


def _leaky(t: Tensor, slope: float, width: float) -> Tensor:
    """sigma(t) = s t + (1 - s) rho(t), rho(t) = max(0, t) or, over the width w, t^2/(2 w)."""
    if width == 0:
        return slope * t + (1 - slope) * t.clamp_min(0)
    return slope * t + (1 - slope) * (t.clamp(0, width).square() / (2 * width) + (t - width).clamp_min(0))


def _leaky_slope(t: Tensor, slope: float, width: float) -> Tensor:
    part = (t > 0).to(t) if width == 0 else (t / width).clamp(0, 1)
    return slope + (1 - slope) * part


def _check(slope: float, width: float) -> None:
    if not 0 <= slope <= 1:
        raise ValueError(f"slope is {slope}, but must lie in [0, 1]: a leaky ReLU is convex and not decreasing")
    not_negative(width=width)


def project_epigraph(u: Tensor, z: Tensor, slope: float, width: float = 0.0) -> tuple[Tensor, Tensor]:
    r"""The nearest (t, sigma(t)) to points below the graph of the leaky ReLU sigma; others stay where they are.

    t solves F(t) = t - u + (sigma(t) - z) sigma'(t) = 0. With k = (1 - s) w/2 the pieces are t = (u + s z)/(1 + s^2)
    for t <= 0, t = (u + z + k)/2 for t >= w, and between them 0 (w = 0) or the root of a cubic, which is convex on
    [0, w], so that Newton's method falls to its root from w.
    """
    _check(slope, width)
    left = (u + slope * z) / (1 + slope**2)
    right = (u + z + (1 - slope) * width / 2) / 2
    t = torch.full_like(u, width)
    if width > 0:
        c = (1 - slope) / width
        for _ in range(60):
            # only points between the pieces matter; others would leave [0, w]
            line = slope + c * t
            height = slope * t + 0.5 * c * t.square() - z
            move = (t - u + height * line) / (1 + line.square() + c * height).clamp_min(1.0)
            new = (t - move).clamp(0, width)
            settled = bool(((new - t).abs() <= 2 * torch.finfo(u.dtype).eps * width).all())
            t = new
            if settled:
                break
    t = torch.where(left <= 0, left, torch.where(right >= width, right, t))
    inside = z >= _leaky(u, slope, width)
    return torch.where(inside, u, t), torch.where(inside, z, _leaky(t, slope, width))


def dual_epigraph(u: Tensor, z: Tensor, step: Tensor, slope: float, width: float = 0.0) -> tuple[Tensor, Tensor]:
    r"""v - sigma P(v / sigma), the proximal map of sigma f* for the constraint v = (u, z) in an epigraph; sigma > 0.

    Without a width the epigraph is a cone, and this is the projection of v onto its polar {(alpha, -beta): s beta <=
    alpha <= beta}, beta = max(0, (u - z)/2, min(-z, (s u - z)/(1 + s^2))): in the order of the arguments, v is in the
    epigraph, or nearest to its right edge, its tip, its left edge. alpha is u, clamped to [s beta, beta].
    """
    _check(slope, width)
    if width > 0:
        a, b = project_epigraph(u / step, z / step, slope, width)
        return u - step * a, z - step * b
    minus = torch.sub(z, u, alpha=slope).div_(1 + slope**2)
    torch.maximum(minus, z, out=minus)
    right = torch.sub(z, u).mul_(0.5)
    minus = torch.minimum(minus, right, out=minus).clamp_max_(0)
    alpha = torch.minimum(u, torch.neg(minus, out=right), out=right)
    return torch.maximum(alpha, minus * -slope, out=alpha), minus


def dual_relu_sum(v: Tensor, step: Tensor, weight: Tensor, width: float = 0.0) -> Tensor:
    """The proximal map of sigma f* for :class:`ReLUSum`: a v/(a + sigma w), clamped to [0, a]."""
    if width > 0:
        v = v * (weight / (weight + step * width).clamp_min(torch.finfo(v.dtype).tiny))
    return torch.minimum(v.clamp_min(0), weight)


class Epigraph(Functional):
    r"""phi(u, z) = 0 where z_j >= sigma(u_j) for every j, else infinite; with ``eps``, dist((u, z), epi)^2 / (2 eps).

    The components are u_1, ..., u_n, z_1, ..., z_n; groups are pairs (u_j, z_j). The conjugate of phi is
    sum_j beta_j (1 - s) w theta_j^2 / 2 for (alpha_j, -beta_j) with beta >= 0, alpha = beta (s + (1 - s) theta) and
    theta in [0, 1], infinite elsewhere, plus (eps/2) \|\|.\|\|^2.

    Parameters
    ----------
    count
        n.
    slope
        s;
    width
        w, of sigma.
    eps
        the modulus of the conjugate.
    """

    def __init__(self, count: int, slope: float = 0.2, width: float = 0.0, eps: float = 0.0) -> None:
        _check(slope, width)
        not_negative(eps=eps)
        self.count, self.size, self.slope, self.width, self.eps = count, 2 * count, slope, width, eps
        self.smoothness = 1 / eps if eps else math.inf

    def project(self, v: Tensor) -> Tensor:
        """The nearest point of the epigraphs."""
        u, z = v.split(self.count, 1)
        return torch.cat(project_epigraph(u, z, self.slope, self.width), 1)

    def value(self, x: Tensor) -> Tensor:
        distance = per_image_norm(x - self.project(x)).square()
        if self.eps:
            return distance / (2 * self.eps)
        return torch.where(distance > 0, math.inf, 0.0)

    def grad(self, x: Tensor) -> Tensor:
        return (x - self.project(x)) / self.eps if self.eps else torch.zeros_like(x)

    def hessian(self, x: Tensor) -> Curvature:
        r"""(I - P'(x)) / eps: P' is 0 across the graph, 1/(1 + d kappa) along it, d the distance, kappa the curvature.

        At a kink P' = 0. For the constraint itself the curvature of an active one is infinite across the graph and, as
        multipliers are not known here, that of a flat graph along it.
        """
        near = self.project(x)
        u, _ = near.split(self.count, 1)
        off = (x - near).view(len(x), 2, -1)
        outside = off.abs().amax(1, keepdim=True) > 0
        slope = _leaky_slope(u, self.slope, self.width)[:, None]
        length = (1 + slope.square()).sqrt()
        normal = torch.cat([slope, -torch.ones_like(slope)], 1) / length
        stiff = 1 / self.eps if self.eps else math.inf
        along = torch.where(outside, stiff, 0.0).to(x)
        if self.width == 0:
            kink = outside & (u[:, None] == 0)
            across = torch.where(kink, stiff, 0.0).to(x)
        else:
            bend = ((u > 0) & (u < self.width)).to(x)[:, None] * ((1 - self.slope) / self.width) / length**3
            part = off.square().sum(1, keepdim=True).sqrt() * bend
            across = part / (1 + part) * (1 / self.eps if self.eps else 0.0)
        return GroupCurvature((2, self.count), across, along, normal, 1)

    def prox(self, v: Tensor, step: Step) -> Tensor:
        """The projection, or v + t/(t + eps) (Pv - v)."""
        near = self.project(v)
        return v + (step / (step + self.eps)) * (near - v) if self.eps else near

    def fenchel(self, x: Tensor, p: Tensor) -> Tensor:
        alpha, minus = p.split(self.count, 1)
        beta, s = -minus, self.slope
        span = (1 - s) if s < 1 else 1.0
        theta = (alpha - s * beta) / (span * beta.clamp_min(torch.finfo(p.dtype).tiny))
        # y is a difference of larger numbers in Moreau's identity, hence its rounding is that of the largest component
        room = 64 * torch.finfo(p.dtype).eps * p.abs().amax(1, keepdim=True)
        outside = (beta < -room) | (alpha < s * beta - room) | (alpha > beta + room)
        support = torch.where(beta > 0, beta * (1 - s) * self.width / 2 * theta.clamp(0, 1).square(), 0.0)
        conjugate = support.double().sum(1) + self.eps / 2 * p.double().square().sum(1)
        gap = self.value(x) + conjugate - (x * p).double().sum(1)
        return torch.where(outside.any(1), math.inf, gap)


class ReLUSum(Functional):
    """phi(x) = sum_j a_j sigma(x_j), sigma the ReLU, over the width w t^2/(2 w); a >= 0 broadcasts to ``shape``.

    Unlike :class:`HuberReLU`, where it grows with a_j, the width is the same for all components.
    """

    def __init__(self, shape: Sequence[int], weight: Tensor | float, width: float = 0.0) -> None:
        _check(0.0, width)
        top = value_range(weight, "weights of a sum of ReLUs", 0.0)[1]
        self.shape, self.weight, self.width, self.size = tuple(shape), weight, width, math.prod(shape)
        self.smoothness = top / width if width else math.inf

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = x.reshape(len(x), *self.shape)
        a = self.weight if isinstance(self.weight, Tensor) else z.new_full((), self.weight)
        return z, a

    def value(self, x: Tensor) -> Tensor:
        z, a = self._parts(x)
        return (a * _leaky(z, 0.0, self.width)).flatten(1).double().sum(1)

    def grad(self, x: Tensor) -> Tensor:
        z, a = self._parts(x)
        return (a * _leaky_slope(z, 0.0, self.width)).flatten(1)

    def hessian(self, x: Tensor) -> Curvature:
        z, a = self._parts(x)
        if self.width == 0:
            return GroupCurvature(self.shape, torch.where(z == 0, math.inf, 0.0).to(x))
        return GroupCurvature(self.shape, a / self.width * ((z > 0) & (z < self.width)).to(x))

    def prox(self, v: Tensor, step: Step) -> Tensor:
        z, a = self._parts(v)
        pull = shaped_step(step, self.shape) * a
        middle = z / (1 + pull / self.width) if self.width else torch.zeros_like(z)
        return torch.where(z <= 0, z, torch.where(z - pull >= self.width, z - pull, middle)).flatten(1)

    def fenchel(self, x: Tensor, p: Tensor) -> Tensor:
        """phi*(p) = sum_j w p_j^2 / (2 a_j) for 0 <= p_j <= a_j."""
        z, a = self._parts(x)
        q = p.reshape(len(p), *self.shape)
        room = 64 * torch.finfo(p.dtype).eps * a.max()
        outside = (q < -room) | (q > a + room)
        conjugate = torch.where(q > 0, self.width / 2 * q.square() / a.clamp_min(1e-300), 0.0)
        return sum_within(a * _leaky(z, 0.0, self.width) + conjugate - z * q, outside)

    def tensors(self) -> list[tuple[Tensor, ParameterBound]]:
        return [(self.weight, self._weight_bound)] if isinstance(self.weight, Tensor) else []

    def _weight_bound(self, x: Tensor, w: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """d_a <a sigma'(x), u> = sigma'(x) u, summed over what one weight belongs to; of Lipschitz constant 1/w."""
        size = per_image_norm(w)
        if not self.width:
            return torch.full_like(size, math.sqrt(x.shape[1])), math.inf * size
        rate = 1 / self.width
        return per_image_norm(_leaky_slope(x, 0.0, self.width)) + rate * radius, rate * size


class Shifted(Functional):
    """phi(x + b), b of the shape ``(channels, 1, 1)`` or alike, which broadcasts to ``shape``.

    ``shape`` is that of the first components; the shift of all others is zero.
    """

    def __init__(self, of: Functional, bias: Tensor, shape: Sequence[int]) -> None:
        self.of, self.bias, self.shape = of, bias, tuple(shape)
        self.size, self.convexity, self.smoothness = of.size, of.convexity, of.smoothness
        self.hessian_lipschitz = of.hessian_lipschitz

    def shift(self) -> Tensor:
        """b in all components, ``(1, size)``."""
        bias = self.bias.expand(self.shape).reshape(1, -1)
        return torch.cat([bias, bias.new_zeros(1, self.size - bias.shape[1])], 1)

    def value(self, x: Tensor) -> Tensor:
        return self.of.value(x + self.shift())

    def grad(self, x: Tensor) -> Tensor:
        return self.of.grad(x + self.shift())

    def hessian(self, x: Tensor) -> Curvature:
        return self.of.hessian(x + self.shift())

    def prox(self, v: Tensor, step: Step) -> Tensor:
        shift = self.shift()
        return self.of.prox(v + shift, step) - shift

    def fenchel(self, x: Tensor, p: Tensor) -> Tensor:
        return self.of.fenchel(x + self.shift(), p)

    def variation(self, w: Tensor) -> tuple[Tensor, Tensor]:
        return self.of.variation(w)

    def tensors(self) -> list[tuple[Tensor, ParameterBound]]:
        inner: list[tuple[Tensor, ParameterBound]] = [(t, partial(self._shifted, b)) for t, b in self.of.tensors()]
        return [*inner, (self.bias, self._bias_bound)]

    def _shifted(self, bound: ParameterBound, x: Tensor, w: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        return bound(x + self.shift().detach(), w, radius)

    def _bias_bound(self, x: Tensor, w: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """d_b <grad phi(x + b), u> = phi''(x + b) u, summed over the components that share one b."""
        shared = math.sqrt(math.prod(self.shape) / self.bias.numel())
        return torch.full_like(radius, shared * self.smoothness), shared * self.of.variation(w)[1]

    def select(self, index: Tensor) -> Shifted:
        part = copy.copy(self)
        part.of = self.of.select(index)
        return part
