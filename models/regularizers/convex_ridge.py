"""Convex and weakly convex ridge regularizers: learned spline profiles."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.regularizers.fields_of_experts import concavity_budget
from models.regularizers.initial import InitialFilters
from models.regularizers.kernels import Profiles
from models.regularizers.ridge import RidgeRegularizer
from recon.errors import fraction, positive
from recon.lower_level import HessianVariation


def _softplus(t: Tensor) -> Tensor:
    """log(1 + e^t) to full precision: beyond torch's threshold of 20 it would be t, off by up to 2e-9."""
    return F.softplus(t, threshold=40.0)


class ConvexRidge(RidgeRegularizer):
    r"""R(x) = sum_k sum_p psi_k((c_k * x)_p) with even splines psi_k of degree 3 (Goujon et al. 2023).

    psi_k'' is piecewise linear in \|u\| with learned values d_kj at u_j = j ``spacing``, j < ``knots``, and zero from
    the next knot on, where psi_k grows linearly. d_kj = ``scale`` softplus(learned) >= 0 makes psi_k convex by
    construction; the continuous psi_k'' gives the Hessian a Lipschitz constant, which certificates need.

    :class:`WeaklyConvexRidge` lets d_kj fall to -v_k, with sum_k v_k C_k^T C_k <= rho.

    Parameters
    ----------
    filters, size, initial_filters, unit_norm
        of the filters, see :class:`models.regularizers.ridge.RidgeRegularizer`.
    knots
        number of learned values per profile.
    spacing
        distance of the knots, in the units of c_k * x.
    log_weight, log_width
        the initial profiles are e^{log_weight} times the smoothed 1-norm of width e^{log_width}.
    scale
        unit of the d_kj. What is learned should be of order 1, or one step of an optimizer hardly moves it: for
        operators of large norm, about the initial d_k0 = e^{log_weight - log_width}.
    """

    def __init__(
        self,
        filters: int = 32,
        size: int = 7,
        knots: int = 21,
        spacing: float = 0.01,
        log_weight: float = -3.0,
        log_width: float = -3.0,
        initial_filters: InitialFilters = InitialFilters(),
        unit_norm: bool = False,
        scale: float = 1.0,
    ) -> None:
        super().__init__(filters, size, initial_filters, unit_norm)
        if knots < 2:
            raise ValueError(f"knots is {knots}, but a spline needs at least 2")
        positive(spacing=spacing, scale=scale)
        self.spacing, self.scale = spacing, scale
        u, nu = spacing * torch.arange(knots), torch.tensor(log_width).exp()
        initial = torch.tensor(log_weight).exp() * nu**2 / (u**2 + nu**2) ** 1.5 / scale
        inverse = initial + torch.log(-torch.expm1(-initial))  # of the softplus
        self.curvatures = nn.Parameter(inverse.to(torch.get_default_dtype()).repeat(filters, 1))

    def knot_curvatures(self, kernels: Tensor) -> Tensor:
        """d_kj = psi_k''(u_j), ``(K, knots)``."""
        return self.scale * _softplus(self.curvatures)

    def profile_parameters(self, kernels: Tensor) -> list[Tensor]:
        """psi'', psi' and psi at the knots, ``(K, knots + 1)`` each: linear, quadratic and cubic integrals."""
        d = F.pad(self.knot_curvatures(kernels), (0, 1))
        h, left, right = self.spacing, d[:, :-1], d[:, 1:]
        slope = F.pad(torch.cumsum(0.5 * h * (left + right), 1), (1, 0))
        value = F.pad(torch.cumsum(h * slope[:, :-1] + h * h * (left / 3 + right / 6), 1), (1, 0))
        return [d, slope, value]

    def _locate(self, u: Tensor, tables: list[Tensor]) -> tuple[Tensor, ...]:
        """Where |u| lies (fraction of its interval, distance beyond the last knot) and what the tables hold there."""
        last = tables[0].shape[1] - 1
        position = u.abs() / self.spacing
        # NaN converts to the smallest integer: it must not reach beyond the tables, and stays NaN by the fraction
        index = position.detach().floor().clamp_(max=last - 1).to(torch.int64).clamp_(min=0)
        inside = position.clamp(max=last)
        index += (last + 1) * torch.arange(len(tables[0]), device=u.device)[:, None]
        fraction = inside - (index % (last + 1)).to(u.dtype)
        left, right = (torch.take(tables[0], index + j) for j in (0, 1))
        others = [torch.take(t, index) for t in tables[1:]]
        return fraction, self.spacing * (position - inside), left, right - left, *others

    def value(self, u: Tensor, profile: list[Tensor]) -> Tensor:
        return self.value_and_slope(u, profile)[0]

    def value_and_slope(self, u: Tensor, profile: list[Tensor]) -> tuple[Tensor, Tensor]:
        f, beyond, d, change, slope, value = self._locate(u, profile)
        h = self.spacing
        reached = slope + h * f * (d + change * f / 2)
        inside = value + h * f * (slope + h * f * (d / 2 + change * f / 6))
        return inside + beyond * reached, reached * u.sign()

    def slope(self, u: Tensor, profile: list[Tensor]) -> Tensor:
        f, _, d, change, slope = self._locate(u, profile[:2])
        return (slope + self.spacing * f * (d + change * f / 2)) * u.sign()

    def curvature(self, u: Tensor, profile: list[Tensor]) -> Tensor:
        f, _, d, change = self._locate(u, profile[:1])
        return d + change * f

    def curvature_bound(self, profile: list[Tensor]) -> Tensor:
        """The largest d_kj: psi_k'' is linear in between."""
        return profile[0].amax(1)

    def divided(self, profile: list[Tensor], by: Tensor) -> list[Tensor]:
        return [table / by for table in profile]

    def compiled_profiles(self, profile: list[Tensor]) -> Profiles:
        return Profiles("spline", tuple(profile), self.spacing)

    def convexity(self) -> float:
        return 0.0

    def hessian_variation(self, w: Tensor) -> HessianVariation | None:
        """T = ||sum_k sup|psi_k'''| max|c_k * w| C_k^T C_k||: splines are not self-concordant."""
        d = self.current()[1]
        third = (d[:, 1:] - d[:, :-1]).abs().amax(1).double() / self.spacing
        lipschitz = self.spectral_bound(third * self.filtered_maximum(w))
        return HessianVariation(torch.full_like(lipschitz, torch.inf), lipschitz, torch.zeros_like(lipschitz))


