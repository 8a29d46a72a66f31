"""The lower-level problem: h(x) = D(Ax, y) + R(x) + (mu/2)||x||^2, image by image."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple, Self

import torch
from torch import Tensor

from recon.errors import not_negative
from recon.lower_level.batch import per_image_norm
from recon.lower_level.contract import Claims, check_shapes
from recon.lower_level.fidelity import DataFidelity, SquaredL2
from recon.lower_level.grade import Grade
from recon.lower_level.precision import SUMMATION, underflow, unit_roundoff
from recon.lower_level.regularizer import HessianMap, Regularizer
from recon.lower_level.solution import LinearSolution
from recon.lower_level.solvers.cg import conjugate_gradients
from recon.lower_level.solvers.preconditioner import Preconditioner, hessian_symbol
from recon.lower_level.watch import Iterate, watch_of
from recon.operators import Identity, LinearOperator

#: the share of R''(0) in the preconditioner: fewest evaluations for total variation of several weights and smoothings
FLAT = 0.3


class NotStronglyConvexError(ValueError):
    """A certificate was asked for, but no positive modulus of strong convexity is known."""


class Rounding(NamedTuple):
    r"""fixed + data max(pull, gain \|\|x\|\|) + image \|\|x\|\| + gradient \|\|g\|\|: see :meth:`Energy.rounding`."""

    fixed: Tensor
    pull: Tensor
    data: float
    gain: float
    image: float
    gradient: float

    def at(self, size: Tensor, grad_norm: Tensor) -> Tensor:
        """For norms of images and of gradients, ``(batch,)``."""
        data = self.fixed + self.data * self.pull.maximum(self.gain * size)
        return data + self.image * size + self.gradient * grad_norm


class Energy:
    """h(x) = D(Ax, y) + R(x) + (mu/2)||x||^2 for a batch of data ``y``; all moduli hold for every image.

    Parameters
    ----------
    y
        data, ``(batch, *operator.range_shape)``.
    regularizer
        R, at its current parameters.
    operator
        A; the identity by default.
    fidelity
        D; 1/2||Ax - y||^2 by default.
    mu
        weight of the quadratic term that makes h strongly convex where D and R do not.

    Raises
    ------
    ValueError
        if the data are not finite, do not fit the operator or the fidelity, or ``mu`` is negative.
    """

    def __init__(
        self,
        y: Tensor,
        regularizer: Regularizer,
        operator: LinearOperator | None = None,
        fidelity: DataFidelity | None = None,
        mu: float = 0.0,
        checked: bool = False,
    ) -> None:
        not_negative(mu=mu)
        self.y, self.regularizer, self.mu = y.detach(), regularizer, mu
        self.operator = operator if operator is not None else Identity()
        self.fidelity = fidelity if fidelity is not None else SquaredL2()
        if not checked:
            self._check(y)
        self._claims = Claims.of(regularizer)
        data = self.operator.lower_bound**2 * self.fidelity.strong_convexity(y)
        #: modulus of the part of h without R: D(A., y) + (mu/2)||.||^2
        self.data_convexity = data + mu
        #: a guaranteed modulus of strong convexity of h (not positive: none is known)
        self.strong_convexity = self.data_convexity + self._claims.convexity
        self._data_gain = self.operator.norm_bound**2 * self.fidelity.smoothness(y)
        rest = self._data_gain + mu
        #: a guaranteed Lipschitz constant of grad h (infinite: none is known)
        self.smoothness = rest + self._claims.smoothness
        gain = self._claims.gain
        #: whether the gain of rounding errors of R is known; where it is not, 10 max(1, mu) stands in for it: a guess
        self.gain_known = math.isfinite(gain)
        self._own_gain = mu + (gain if self.gain_known else 10 * max(1.0, self.strong_convexity))
        self._offset: float | None = None
        self._watch = watch_of(regularizer)
        self._seen: Iterate | None = None
        #: preconditioners by shape, type and device of the images
        self._inverses: dict[tuple[object, ...], Preconditioner | None] = {}
        #: ||A|| ||D'(0, y)||, per image
        self._pull = self.operator.norm_bound * per_image_norm(self.fidelity.grad(torch.zeros_like(self.y), self.y))
        #: ||A|| times the terms that D' subtracts, per image
        self._cancelled = self.operator.norm_bound * self.fidelity.rounding_terms(self.y)

    def _check(self, y: Tensor) -> None:
        shape, name = self.operator.range_shape, type(self.operator).__name__
        if y.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"the data are {y.dtype}, but must be float32 or float64")
        if y.ndim < 2 or len(y) == 0 or (shape is not None and tuple(y.shape[1:]) != shape):
            wanted = "(batch, ...)" if shape is None else f"(batch, {', '.join(map(str, shape))})"
            raise ValueError(
                f"the data have the shape {tuple(y.shape)}, but {name} maps to {wanted} with at least one image"
            )
        self.fidelity.check(y)

    def check_start(self, x0: Tensor) -> None:
        """Raise ``ValueError`` if a solver cannot start from ``x0``: one image for each of the data, no less precise.

        Broadcasting would make something else of the problem, without a word. (The operator knows the shape of images.)
        """
        same = isinstance(self.operator, Identity)
        if len(x0) != len(self.y) or (same and x0.shape != self.y.shape):
            raise ValueError(
                f"the start has the shape {tuple(x0.shape)}, the data {tuple(self.y.shape)}: "
                f"{'both must be the same' if same else 'needs one image for each of the data'}"
            )
        if x0.dtype not in (torch.float32, torch.float64) or torch.promote_types(x0.dtype, self.y.dtype) != x0.dtype:
            raise ValueError(f"the start is {x0.dtype}, but the data are {self.y.dtype}: use x0.to({self.y.dtype})")

    def require_strong_convexity(self) -> float:
        """The modulus of strong convexity, for those who need a certificate.

        Raises :class:`NotStronglyConvexError` if none is known.
        """
        if not self.strong_convexity > 0:
            raise NotStronglyConvexError(
                f"a certificate needs a strongly convex energy, but the modulus known for "
                f"{type(self.regularizer).__name__} with {type(self.operator).__name__} and mu = {self.mu:g} is "
                f"{self.strong_convexity:g}; use a convex regularizer, a larger mu, or define convexity()"
            )
        return self.strong_convexity

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """h(x), in float64, and its gradient in x: ``(batch,)`` and the shape of x. One evaluation.

        Raises :class:`recon.lower_level.ContractError` where the regularizer is not what it claims, as far as is seen.
        """
        z = self.operator(x)
        value, grad = self.regularizer.value_and_grad(x)
        check_shapes(self.regularizer, x, value, grad)
        if self._watch.due():
            self._spot_check(x.detach(), grad.detach())
        grad = grad + self.operator.adjoint(self.fidelity.grad(z, self.y))
        value = value.double() + self.fidelity.value(z, self.y)
        if self.mu:
            grad = grad.add_(x, alpha=self.mu)
            value = value + 0.5 * self.mu * per_image_norm(x).square()
        return value, grad

    def _spot_check(self, x: Tensor, grad: Tensor) -> None:
        """Compare with what was seen before, if it is of the same images, else remember."""
        before, self._seen = self._seen, (x, grad)
        if before is not None and before[0].shape == x.shape:
            self._seen = None
            noise = self._regularizer_rounding(*before) + self._regularizer_rounding(x, grad)
            self._watch.compare(self.regularizer, self._claims, before, (x, grad), noise)

    def grad(self, x: Tensor) -> Tensor:
        """The gradient of h in x. One evaluation."""
        return self.value_and_grad(x)[1]

    def hessian(self, x: Tensor) -> HessianMap:
        """v -> h''(x) v, linearized once at x; every application is one evaluation."""
        regularizer = self.regularizer.hessian(x)
        curvature = self.fidelity.curvature(self.operator(x), self.y)

        def apply(v: Tensor, kept: Tensor | None) -> Tensor:
            part = regularizer if kept is None else regularizer.select(kept)
            weight = curvature if kept is None or curvature.shape[0] == 1 else curvature[kept]
            product = part(v) + self.operator.adjoint(weight * self.operator(v))
            return product.add_(v, alpha=self.mu) if self.mu else product

        return HessianMap(apply)

    def parameter_vjp(self, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        """d/dtheta of sum_i <grad h(x_i), w_i>, one tensor for every trainable parameter of R."""
        return self.regularizer.parameter_vjp(x, w)

    def rounding(self, x: Tensor, grad_norm: Tensor) -> Tensor:
        r"""A first-order model of the rounding error of a computed gradient, per image:

            u_A (c + e/u_A) max(||A||^2 L_D ||x||, ||A|| ||D'(0, y)||) + u_A ||A|| t
              + u ((G_R + mu) ||x|| + s + 8 ||grad||),

        with the unit roundoff u of the dtype and u_A >= u of the operator, c its ``rounding_factor``, e its
        ``adjoint_mismatch``, t the terms that D' subtracts (:meth:`DataFidelity.rounding_terms`), G_R and s the
        ``rounding_gain`` and ``rounding_offset`` of R. The maximum is that of data far from all Ax: then A^T D' is
        a small difference of large numbers, although x is small. Certificates add all this to the residual, so that
        a residual below the noise of its own evaluation certifies nothing.
        """
        return self.rounding_model(x).at(per_image_norm(x), grad_norm)

    def rounding_model(self, x: Tensor) -> Rounding:
        """:meth:`rounding` for images of the shape and type of x, as a function of norms."""
        unit, lost = unit_roundoff(x.dtype), self._lost(x)
        fixed = self.unit(x.dtype) * self._cancelled + (self._offset_rounding(x) + lost)
        data = self._data_unit(x.dtype)
        return Rounding(fixed, self._pull, data, self._data_gain, unit * self._own_gain, unit * SUMMATION)

    def _regularizer_rounding(self, x: Tensor, grad: Tensor) -> Tensor:
        """The same for the gradient of R alone."""
        return self._offset_rounding(x) + self._own_rounding(x, per_image_norm(x), per_image_norm(grad))

    def _offset_rounding(self, x: Tensor) -> float:
        if self._offset is None:
            self._offset = self.regularizer.rounding_offset(x)
        return unit_roundoff(x.dtype) * self._offset

    def product_rounding(self, x: Tensor, grad_norm: Tensor) -> Tensor:
        """The same for products of the Hessian with x, in which neither the data occur nor what R subtracts."""
        size = per_image_norm(x)
        return self._data_unit(x.dtype) * self._data_gain * size + self._own_rounding(x, size, grad_norm)

    def adjoint_rounding(self, x: Tensor, w: Tensor, grad_norm: Tensor, lipschitz: Tensor) -> Tensor:
        """The same for h''(x) w, with the rounding errors of x in it: 4 u T(w) ||x||, T the Lipschitz constant in x.

        What filters make of x is rounded by about u ||x||, and the product is that of the Hessian at another point:
        not small where images are large against the width over which the curvature of R changes.
        """
        size = per_image_norm(x)
        moved = torch.where(size > 0, lipschitz * size, 0.0)  # T may be infinite
        return self.product_rounding(w, grad_norm) + 4 * self.unit(x.dtype) * moved

    def _own_rounding(self, x: Tensor, size: Tensor, grad_norm: Tensor) -> Tensor:
        """What the operator has no part in."""
        return unit_roundoff(x.dtype) * (self._own_gain * size + SUMMATION * grad_norm) + self._lost(x)

    def _lost(self, x: Tensor) -> float:
        """What may be lost by underflow."""
        return (self._data_gain + self._own_gain + 1) * underflow(x)

    @property
    def basis(self) -> Grade:
        """ESTIMATED where the model of rounding errors has a constant that nobody proved or stated, else PROVED."""
        operator = self.operator
        known = operator.norm_bound_certified and not operator.adjoint_mismatch and self.gain_known
        return Grade.PROVED if known else Grade.ESTIMATED

    def working_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The type that gradients at images of ``dtype`` are computed in: single precision if the operator does so."""
        return dtype if self.unit(dtype) <= unit_roundoff(dtype) else torch.float32

    def unit(self, dtype: torch.dtype) -> float:
        """The unit roundoff of gradients for images of ``dtype``: that of the operator, if this is less precise."""
        return max(unit_roundoff(dtype), self.operator.unit_roundoff(dtype))

    def _data_unit(self, dtype: torch.dtype) -> float:
        """Relative error of A^T D'(Ax) for x of ``dtype``."""
        return self.unit(dtype) * self.operator.rounding_factor + self.operator.adjoint_mismatch

    def preconditioner(self, like: Tensor) -> Preconditioner | None:
        """P about h'' for images of the shape of ``like``, diagonal in frequency; None without a ``normal_symbol``.

        P = c A^T A + ``FLAT`` R''(0) + mu, with the mean c of D'' at z = y. R''(0) is what R does where the image is
        flat; at edges it does much less. It costs one product with it for one image, once, and none with A.
        """
        kind = (like.shape[1:], like.dtype, like.device)
        if kind not in self._inverses:
            self._inverses[kind] = self._made_preconditioner(like)
        return self._inverses[kind]

    def _made_preconditioner(self, like: Tensor) -> Preconditioner | None:
        normal = self.operator.normal_symbol()
        if normal is None:
            return None
        weight = self.fidelity.curvature(self.y, self.y).flatten(1).mean(1).double()
        flat = torch.zeros_like(like[:1])
        own = self.regularizer.select(slice(0, 1))  # that of the first image may stand for all: any P > 0 will do
        part = hessian_symbol(own.hessian(flat), flat, normal.complex_pairs).double()
        data = weight[:, None, None] * normal.values.to(like.device)
        return Preconditioner(data + FLAT * part + self.mu, normal.complex_pairs)

    def solve_adjoint(
        self, x: Tensor, b: Tensor, w0: Tensor, accuracy: float | Tensor, max_iterations: int
    ) -> LinearSolution:
        """Solve h''(x) w = b to ||h''(x) w - b|| <= ``accuracy`` per image by conjugate gradients from w0.

        The residual is that of h''(x) as it is computed, which differs from the exact one, :meth:`adjoint_rounding`.
        """
        rounding = unit_roundoff(x.dtype) * self._own_gain + self._data_unit(x.dtype) * self._data_gain
        hessian, preconditioner = self.hessian(x), self.preconditioner(x)
        return conjugate_gradients(
            hessian, b, w0, accuracy, max_iterations, rounding=rounding, preconditioner=preconditioner
        )

    def select(self, index: Tensor) -> Self:
        """The energies of the images ``index`` alone, of the same class."""
        part = copy.copy(self)
        part._inverses = {kind: p and p.select(index) for kind, p in self._inverses.items()}
        part.y, part._pull, part._cancelled = self.y[index], self._pull[index], self._cancelled[index]
        part.regularizer = self.regularizer.select(index)
        part.fidelity = self.fidelity.select(index, self.y)
        return part
