"""What is claimed of an operator, tested: its bounds, and how far its adjoint is from the transpose."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recon.operators.linear import LinearOperator, lanczos, random_tensor

#: steps of inverse iteration, and of conjugate gradients in each
_INVERSE_STEPS, _SOLVE_STEPS = 3, 40


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
    *,
    steps: int = 40,
    seed: int = 0,
    name: str = "",
) -> None:
    r"""Try to refute \|\|Ax\|\| <= ``norm_bound`` \|\|x\|\| and \|\|Ax\|\| >= ``lower_bound`` \|\|x\|\|.

    The first by the largest Ritz vector of ``steps`` Lanczos steps on A^T A, the second by the smallest one, improved
    by inverse iteration with conjugate gradients. What is not refuted is not proved: a test, as good as its vectors.

    Args:
        operator: A, of known ``domain_shape``.
        norm_bound, lower_bound: the claims, by default those of the operator.
        steps, seed: of the Lanczos method. name: of the operator, for the message.

    Raises:
        BoundError: a claim is wrong by more than the rounding errors of the operator; it has the vector.
        ValueError: the operator has no fixed domain shape.
    """
    norm_bound = operator.norm_bound if norm_bound is None else norm_bound
    lower_bound = operator.lower_bound if lower_bound is None else lower_bound
    name = name or type(operator).__name__
    vectors = _ritz_vectors(operator, steps, seed)
    slack = 64 * operator.unit_roundoff(torch.float64) * operator.rounding_factor
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
def adjoint_mismatch(operator: LinearOperator, trials: int = 4, seed: int = 0) -> float:
    r"""An estimate of sup \|\|(A' - A^T) y\|\| / (\|\|A\|\| \|\|y\|\|), A' = ``adjoint``; zero where it is rounding.

    <x, A'y> - <Ax, y> = <x, (A' - A^T) y>: about \|\|(A' - A^T) y\|\| \|\|x\|\| / sqrt(n) for random x independent of
    y, and for x = A'y no more than that norm times \|\|x\|\|. y = Ax, since residuals are mostly of this kind.
    What is below 16 times the unit roundoff of the operator is the rounding of the two products.

    Raises ``ValueError`` if the operator has no fixed shapes, or no positive norm bound.
    """
    if operator.domain_shape is None or operator.range_shape is None or not operator.norm_bound > 0:
        raise ValueError(f"{type(operator).__name__} has no fixed shapes or no norm: its adjoint cannot be measured")
    generator, found = torch.Generator().manual_seed(seed), 0.0
    n = math.prod(operator.domain_shape)
    for _ in range(trials):
        x, z = (random_tensor((1, *operator.domain_shape), operator.complex_domain, generator=generator) for _ in "xz")
        y = operator(x)
        back, scale = operator.adjoint(y), operator.norm_bound * float(y.norm())
        if not scale > 0:
            continue
        for v, factor in ((z, math.sqrt(n)), (x, 1.0), (back, 1.0)):
            size = float(v.norm()) * scale
            if size > 0:
                found = max(found, factor * abs(_inner(operator(v), y) - _inner(v, back)) / size)
    noise = 16 * operator.unit_roundoff(torch.float64) * operator.rounding_factor
    return found if found > noise else 0.0


def _inner(a: Tensor, b: Tensor) -> float:
    return float(torch.vdot(a.reshape(-1), b.reshape(-1)).real)


def _gain(operator: LinearOperator, x: Tensor) -> float:
    return float(operator(x).norm() / x.norm())


def _ritz_vectors(operator: LinearOperator, steps: int, seed: int) -> list[Tensor]:
    """The smallest and the largest Ritz vector of A^T A, as images."""
    basis, tridiagonal = lanczos(operator, steps, seed)
    assert operator.domain_shape is not None  # lanczos asks for it
    _, vectors = torch.linalg.eigh(tridiagonal)
    flat = vectors.T[[0, -1]].to(basis) @ basis
    shape = (1, *operator.domain_shape)
    return [
        torch.view_as_complex(v.reshape(*shape, 2).contiguous()) if operator.complex_domain else v.reshape(shape)
        for v in flat
    ]


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
