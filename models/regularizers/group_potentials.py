r"""Potentials phi_nu of n = 4 responses u at a time, their derivatives, and the constants of the certificates.

All are convex and even with phi(0) = 0. Constants are proved in docs/mathematics.md, section 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.regularizers.potentials import Potential

#: number of responses of a group
GROUP = 4
#: the entries (i, j), i <= j, of a Hessian, in the order in which they are stored
PAIRS = [(i, j) for i in range(GROUP) for j in range(i, GROUP)]


class GroupPotential(Potential):
    """phi_nu(u). Filters that follow each other are a group: u ``(..., 4 G, positions)`` for nu ``(G, 1)``.

    Values are ``(..., G, positions)``, slopes like u, curvatures the 10 entries of symmetric matrices, group by group:
    ``(..., 10 G, positions)``. ``curvature_bound`` and ``slope_bound`` are for Euclidean norms, ``third_bound`` is
    sup |D^3 phi[a, a, w]| for ||a|| = 1 and |w| = 1, where |w| is what :meth:`joint` says.
    """

    concavity = 0.0

    @staticmethod
    def joint(top: Tensor) -> Tensor:
        """A bound of max_p |w_p|, from max_p |(w_p)_j| for every j: ``(..., 4) -> (...)``."""
        raise NotImplementedError


class SoftMaximum(GroupPotential):
    r"""phi(u) = nu log((1/n) sum_j cosh(u_j / nu)), a smooth max norm: max\|u_j\| - nu log(2n) <= phi <= max\|u_j\|.

    It takes the place of the Moreau envelope of the max norm, whose Hessian jumps (Ducotterd and Unser 2025).
    """

    slope_bound, curvature_bound, third_bound, self_concordance = 1.0, 0.5, 2 / 27**0.5, 2.0

    @staticmethod
    def value(u: Tensor, nu: Tensor) -> Tensor:
        nu = nu[..., None]
        ratio = u.unflatten(-2, (-1, GROUP)) / nu
        top = ratio.detach().abs().amax(-2, keepdim=True)
        # cosh - 1 = 2 sinh(./2)^2 has no cancellation where all are small, the other form no overflow at large ones
        near = torch.log1p(2 * torch.sinh(0.5 * ratio.clamp(-1, 1)).square().mean(-2, keepdim=True))
        total = (torch.exp(ratio - top) + torch.exp(-ratio - top)).sum(-2, keepdim=True)
        return (nu * torch.where(top < 1, near, top + torch.log(total) - math.log(2 * GROUP))).squeeze(-2)

    @classmethod
    def value_and_slope(cls, u: Tensor, nu: Tensor) -> tuple[Tensor, Tensor]:
        _, slope, top, total = cls._shares(u, nu)
        far = top + torch.log(total) - math.log(GROUP)
        value = nu[..., None] * far
        if bool((near := top < 1).any()):
            squares = torch.sinh((0.5 / nu[..., None]) * u.unflatten(-2, (-1, GROUP))).square_().mean(-2, keepdim=True)
            value = torch.where(near, nu[..., None] * torch.log1p(2 * squares), value)
        return value.squeeze(-2), slope.flatten(-3, -2)

    @classmethod
    def slope(cls, u: Tensor, nu: Tensor) -> Tensor:
        return cls._shares(u, nu)[1].flatten(-3, -2)

    @classmethod
    def curvature(cls, u: Tensor, nu: Tensor) -> Tensor:
        share, slope, *_ = cls._shares(u, nu)
        return _packed(share, slope, slope, 1 / nu)

    @staticmethod
    def joint(top: Tensor) -> Tensor:
        """The max norm."""
        return top.amax(-1)

    @staticmethod
    def _shares(u: Tensor, nu: Tensor) -> tuple[Tensor, ...]:
        """q_j = cosh(t_j)/S, p_j = sinh(t_j)/S, max|t_j| and S e^{-max|t_j|}, for t = u/nu and S = sum_j cosh(t_j)."""
        ratio = u.unflatten(-2, (-1, GROUP)) / nu[..., None]
        size = ratio.abs()
        top = size.detach().amax(-2, keepdim=True)
        grown, decay = torch.exp(size - top), torch.expm1(-2 * size)
        share, slope = grown * (0.5 * decay + 1), grown * decay * (-0.5 * ratio.sign())
        total = share.sum(-2, keepdim=True)
        return share / total, slope / total, top, total


class SmoothedNorm(GroupPotential):
    r"""phi(u) = sqrt(\|u\|^2 + nu^2) - nu, the smoothed Euclidean norm."""

    slope_bound, curvature_bound, third_bound, self_concordance = 1.0, 1.0, 1.5 / 1.25**2.5, 1.5

    @staticmethod
    def value(u: Tensor, nu: Tensor) -> Tensor:
        square = u.square().unflatten(-2, (-1, GROUP)).sum(-2)
        return square / (torch.sqrt(square + nu * nu) + nu)

    @classmethod
    def slope(cls, u: Tensor, nu: Tensor) -> Tensor:
        return _scaled(u, cls._inverse(u, nu)).flatten(-3, -2)

    @classmethod
    def curvature(cls, u: Tensor, nu: Tensor) -> Tensor:
        inverse = cls._inverse(u, nu)
        direction = _scaled(u, inverse)
        return _packed(torch.ones_like(direction), direction, direction, inverse)

    @staticmethod
    def joint(top: Tensor) -> Tensor:
        """The Euclidean norm."""
        return top.norm(dim=-1)

    @staticmethod
    def _inverse(u: Tensor, nu: Tensor) -> Tensor:
        """1 / sqrt(|u|^2 + nu^2)."""
        return torch.rsqrt(u.square().unflatten(-2, (-1, GROUP)).sum(-2) + nu * nu)


def _scaled(u: Tensor, by: Tensor) -> Tensor:
    return u.unflatten(-2, (-1, GROUP)) * by[..., None, :]


def _packed(diagonal: Tensor, left: Tensor, right: Tensor, scale: Tensor) -> Tensor:
    """The entries of ``scale`` (diag(``diagonal``) - ``left`` ``right``^T)."""
    rows = [(diagonal[..., i, :] if i == j else 0) - left[..., i, :] * right[..., j, :] for i, j in PAIRS]
    return (torch.stack(rows, -2) * scale[..., None, :]).flatten(-3, -2)


def packed_product(packed: Tensor, v: Tensor) -> Tensor:
    """H v for H ``(images, 10 G, ...)`` and v ``(images, 4 G, ...)``."""
    h, v = packed.unflatten(1, (-1, len(PAIRS))), v.unflatten(1, (-1, GROUP))
    rows = [sum(h[:, :, PAIRS.index((min(i, j), max(i, j)))] * v[:, :, j] for j in range(GROUP)) for i in range(GROUP)]
    return torch.stack([row for row in rows if isinstance(row, Tensor)], 2).flatten(1, 2)


GROUP_POTENTIALS: dict[str, type[GroupPotential]] = {"soft_maximum": SoftMaximum, "smoothed_norm": SmoothedNorm}
