"""Saddle-point problems min_x max_y <Kx, y> + g(x) - f*(y), a batch at a time, and what certifies their solutions.

x and y of an image are flat vectors, ``(batch, n)`` and ``(batch, m)``. Problems of several variables (image and field,
data and gradient) put them one after the other: every solver, norm and certificate then is a line of arithmetic on
one tensor, and only K and the functionals know what the parts mean.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn

from recon.lower_level.batch import per_image_norm
from recon.lower_level.energy import NotStronglyConvexError
from recon.lower_level.grade import Grade
from recon.lower_level.recreatable import Recreatable
from recon.lower_level.saddle.curvature import Curvature, Step
from recon.lower_level.saddle.functionals import Functional
from recon.lower_level.saddle.maps import SaddleMap, check_transpose, power_method
from recon.operators import Identity, LinearOperator

Shape = Sequence[int]


class SaddlePoint:
    r"""min_x max_y <Kx, y> + g(x) - f*(y), f* the conjugate of f: the same as min_x g(x) + f(Kx).

    With p in the subdifferential of g at x, plus K^T y, and d in that of f* at y, minus Kx, strong monotonicity gives

        mu_g \|\|x - x^\|\|^2 + mu_f \|\|y - y^\|\|^2 <= <p, x - x^> + <d, y - y^>,

    a ball around a known centre: :func:`distances` says how far x and y can be from the solution. It contains the
    distances eps_x, eps_y of Bogensperger, Ehrhardt, Pock, Salehi, Wong (2025, Lemma 2) as the cases d = 0 and p = 0,
    and needs no other product with K than the iteration itself. The primal-dual gap bounds them, too: G(x, y) >=
    (mu_g/2) \|\|x - x^\|\|^2 + (mu_f/2) \|\|y - y^\|\|^2.

    Parameters
    ----------
    operator
        K.
    g, f
        the functionals, for every image of the batch.
    image_shape
        ``(channel, height, width)``; x begins with the image.
    check
        test the transpose of K on random vectors, at the cost of two evaluations.

    Raises
    ------
    ValueError
        sizes do not fit, or ``transpose`` is not the transpose of K.
    """

    def __init__(
        self, operator: SaddleMap, g: Functional, f: Functional, image_shape: Shape, check: bool = True
    ) -> None:
        if g.size != operator.domain_size or f.size != operator.range_size:
            raise ValueError(
                f"K maps {operator.domain_size} to {operator.range_size} components, but g takes {g.size} and f "
                f"{f.size}"
            )
        self.pixels = math.prod(image_shape)
        if self.pixels > g.size:
            raise ValueError(f"x has {g.size} components, too few for images of the shape {tuple(image_shape)}")
        self.operator, self.g, self.f, self.image_shape = operator, g, f, tuple(image_shape)
        if check:
            check_transpose(operator)

    @property
    def convexity(self) -> float:
        """The modulus mu_g of g."""
        return self.g.convexity

    @property
    def image_convexity(self) -> float:
        """mu_u >= mu_g, the modulus of g in the image alone: in the certificates, ||u - u^|| has it for ||x - x^||."""
        return self.g.leading_convexity(self.pixels)

    @property
    def spread(self) -> float:
        """sqrt(mu_u / mu_g) >= 1: how many times larger than that of the image the certified error of x is."""
        return math.sqrt(self.image_convexity / self.convexity) if self.convexity > 0 else math.inf

    @property
    def dual_convexity(self) -> float:
        """The modulus mu_f of f*."""
        return 1 / self.f.smoothness if self.f.smoothness > 0 else math.inf

    def require_strong_convexity(self) -> float:
        """mu_g, for those who need a certificate; raises :class:`NotStronglyConvexError` if it is not positive."""
        if not self.convexity > 0:
            raise NotStronglyConvexError(
                f"a certificate for x needs a strongly convex g, but the modulus of {type(self.g).__name__} is "
                f"{self.convexity:g}; add a quadratic term to every part of g"
            )
        return self.convexity

    def require_dual_convexity(self) -> float:
        """mu_f, for those who need derivatives; raises :class:`NotStronglyConvexError` if it is not positive."""
        if not self.dual_convexity > 0:
            raise NotStronglyConvexError(
                f"this needs a strongly convex f*, but the modulus of the conjugate of {type(self.f).__name__} is 0; "
                "smooth every part of f"
            )
        return self.dual_convexity

    @cached_property
    def norm(self) -> float:
        """An upper bound of ||K||: the guaranteed one, or an estimate by the power method with a tenth of margin."""
        if math.isfinite(self.operator.norm_bound):
            return self.operator.norm_bound
        return 1.1 * power_method(self.operator)

    @property
    def basis(self) -> Grade:
        """ESTIMATED where ||K|| is an estimate, or the transpose is off by what was measured; else PROVED."""
        return Grade.PROVED if math.isfinite(self.operator.norm_bound) and self.operator.exact else Grade.ESTIMATED

    def working_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The type that products with K of ``dtype`` are computed in: single precision if K is."""
        return dtype if self.operator.eps(dtype) < torch.finfo(torch.float32).eps else torch.float32

    def image(self, x: Tensor) -> Tensor:
        """The image that x begins with, ``(batch, *image_shape)``."""
        return x[:, : self.pixels].reshape(-1, *self.image_shape)

    def embed(self, image: Tensor) -> Tensor:
        """The transpose of :meth:`image`: zero in all other parts of x."""
        rest = image.new_zeros(len(image), self.operator.domain_size - self.pixels)
        return torch.cat([image.flatten(1), rest], 1)

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """x and y of z = (x, y)."""
        return z[:, : self.operator.domain_size], z[:, self.operator.domain_size :]

    def gap_parts(self, x: Tensor, y: Tensor, kx: Tensor, kty: Tensor) -> tuple[Tensor, Tensor]:
        r"""The primal-dual gap G(x, y) = g(x) + f(Kx) + g*(-K^T y) + f*(y), and a model of its rounding error.

        Both may be infinite.

        Where the formula of a Fenchel gap F(v) does not cancel, what remains are the rounding errors of K x, K^T y, x,
        grad f*(y) and grad g*(-K^T y): F, convex in v with an L-Lipschitz gradient, moves by at most sqrt(2 L F) r +
        L r^2 / 2 for an error r of v. Elsewhere, and without such an L, it is as wrong as its terms are rounded.
        """
        eps = self.operator.eps(x.dtype)
        n_x, n_kx, n_kty, n_y = (per_image_norm(v) for v in (x, kx, kty, y))
        g, f = self.g.fenchel(x, -kty).clamp_min(0), self.f.fenchel(kx, y).clamp_min(0)
        if self.g.stable_fenchel and self.convexity > 0 and math.isfinite(self.g.smoothness):
            noise = _moved(g, 1 / self.convexity, 4 * eps * (n_kty + self.norm * n_y))
            noise = noise + _moved(g, self.g.smoothness, 4 * eps * (n_x + self.g.conjugate_terms(-kty)))
        else:
            noise = 4 * eps * (x * kty).double().abs().sum(1)
        if self.f.stable_fenchel and math.isfinite(self.f.smoothness):
            moved = n_kx + self.norm * n_x + self.f.conjugate_terms(y)
            noise = noise + _moved(f, self.f.smoothness, 4 * eps * moved)
        else:
            noise = noise + 4 * eps * (kx * y).double().abs().sum(1)
        finite = torch.isfinite(g + f)
        return torch.where(finite, g + f, math.inf), torch.where(finite, noise, math.inf)

    def linearized(self, x: Tensor, s: Tensor, slope: Tensor, dual_slope: Tensor | None = None) -> SaddlePoint:
        r"""The adjoint problem of the losses l_1(x), l_2(y), whose solution (X, Y) is the saddle point of

            <KX, Y> + 1/2 <g''(x) X, X> + <grad l_1, X> - 1/2 <(f*)'' Y, Y> + <grad l_2, Y>,

        with (f*)'' at the dual point grad f(s), that is, the inverse of f''(s).
        """
        g = QuadraticModel(self.g, self.g.hessian(x), slope, None)
        f = QuadraticModel(self.f, self.f.hessian(s), None, dual_slope)
        part = self._with_norm()
        part.g, part.f = g, f
        return part

    def select(self, index: Tensor) -> SaddlePoint:
        """The problems of the images ``index`` alone."""
        part = self._with_norm()
        part.g, part.f = self.g.select(index), self.f.select(index)
        return part

    def _with_norm(self) -> SaddlePoint:
        """A copy that does not compute ||K|| anew."""
        _ = self.norm
        return copy.copy(self)


