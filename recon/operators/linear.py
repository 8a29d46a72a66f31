"""Linear operators between image and data spaces: the interface, the identity, and derivatives of foreign code."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor, nn

from recon.operators.symbol import NormalSymbol

Shape = tuple[int, ...]
LinearMap = Callable[[Tensor], Tensor]


class LinearOperator(nn.Module):
    """A linear map ``A`` applied to every member of a batch, with its Euclidean transpose and bounds on its gain.

    Subclasses implement ``_forward`` and ``_adjoint``; validation is done here. Both must be differentiable any number
    of times: build them from torch operations, or wrap foreign code with :func:`apply_linear`.

    ``A @ B``, ``A.T``, ``A + B``, ``A - B``, ``2 * A``, ``weights * A``, ``-A`` and :func:`recon.operators.stack` are
    operators again: what is stated of the parts, as below, becomes what holds of the whole.

    Parameters
    ----------
    domain_shape, range_shape : tuple of int or None
        Shapes without the batch axis, e.g. ``(1, 256, 256)``; None accepts any shape. Where both are None, data have
        the shape of the image.
    norm_bound : float
        Upper bound of the spectral norm, ``||A x|| <= norm_bound ||x||`` in Euclidean norms.
    lower_bound : float
        ``m >= 0`` with ``||A x|| >= m ||x||``; 0 is always valid.
    norm_bound_certified : bool
        True if ``norm_bound`` is proven, False if it is only an estimate. Certificates that use the bound must pass
        this on.

    Attributes
    ----------
    adjoint_exact : bool
        False if ``adjoint`` is only about the transpose. Gradients are then not those of any function, and nothing that
        solvers find is certified.
    rounding_factor : float
        c of the model of rounding errors: what is computed of A^T A x differs from it by about c u ||A||^2 ||x||, u
        from :meth:`unit_roundoff`. 1 for sums of few or of independent terms, 0 for what only moves numbers. ||A|| is
        ``norm_bound``, here and below.
    adjoint_mismatch : float
        e with ||(A' - A^T) y|| <= e ||A|| ||y|| for ``adjoint`` A', where that is more than rounding; it is measured,
        and enters every residual.
    complex_domain, complex_range : bool
        Whether the images and the data are complex tensors. Then ``adjoint`` is the conjugate transpose, and all inner
        products mean ``Re <., .>``.

    Raises
    ------
    ValueError
        Not ``0 <= lower_bound <= norm_bound < inf``, or a shape has an entry below one.

    The bounds are those of the operator in exact arithmetic; evaluation in floating point adds relative errors of the
    order of :meth:`unit_roundoff`.
    """

    adjoint_exact: bool = True
    rounding_factor: float = 1.0
    adjoint_mismatch: float = 0.0
    complex_domain: bool = False
    complex_range: bool = False

    def __init__(
        self,
        domain_shape: Shape | None,
        range_shape: Shape | None,
        norm_bound: float,
        lower_bound: float = 0.0,
        norm_bound_certified: bool = True,
    ) -> None:
        super().__init__()
        for shape in (domain_shape, range_shape):
            if shape is not None and (len(shape) == 0 or any(n < 1 for n in shape)):
                raise ValueError(f"shapes need positive entries, got {tuple(shape)}")
        if not (0.0 <= lower_bound <= norm_bound and math.isfinite(norm_bound)):
            raise ValueError(
                f"need 0 <= lower_bound <= norm_bound < inf, got lower_bound={lower_bound}, norm_bound={norm_bound}"
            )
        self.domain_shape = None if domain_shape is None else tuple(int(n) for n in domain_shape)
        self.range_shape = None if range_shape is None else tuple(int(n) for n in range_shape)
        self.norm_bound = float(norm_bound)
        self.lower_bound = float(lower_bound)
        self.norm_bound_certified = bool(norm_bound_certified)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``A x``: ``(batch, *domain_shape) -> (batch, *range_shape)``.

        Raises
        ------
        ValueError
            The shape or the dtype of ``x`` does not fit.
        """
        self._validate(x, self.domain_shape, self.complex_domain, "domain")
        return self._forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``A^T y`` (Euclidean transpose): ``(batch, *range_shape) -> (batch, *domain_shape)``.

        Raises
        ------
        ValueError
            The shape or the dtype of ``y`` does not fit.
        """
        self._validate(y, self.range_shape, self.complex_range, "range")
        return self._adjoint(y)

    def unit_roundoff(self, dtype: torch.dtype) -> float:
        """u of the arithmetic that A x and A^T y are computed in for tensors of ``dtype``: that of ``dtype``.

        Operators that compute in less must say so: certificates are wrong by orders of magnitude otherwise.
        """
        return torch.finfo(dtype).eps / 2

    def display(self, x: Tensor) -> Tensor:
        """What people look at, and metrics compare, of images ``(batch, channel, ...)``: the images themselves.

        Operators whose channels are parts of one number, such as the real and imaginary part, return the magnitude.
        """
        return x

    def normal_symbol(self) -> NormalSymbol | None:
        """What A^T A does to each frequency, about, for preconditioners; None (no preconditioner) by default."""
        return None

    def absolute_sums(self) -> tuple[Tensor, Tensor] | None:
        r"""t of ``domain_shape`` and s of ``range_shape`` with <Ax, y>^2 <= (sum t_j x_j^2) (sum s_i y_i^2), for steps.

        Upper bounds of sum_i |A_ij| and of sum_j |A_ij| are such numbers (Pock and Chambolle 2011, Lemma 2). They have
        to be constant in every group of pixels that a functional of x or of y couples (take the largest). None, the
        default, where they are not known.
        """
        return None

    def tensors(self) -> list[tuple[Tensor, float]]:
        r"""The tensors t that depend on learned parameters, with c: \|\|d_t <Ax, y>\|\| <= c \|\|x\|\| \|\|y\|\|."""
        return []

    def like(self) -> Tensor:
        """An empty tensor of the dtype and on the device of A, for those who have to make vectors."""
        learned = (t.detach() for t, _ in self.tensors())
        buffers = (b for b in self.buffers() if b.is_floating_point() and not b.is_sparse)
        return next(chain(learned, buffers), torch.empty(0)).flatten()[:0]

    # What the following make of operators needs this class, so that it can be imported only when they are called.

    @property
    def T(self) -> LinearOperator:
        """y -> A^T y; for complex operators the conjugate transpose, as :meth:`adjoint`."""
        from recon.operators.algebra import Transpose

        return Transpose(self)

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        """x -> A(Bx)."""
        from recon.operators.algebra import Composition

        return Composition(self, other) if isinstance(other, LinearOperator) else NotImplemented

    def __add__(self, other: LinearOperator) -> LinearOperator:
        """x -> Ax + Bx."""
        from recon.operators.algebra import Sum

        return Sum(self, other) if isinstance(other, LinearOperator) else NotImplemented

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        """x -> Ax - Bx."""
        return self + -1 * other if isinstance(other, LinearOperator) else NotImplemented

    def __rmul__(self, factor: float | Tensor) -> LinearOperator:
        """x -> c Ax for a number c, or w Ax for a tensor w with one factor for each datum."""
        from recon.operators.algebra import Scaled

        return Scaled(self, factor) if isinstance(factor, int | float | Tensor) else NotImplemented

    def __neg__(self) -> LinearOperator:
        """x -> -Ax."""
        return -1 * self

    def _forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must implement _forward (or override forward)")

    def _adjoint(self, y: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must implement _adjoint (or override adjoint)")

    def _validate(self, x: Tensor, shape: Shape | None, is_complex: bool, side: str) -> None:
        name = type(self).__name__
        if not isinstance(x, Tensor):
            raise ValueError(f"{name}: expected a torch tensor in the {side}, got {type(x).__name__}")
        expected = "(batch, ...)" if shape is None else f"(batch, {', '.join(map(str, shape))})"
        if x.ndim < 1 or (shape is not None and tuple(x.shape[1:]) != shape):
            raise ValueError(f"{name}: got shape {tuple(x.shape)} in the {side}, expected {expected}")
        if not (x.is_complex() if is_complex else x.is_floating_point()):
            kind = "complex" if is_complex else "real floating"
            raise ValueError(f"{name}: got dtype {x.dtype} in the {side}, expected a {kind} dtype and shape {expected}")

    def extra_repr(self) -> str:
        certified = "" if self.norm_bound_certified else " (estimate)"
        return f"{self.domain_shape} -> {self.range_shape}, norm_bound={self.norm_bound:.6g}{certified}"


def real_size(shape: Shape, is_complex: bool) -> int:
    """The dimension of these tensors as a real vector space."""
    return math.prod(shape) * (2 if is_complex else 1)


def kind_of(value: object) -> str:
    """Type and shape of a tensor, or the class of something else, for messages."""
    return f"{value.dtype}, shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def fft_rounding(shape: Sequence[int]) -> float:
    """``rounding_factor`` of operators with a Fourier transform over ``shape`` and one back: 2 log2 n, n its size.

    A Fourier transform of length n has relative errors of at most about u log2 n (Higham 2002, theorem 24.2).
    """
    return max(1.0, 2 * math.log2(math.prod(shape)))


class Identity(LinearOperator):
    """``A x = x`` (denoising): norm and lower bound are one. ``domain_shape=None`` accepts images of any shape."""

    def __init__(self, domain_shape: Shape | None = None) -> None:
        super().__init__(domain_shape, domain_shape, norm_bound=1.0, lower_bound=1.0)

    def _forward(self, x: Tensor) -> Tensor:
        return x

    def _adjoint(self, y: Tensor) -> Tensor:
        return y


class _Maps(Protocol):
    """What autograd keeps for the backward of :class:`_ApplyLinear`."""

    matvec: LinearMap
    rmatvec: LinearMap


class _ApplyLinear(torch.autograd.Function):
    """``x -> A x`` whose backward is the same Function with ``A`` and ``A^T`` exchanged, so every derivative exists."""

    @staticmethod
    def forward(x: Tensor, matvec: LinearMap, rmatvec: LinearMap) -> Tensor:
        return matvec(x)

    @staticmethod
    def setup_context(ctx: _Maps, inputs: tuple[Tensor, LinearMap, LinearMap], output: Tensor) -> None:
        _, ctx.matvec, ctx.rmatvec = inputs

    @staticmethod
    def backward(ctx: _Maps, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        return apply_linear(grad_outputs[0], ctx.rmatvec, ctx.matvec), None, None

    @staticmethod
    def jvp(ctx: _Maps, *grad_inputs: Tensor) -> Tensor:
        return apply_linear(grad_inputs[0], ctx.matvec, ctx.rmatvec)


def apply_linear(x: Tensor, matvec: LinearMap, rmatvec: LinearMap) -> Tensor:
    """Return ``matvec(x)``, differentiable to any order although ``matvec`` itself is invisible to autograd.

    Parameters
    ----------
    x : Tensor
        What to map.
    matvec : callable
        The linear map; must return a tensor that shares no memory with its argument.
    rmatvec : callable
        Its Euclidean (conjugate) transpose. Derivatives are wrong if it is not: see
        :func:`recon.operators.check_adjoint`.
    """
    return _ApplyLinear.apply(x, matvec, rmatvec)
