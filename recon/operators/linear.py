"""Linear operators between image and data spaces: the interface, the identity, and tools that work on any of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recon.operators.symbol import NormalSymbol

Shape = tuple[int, ...]
LinearMap = Callable[[Tensor], Tensor]


class LinearOperator(nn.Module):
    """A linear map ``A`` applied to every member of a batch, with its Euclidean transpose and bounds on its gain.

    Subclasses implement ``_forward`` and ``_adjoint``; validation is done here. Both must be differentiable any number
    of times: build them from torch operations, or wrap foreign code with :func:`apply_linear`.

    Attributes:
        domain_shape, range_shape: shapes without the batch axis, e.g. ``(1, 256, 256)``; None accepts any shape.
        norm_bound: upper bound of the spectral norm, ``||A x|| <= norm_bound ||x||`` in Euclidean norms.
        lower_bound: ``m >= 0`` with ``||A x|| >= m ||x||``; 0 is always valid.
        norm_bound_certified: True if ``norm_bound`` is proven, False if it is only an estimate. Certificates that use
            the bound must pass this on.
        adjoint_exact: False if ``adjoint`` is only about the transpose. Gradients are then not those of any function,
            and nothing that solvers find is certified.
        rounding_factor: c of the model of rounding errors: what is computed of A^T A x differs from it by about
            c u ||A||^2 ||x||, u from :meth:`unit_roundoff`. 1 for sums of few or of independent terms.
        adjoint_mismatch: e with ||(A' - A^T) y|| <= e ||A|| ||y|| for ``adjoint`` A', where that is more than rounding;
            it is measured, and enters every residual.
        complex_domain, complex_range: whether the images and the data are complex tensors. Then ``adjoint`` is the
            conjugate transpose, and all inner products mean ``Re <., .>``.

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
        """Store shapes and bounds.

        Raises:
            ValueError: unless ``0 <= lower_bound <= norm_bound < inf``, or if a shape has an entry below one.
        """
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

        Raises:
            ValueError: if the shape or the dtype of ``x`` does not fit.
        """
        self._validate(x, self.domain_shape, self.complex_domain, "domain")
        return self._forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``A^T y`` (Euclidean transpose): ``(batch, *range_shape) -> (batch, *domain_shape)``.

        Raises:
            ValueError: if the shape or the dtype of ``y`` does not fit.
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


class _ApplyLinear(torch.autograd.Function):
    """``x -> A x`` whose backward is the same Function with ``A`` and ``A^T`` exchanged, so every derivative exists."""

    @staticmethod
    def forward(x: Tensor, matvec: LinearMap, rmatvec: LinearMap) -> Tensor:
        return matvec(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.matvec, ctx.rmatvec = inputs

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return apply_linear(grad_outputs[0], ctx.rmatvec, ctx.matvec), None, None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        return apply_linear(grad_inputs[0], ctx.matvec, ctx.rmatvec)


def apply_linear(x: Tensor, matvec: LinearMap, rmatvec: LinearMap) -> Tensor:
    """Return ``matvec(x)``, differentiable to any order although ``matvec`` itself is invisible to autograd.

    Args:
        x: tensor to map.
        matvec: the linear map; must return a tensor that shares no memory with its argument.
        rmatvec: its Euclidean (conjugate) transpose. Derivatives are wrong if it is not: see :func:`check_adjoint`.
    """
    return _ApplyLinear.apply(x, matvec, rmatvec)


def random_tensor(
    shape: Shape,
    is_complex: bool = False,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return standard normal entries of the given shape; ``dtype`` is the real one, also of complex tensors."""
    if is_complex:
        return torch.view_as_complex(torch.randn(*shape, 2, generator=generator, dtype=dtype).to(device))
    return torch.randn(shape, generator=generator, dtype=dtype).to(device)


def _inner(a: Tensor, b: Tensor) -> float:
    return float(torch.vdot(a.reshape(-1), b.reshape(-1)).real)


@torch.no_grad()
def check_adjoint(
    operator: LinearOperator,
    *,
    domain_shape: Shape | None = None,
    range_shape: Shape | None = None,
    batch: int = 1,
    trials: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> float:
    """Return the largest relative mismatch ``|<A x, y> - <x, A^T y>| / (||A x|| ||y||)`` over seeded random vectors.

    Every trial draws normal x and y and tests the pairs (x, y), (x, A x) and (A^T y, y). The last two are correlated;
    for independent x and y of length n both products are smaller by sqrt(n), and so would be a mismatch.
    An exact pair of operators gives about 1e-15 in float64. Where ``A x = 0`` the divisor is ``||x|| ||A^T y||``.

    Args:
        operator: the operator to test.
        domain_shape, range_shape: needed only where the operator accepts any shape (then ``range_shape`` defaults
            to ``domain_shape``).
        batch, trials, seed, dtype, device: of the random vectors; ``dtype`` is the real one.

    Raises:
        ValueError: if a shape is unknown.
    """
    x_shape = operator.domain_shape or domain_shape
    y_shape = operator.range_shape or range_shape or x_shape
    if x_shape is None or y_shape is None:
        raise ValueError(f"{type(operator).__name__} accepts any shape: check_adjoint needs domain_shape")
    generator = torch.Generator().manual_seed(seed)
    worst = 0.0
    for _ in range(trials):
        x = random_tensor((batch, *x_shape), operator.complex_domain, generator=generator, dtype=dtype, device=device)
        y = random_tensor((batch, *y_shape), operator.complex_range, generator=generator, dtype=dtype, device=device)
        for u, v in ((x, y), (x, operator(x)), (operator.adjoint(y), y)):
            worst = max(worst, _adjoint_mismatch(operator, u, v))
    return worst


def _adjoint_mismatch(operator: LinearOperator, x: Tensor, y: Tensor) -> float:
    ax, aty = operator(x), operator.adjoint(y)
    difference = abs(_inner(ax, y) - _inner(x, aty))
    if math.isnan(difference):
        return math.inf
    scale = float(ax.norm() * y.norm()) or float(x.norm() * aty.norm())
    return difference / scale if scale > 0.0 else 0.0


@torch.no_grad()
def lanczos_norm_bound(
    operator: LinearOperator,
    *,
    steps: int = 40,
    failure_probability: float = 1e-10,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> float:
    """Return an upper bound of ``||A||`` that holds with probability ``1 - failure_probability`` over the start vector.

    Lanczos with full reorthogonalization on ``A^T A``, started uniformly on the unit sphere of R^n, gives the Ritz
    value ``xi <= lambda_max``. After k steps (Kuczynski and Wozniakowski, SIAM J. Matrix Anal. Appl. 13, 1992, Theorem
    4.2)

        P(lambda_max (1 - eps) > xi) <= 1.648 sqrt(n) exp(-(2k - 1) sqrt(eps)),

    so with eps solving this for the failure probability, ``sqrt(xi / (1 - eps))`` bounds ``||A||``. It exceeds the norm
    by at most 7.6 % for n = 256^2 and the defaults. This is not a proof for the one operator at hand: operators that
    use it set ``norm_bound_certified = False``. Cost: ``steps`` forward and adjoint calls; keeps ``steps`` images.

    Raises:
        ValueError: if the operator has no fixed domain shape, or the steps are too few for the failure probability.
    """
    n = _real_unknowns(operator)
    relative_gap = (math.log(1.648 * math.sqrt(n) / failure_probability) / (2 * steps - 1)) ** 2
    if relative_gap >= 1.0:
        raise ValueError(f"{steps} Lanczos steps are too few for failure probability {failure_probability:g}")
    _, ritz = lanczos(operator, steps, seed, dtype=dtype, device=device)
    return math.sqrt(max(float(torch.linalg.eigvalsh(ritz)[-1]), 0.0) / (1.0 - relative_gap))


@torch.no_grad()
def lanczos(
    operator: LinearOperator,
    steps: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Lanczos with full reorthogonalization on A^T A from a random start.

    Returns:
        an orthonormal basis of the Krylov space, ``(k, n)`` with k <= ``steps`` and n real unknowns, and the
        tridiagonal matrix ``(k, k)`` of A^T A in it, float64.

    Raises:
        ValueError: the operator has no fixed domain shape.
    """
    n = _real_unknowns(operator)
    shape = (1, *(operator.domain_shape or ()))

    def normal(q: Tensor) -> Tensor:
        x = torch.view_as_complex(q.reshape(*shape, 2)) if operator.complex_domain else q.reshape(shape)
        z = operator.adjoint(operator(x))
        return (torch.view_as_real(z) if z.is_complex() else z).reshape(-1)

    start = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=dtype).to(device)
    basis = (start / start.norm())[None]
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    for _ in range(min(steps, n)):
        w = normal(basis[-1])
        diagonal.append(float(w @ basis[-1]))
        for _ in range(2):  # once is not enough in floating point
            w = w - basis.T @ (basis @ w)
        beta = float(w.norm())
        # A tiny remainder means the Krylov space is exhausted: further steps would not change the Ritz value.
        if beta <= 1e-12 * max(max(diagonal), 1e-300):
            break
        off_diagonal.append(beta)
        basis = torch.cat([basis, (w / beta)[None]])
    k = len(diagonal)
    ritz = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if k > 1:
        off = torch.tensor(off_diagonal[: k - 1], dtype=torch.float64)
        ritz = ritz + torch.diag(off, 1) + torch.diag(off, -1)
    return basis[:k], ritz


def _real_unknowns(operator: LinearOperator) -> int:
    if operator.domain_shape is None:
        raise ValueError(f"{type(operator).__name__} has no fixed domain_shape")
    return math.prod(operator.domain_shape) * (2 if operator.complex_domain else 1)