class WeaklyConvexRidge(ConvexRidge):
    r"""The weakly convex relative (Goujon, Neumayer, Unser 2024): R + (rho/2)||x||^2 is convex.

    d_kj = scale softplus(learned) - v_k sigmoid(learned'), v_k >= 0 with \|\|sum_k v_k C_k^T C_k\|\| <= rho by
    :func:`models.regularizers.fields_of_experts.concavity_budget`, whatever the parameters are.

    Parameters
    ----------
    weak_convexity
        rho in (0, 1).
    filters, size, knots, spacing, log_weight, log_width, initial_filters, unit_norm, scale
        as for :class:`ConvexRidge`.

    Raises
    ------
    ValueError
        a number is out of range.
    """

    def __init__(
        self,
        filters: int = 32,
        size: int = 7,
        knots: int = 21,
        spacing: float = 0.01,
        log_weight: float = -3.0,
        log_width: float = -3.0,
        weak_convexity: float = 0.9,
        initial_filters: InitialFilters = InitialFilters(),
        unit_norm: bool = False,
        scale: float = 1.0,
    ) -> None:
        super().__init__(filters, size, knots, spacing, log_weight, log_width, initial_filters, unit_norm, scale)
        fraction(weak_convexity=weak_convexity)
        self.weak_convexity = weak_convexity
        # psi is convex near 0 and bends down towards the last knot
        self.bends = nn.Parameter(torch.linspace(-4, 0, knots).repeat(filters, 1))
        self.log_concavity = nn.Parameter(torch.zeros(filters))

    def knot_curvatures(self, kernels: Tensor) -> Tensor:
        """d_kj = scale softplus(learned) - v_k sigmoid(learned'), ``(K, knots)``."""
        budget = concavity_budget(kernels, self.log_concavity, self.weak_convexity)[:, None]
        return self.scale * _softplus(self.curvatures) - budget * torch.sigmoid(self.bends)

    def curvature_bound(self, profile: list[Tensor]) -> Tensor:
        """The largest |d_kj|: the concave part counts, too."""
        return profile[0].abs().amax(1)

    def convexity(self) -> float:
        return -self.weak_convexity
