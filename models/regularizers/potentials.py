"""Even potentials phi_nu of one variable with width nu, their derivatives, and the constants of the certificates.

All have phi(0) = 0 and curvature 1/nu at 0, so that one can stand in for another.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class Potential:
    """phi_nu(u). The bounds are given for nu = 1: phi'' scales with 1/nu and phi''' with 1/nu^2."""

    #: sup phi'' at nu = 1
    curvature_bound: float = 1.0
    #: sup |phi'|, sup |phi'''| and sup(-phi'') at nu = 1
    slope_bound: float
    third_bound: float
    concavity: float
    #: M with |phi'''| <= M phi'' (generalized self-concordance) at nu = 1; infinite: none
    self_concordance: float
    #: sup |d phi' / d log nu| and sup |d phi'' / d log nu| at nu = 1
    slope_width_bound: float
    curvature_width_bound: float

    @staticmethod
    def value(u: Tensor, nu: Tensor) -> Tensor:
        """phi_nu(u), differentiable in u and nu."""
        raise NotImplementedError

    @classmethod
    def value_and_slope(cls, u: Tensor, nu: Tensor) -> tuple[Tensor, Tensor]:
        """phi_nu(u) and phi_nu'(u), the fast way: not differentiable."""
        return cls.value(u, nu), cls.slope(u, nu)

    @staticmethod
    def slope(u: Tensor, nu: Tensor) -> Tensor:
        """phi_nu'(u), differentiable in u and nu."""
        raise NotImplementedError

    @staticmethod
    def curvature(u: Tensor, nu: Tensor) -> Tensor:
        """phi_nu''(u)."""
        raise NotImplementedError

    @staticmethod
    def joint(top: Tensor) -> Tensor:
        """What ``third_bound`` and ``self_concordance`` multiply, from max |w|: ``(..., 1) -> (...)``."""
        return top[..., 0]


class SmoothedL1(Potential):
    """phi(u) = sqrt(u^2 + nu^2) - nu, the smoothed 1-norm."""

    slope_bound, third_bound, concavity = 1.0, 1.5 / 1.25**2.5, 0.0
    self_concordance, slope_width_bound, curvature_width_bound = 1.5, 2 / 3**1.5, 1.0

    @staticmethod
    def value(u: Tensor, nu: Tensor) -> Tensor:
        # without the cancellation of sqrt(u^2 + nu^2) - nu at small u
        return u * u / (torch.sqrt(u * u + nu * nu) + nu)

    @classmethod
    def value_and_slope(cls, u: Tensor, nu: Tensor) -> tuple[Tensor, Tensor]:
        root = torch.addcmul(nu * nu, u, u)
        inverse = torch.rsqrt(root)
        slope = u * inverse
        value = root.mul_(inverse).add_(nu).reciprocal_().mul_(u).mul_(u)
        return value, slope

    @staticmethod
    def slope(u: Tensor, nu: Tensor) -> Tensor:
        return u * torch.rsqrt(torch.addcmul(nu * nu, u, u))

    @staticmethod
    def curvature(u: Tensor, nu: Tensor) -> Tensor:
        square = nu * nu
        inverse = torch.addcmul(square, u, u).rsqrt_()
        return (inverse * inverse).mul_(inverse).mul_(square)


class LogCosh(Potential):
    """phi(u) = nu log cosh(u / nu)."""

    slope_bound, third_bound, concavity = 1.0, 4 / 27**0.5, 0.0
    self_concordance, slope_width_bound, curvature_width_bound = 2.0, 0.4478, 1.0

    @staticmethod
    def value(u: Tensor, nu: Tensor) -> Tensor:
        # log cosh t = -log(1 - tanh(t)^2) / 2 has no cancellation at small t, the other form no overflow at large t
        ratio = u / nu
        size, inner = ratio.abs(), torch.tanh(ratio.clamp(-1, 1))
        far = size + F.softplus(-2 * size) - math.log(2)
        return nu * torch.where(size < 1, -0.5 * torch.log1p(-inner * inner), far)

    @staticmethod
    def slope(u: Tensor, nu: Tensor) -> Tensor:
        return torch.tanh(u / nu)

    @staticmethod
    def curvature(u: Tensor, nu: Tensor) -> Tensor:
        slope = torch.tanh(u / nu)
        return (1 - slope * slope) / nu


class StudentT(Potential):
    """phi(u) = (nu/2) log(1 + u^2/nu^2): not convex, phi'' >= -1/(8 nu)."""

    slope_bound, third_bound, concavity = 0.5, 1.4572, 0.125
    self_concordance, slope_width_bound, curvature_width_bound = math.inf, 0.25, 1.0

    @staticmethod
    def value(u: Tensor, nu: Tensor) -> Tensor:
        return 0.5 * nu * torch.log1p((u / nu).square())

    @staticmethod
    def slope(u: Tensor, nu: Tensor) -> Tensor:
        ratio = u / nu
        return ratio / (1 + ratio * ratio)

    @staticmethod
    def curvature(u: Tensor, nu: Tensor) -> Tensor:
        square = (u / nu).square()
        return (1 - square) / (nu * (1 + square).square())


POTENTIALS: dict[str, type[Potential]] = {"smoothed_l1": SmoothedL1, "log_cosh": LogCosh, "student_t": StudentT}