class SaddleModel(Recreatable):
    """What is learned: parameters theta, and the saddle-point problem that they make of data."""

    #: mu of the term (mu/2)||x||^2 beside data that an operator measured; None where the model has no place for it
    image_convexity: float | None = None
    #: of the images; those with more are denoised channel by channel
    channels: int = 1

    def saddle_point(self, y: Tensor) -> SaddlePoint:
        """The problems of the data ``y``, ``(batch, ...)``, at the current parameters.

        K, g and f are made from the parameters by differentiable operations: if gradients are on, their ``tensors``
        have a graph. The image that x begins with is what an upper-level loss compares. The problem may leave out the
        test of the transpose (``check=False``); objectives test it once.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define saddle_point")

    @property
    def has_plain_form(self) -> bool:
        """Whether :meth:`saddle_point` takes an argument ``plain``."""
        return "plain" in inspect.signature(self.saddle_point).parameters

    def plain_saddle_point(self, y: Tensor) -> SaddlePoint:
        """The problems without what was added for certificates: ``saddle_point(y, plain=True)``.

        Raises
        ------
        ValueError
            if the model has no such form.
        """
        if not self.has_plain_form:
            raise ValueError(f"{type(self).__name__} has no plain form: its saddle_point takes no argument plain")
        form: Callable[..., SaddlePoint] = self.saddle_point
        return form(y, plain=True)

    def measured_by(self, operator: LinearOperator | None) -> None:
        """Set A; None is the identity, which is all that a model without a method of its own takes.

        Raises
        ------
        ValueError
            The model takes no operator.
        """
        if operator is not None and not isinstance(operator, Identity):
            raise ValueError(
                f"{type(self).__name__} takes no operator (it has no method measured_by), but the data "
                f"were measured by {type(operator).__name__}"
            )

    def scaled(self, weight: float, mu: float | None = None) -> Self:
        """A copy with ``weight`` times the regularizer and, unless it is None, with ``mu`` as ``image_convexity``.

        Subclasses that can be multiplied override :meth:`multiply`.

        Raises
        ------
        ValueError
            The weight is not positive or cannot be changed, or there is no place for mu.
        """
        if not 0 < weight < math.inf:
            raise ValueError(f"the weight is {weight}, but must be positive and finite")
        made = self.copied().requires_grad_(False)
        if mu is not None:
            if self.image_convexity is None:
                raise ValueError(f"{type(self).__name__} has no mu that could be changed; leave out --mu")
            made.image_convexity = mu
        if weight != 1:
            made.multiply(weight)
        return made

    def copied(self) -> Self:
        """A copy with parameters of its own; what is large and no part of the model may be shared."""
        return copy.deepcopy(self)

    def multiply(self, weight: float) -> None:
        """Multiply the regularizer by ``weight``, in place.

        Raises
        ------
        ValueError
            It cannot be changed.
        """
        raise ValueError(f"the weight of {type(self).__name__} cannot be changed, only that of LearnedTV")

    def initial(self, y: Tensor) -> Tensor:
        """The first (x, y) for the data ``y``, ``(batch, n + m)``: data that look like images, else zero."""
        with torch.no_grad():
            operator = (saddle := self.saddle_point(y)).operator
            z = y.new_zeros(len(y), operator.domain_size + operator.range_size)
            if y.shape[1:] == saddle.image_shape:
                z[:, : saddle.pixels] = y.flatten(1)
            return z

    def trainable(self) -> list[nn.Parameter]:
        """The parameters that are learned, in a fixed order."""
        return [p for p in self.parameters() if p.requires_grad]


class QuadraticModel(Functional):
    """1/2 <H (x + b), x + b> + <c, x>, with the moduli of the functional whose Hessian H is."""

    def __init__(self, of: Functional, hessian: Curvature, slope: Tensor | None, shift: Tensor | None) -> None:
        self.size, self.convexity, self.smoothness = of.size, of.convexity, of.smoothness
        self.curvature, self.slope, self.shift = hessian, slope, shift

    def grad(self, x: Tensor) -> Tensor:
        value = self.curvature(x if self.shift is None else x + self.shift)
        return value if self.slope is None else value + self.slope

    def hessian(self, x: Tensor) -> Curvature:
        return self.curvature

    def prox(self, v: Tensor, step: Step) -> Tensor:
        if self.slope is not None:
            v = v - step * self.slope
        if self.shift is None:
            return self.curvature.resolvent(v, step)
        return self.curvature.resolvent(v + self.shift, step) - self.shift

    def select(self, index: Tensor) -> QuadraticModel:
        part = copy.copy(self)
        part.curvature = self.curvature.select(index)
        part.slope = None if self.slope is None else self.slope[index]
        part.shift = None if self.shift is None else self.shift[index]
        return part


def distances(p: Tensor, d: Tensor, primal: float, dual: float) -> tuple[Tensor, Tensor]:
    r"""Bounds of \|\|x - x^\|\| and \|\|y - y^\|\| from residuals of norms ``p``, ``d`` and the moduli mu_g, mu_f.

    With a = sqrt(mu_g) \|\|x - x^\|\|, b = sqrt(mu_f) \|\|y - y^\|\| and residuals P = \|\|p\|\|/sqrt(mu_g),
    D = \|\|d\|\|/sqrt(mu_f), a^2 + b^2 <= P a + D b: a disc around (P, D)/2 through the origin. Infinite where a
    modulus is not positive.
    """
    if not (primal > 0 and dual > 0):
        unknown = torch.full_like(p, math.inf)
        return unknown, unknown
    scaled_p, scaled_d = p / math.sqrt(primal), d / math.sqrt(dual)
    root = torch.hypot(scaled_p, scaled_d)
    return (scaled_p + root) / (2 * math.sqrt(primal)), (scaled_d + root) / (2 * math.sqrt(dual))


def _moved(gap: Tensor, smoothness: float, error: Tensor) -> Tensor:
    """sqrt(2 L F) r + L r^2 / 2."""
    return (2 * smoothness * gap).sqrt() * error + 0.5 * smoothness * error.square()
