"""What is claimed of an operator, tested: its transpose, its bounds, and how far its adjoint is from the transpose."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recon.operators.linear import LinearOperator, Shape, real_size

#: steps of inverse iteration, and of conjugate gradients in each
_INVERSE_STEPS, _SOLVE_STEPS = 3, 40
#: of the Lanczos method
_STEPS = 40


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

    Parameters
    ----------
    operator : LinearOperator
        The operator to test.
    domain_shape, range_shape : tuple of int, optional
        Needed only where the operator accepts any shape (then ``range_shape`` defaults to ``domain_shape``).
    batch, trials, seed, dtype, device
        Of the random vectors; ``dtype`` is the real one.

    Raises
    ------
    ValueError
        A shape is unknown.
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
    steps: int = _STEPS,
    failure_probability: float = 1e-10,
) -> float:
    """Return an upper bound of ``||A||`` that holds with probability ``1 - failure_probability`` over the start vector.

    Lanczos with full reorthogonalization on ``A^T A``, started uniformly on the unit sphere of R^n, gives the Ritz
    value ``xi <= lambda_max``. After k steps (Kuczynski and Wozniakowski, SIAM J. Matrix Anal. Appl. 13, 1992, Theorem
    4.2)

        P(lambda_max (1 - eps) > xi) <= 1.648 sqrt(n) exp(-(2k - 1) sqrt(eps)),

    so with eps solving this for the failure probability, ``sqrt(xi / (1 - eps))`` bounds ``||A||``. It exceeds the norm
    by at most 7.6 % for n = 256^2 and the defaults. This is not a proof for the one operator at hand: operators that
    use it set ``norm_bound_certified = False``. Cost: ``steps`` forward and adjoint calls; keeps ``steps`` images.

    Raises
    ------
    ValueError
        The operator has no fixed domain shape, or the steps are too few for the failure probability.
    """
    n = _real_unknowns(operator)
    relative_gap = (math.log(1.648 * math.sqrt(n) / failure_probability) / (2 * steps - 1)) ** 2
    if relative_gap >= 1.0:
        raise ValueError(f"{steps} Lanczos steps are too few for failure probability {failure_probability:g}")
    _, ritz = lanczos(operator, steps)
    return math.sqrt(max(float(torch.linalg.eigvalsh(ritz)[-1]), 0.0) / (1.0 - relative_gap))


@torch.no_grad()
def lanczos(operator: LinearOperator, steps: int) -> tuple[Tensor, Tensor]:
    """Lanczos with full reorthogonalization on A^T A from a random start, always the same, in float64 on the CPU.

    Returns
    -------
    tuple of Tensor
        An orthonormal basis of the Krylov space, ``(k, n)`` with k <= ``steps`` and n real unknowns, and the
        tridiagonal matrix ``(k, k)`` of A^T A in it, float64.

    Raises
    ------
    ValueError
        The operator has no fixed domain shape.
    """
    n = _real_unknowns(operator)

    def normal(q: Tensor) -> Tensor:
        z = operator.adjoint(operator(_image(operator, q)))
        return (torch.view_as_real(z) if z.is_complex() else z).reshape(-1)

    start = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
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


def _image(operator: LinearOperator, q: Tensor) -> Tensor:
    """The image of the domain, with a batch axis, whose real numbers are q."""
    shape = (1, *(operator.domain_shape or ()))
    return torch.view_as_complex(q.reshape(*shape, 2).contiguous()) if operator.complex_domain else q.reshape(shape)


def _real_unknowns(operator: LinearOperator) -> int:
    if operator.domain_shape is None:
        raise ValueError(f"{type(operator).__name__} has no fixed domain_shape")
    return real_size(operator.domain_shape, operator.complex_domain)


class BoundError(ValueError):
    """A bound that was claimed of an operator is wrong; ``vector`` refutes it, and the message says how."""

    def __init__(self, message: str, vector: Tensor) -> None:
        super().__init__(message)
        self.vector = vector


@torch.no_grad()
def check_bounds(
    operator: LinearOperator,
    norm_bound: float | None = None,
    lower_bound: float | None = None,
    name: str = "",
) -> None:
    r"""Try to refute \|\|Ax\|\| <= ``norm_bound`` \|\|x\|\| and \|\|Ax\|\| >= ``lower_bound`` \|\|x\|\|.

    The first by the largest Ritz vector of 40 Lanczos steps on A^T A, the second by the smallest one, improved
    by inverse iteration with conjugate gradients. What is not refuted is not proved: a test, as good as its vectors.

    Parameters
    ----------
    operator
        A, of known ``domain_shape``.
    norm_bound, lower_bound
        the claims, by default those of the operator.
    name
        of the operator, for the message.

    Raises
    ------
    BoundError
        a claim is wrong by more than the rounding errors of the operator; it has the vector.
    ValueError
        the operator has no fixed domain shape.
    """
    norm_bound = operator.norm_bound if norm_bound is None else norm_bound
    lower_bound = operator.lower_bound if lower_bound is None else lower_bound
    name = name or type(operator).__name__
    vectors = _ritz_vectors(operator)
    # norms are rounded, even those of what is not
    slack = 64 * operator.unit_roundoff(torch.float64) * max(1.0, operator.rounding_factor)
    largest = max(_gain(operator, vectors[-1]), _gain(operator, vectors[0]))
    if largest > norm_bound * (1 + slack):
        raise BoundError(
            f"norm_bound={norm_bound:.6g} is too small for {name}: there is an x (`vector` of this error) with "
            f"||Ax|| = {largest:.6g} ||x||",
            vectors[-1],
        )
    if lower_bound > 0:
        vector = _inverse_iteration(operator, vectors[0])
        smallest = _gain(operator, vector)
        if smallest < lower_bound - slack * max(norm_bound, largest):
            raise BoundError(
                f"lower_bound={lower_bound:.6g} is too large for {name}: there is an x (`vector` of this error) with "
                f"||Ax|| = {smallest:.6g} ||x||",
                vector,
            )


@torch.no_grad()
def adjoint_mismatch(operator: LinearOperator) -> float:
    r"""An estimate of sup \|\|(A' - A^T) y\|\| / (\|\|A\|\| \|\|y\|\|), A' = ``adjoint``; zero where it is rounding.

    <x, A'y> - <Ax, y> = <x, (A' - A^T) y>: about \|\|(A' - A^T) y\|\| \|\|x\|\| / sqrt(n) for random x independent of
    y, and for x = A'y no more than that norm times \|\|x\|\|. y = Ax, since residuals are mostly of this kind.
    What is below 16 times the unit roundoff of the operator is the rounding of the two products.

    Raises
    ------
    ValueError
        if the operator has no fixed shapes, or no positive norm bound.
    """
    if operator.domain_shape is None or operator.range_shape is None or not operator.norm_bound > 0:
        raise ValueError(f"{type(operator).__name__} has no fixed shapes or no norm: its adjoint cannot be measured")
    generator, found = torch.Generator().manual_seed(0), 0.0
    n = math.prod(operator.domain_shape)
    for _ in range(4):
        x, z = (random_tensor((1, *operator.domain_shape), operator.complex_domain, generator=generator) for _ in "xz")
        y = operator(x)
        back, scale = operator.adjoint(y), operator.norm_bound * float(y.norm())
        if not scale > 0:
            continue
        for v, factor in ((z, math.sqrt(n)), (x, 1.0), (back, 1.0)):
            size = float(v.norm()) * scale
            if size > 0:
                found = max(found, factor * abs(_inner(operator(v), y) - _inner(v, back)) / size)
    noise = 16 * operator.unit_roundoff(torch.float64) * max(1.0, operator.rounding_factor)
    return found if found > noise else 0.0


def _gain(operator: LinearOperator, x: Tensor) -> float:
    return float(operator(x).norm() / x.norm())


def _ritz_vectors(operator: LinearOperator) -> list[Tensor]:
    """The smallest and the largest Ritz vector of A^T A, as images."""
    basis, tridiagonal = lanczos(operator, _STEPS)
    _, vectors = torch.linalg.eigh(tridiagonal)
    return [_image(operator, v) for v in vectors.T[[0, -1]].to(basis) @ basis]


def _inverse_iteration(operator: LinearOperator, x: Tensor) -> Tensor:
    """A vector that A makes smaller than x, relative to its length: approximate steps x <- (A^T A)^{-1} x."""
    best = x / x.norm()
    for _ in range(_INVERSE_STEPS):
        z, r = torch.zeros_like(best), best.clone()
        p, square = r.clone(), _inner(r, r)
        for _ in range(_SOLVE_STEPS):
            ap = operator.adjoint(operator(p))
            curvature = _inner(p, ap)
            if not curvature > 0:
                return p  # A p = 0: nothing is smaller
            z, r = z + square / curvature * p, r - square / curvature * ap
            new = _inner(r, r)
            if not new > 1e-24:
                break
            p, square = r + new / square * p, new
        if not float(z.norm()) > 0 or not _gain(operator, z) < _gain(operator, best):
            break
        best = z / z.norm()
    return best
