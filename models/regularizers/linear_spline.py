"""Ridge regularizers whose psi_k' are linear splines: those of other programs, evaluated exactly."""

from __future__ import annotations

import math
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.regularizers.initial import InitialFilters
from models.regularizers.ridge import RidgeRegularizer
from recon.errors import at_least
from recon.lower_level import HessianVariation


class LinearSplineRidge(RidgeRegularizer):
    r"""R(x) = sum_k sum_p psi_k((c_k * x)_p), psi_k' linear between the knots a_k + j h_k and constant beyond them.

    psi_k(0) = 0 and psi_k is quadratic between knots, neither even nor convex in general. psi_k'' is piecewise
    constant: at a knot it jumps, and ``curvature`` is its limit from the right. Products with the Hessian are then
    those of one element of the generalized Hessian (Clarke): the Hessian itself wherever no response lies on a knot,
    which are almost all x. There is no Lipschitz constant of the Hessian, so that ``hessian_variation`` is ``None`` and
    certificates are of first order only: ``||x - x^|| <= ||grad|| / modulus``, for which no Hessian is needed.

    ``smoothness`` and ``convexity`` are proved for every image, by ``spectral_bound`` of the filters.

    Unlike those of the other ridge regularizers, filters are ``weight`` as it is, whatever its mean.

    Parameters
    ----------
    filters, size
        number and side length of the filters.
    knots
        number of knots of every profile.

    Raises
    ------
    ValueError
        fewer than two knots, one filter, or 2x2 pixels.
    """

    def __init__(self, filters: int, size: int, knots: int) -> None:
        super().__init__(filters, size, InitialFilters("normal"), unit_norm=False)
        at_least(2, knots=knots)
        self.slopes = nn.Parameter(torch.zeros(filters, knots))
        self.first = nn.Parameter(-torch.ones(filters))
        self.spacing = nn.Parameter(torch.full((filters,), 2 / (knots - 1)))

    @classmethod
    def of(cls, kernels: Tensor, slopes: Tensor, first: Tensor, spacing: Tensor) -> Self:
        """With these filters ``(K, s, s)``, psi_k' at the knots ``(K, n)``, a_k and h_k ``(K,)``; not learned.

        Raises
        ------
        ValueError
            shapes do not fit, a spacing is not positive, or a value not finite.
        """
        count = len(kernels)
        if kernels.ndim != 3 or kernels.shape[1] != kernels.shape[2]:
            raise ValueError(f"filters have the shape {tuple(kernels.shape)}, but must be (K, size, size)")
        if slopes.shape != (count, slopes.shape[-1]) or first.shape != (count,) or spacing.shape != (count,):
            shapes = ", ".join(str(tuple(t.shape)) for t in (slopes, first, spacing))
            raise ValueError(f"profiles of the shapes {shapes} do not belong to {count} filters")
        if not all(bool(t.isfinite().all()) for t in (kernels, slopes, first, spacing)):
            raise ValueError("filters or profiles hold values that are NaN or infinite")
        if not bool((spacing > 0).all()):
            raise ValueError(f"the smallest distance of knots is {float(spacing.min())}, but must be positive")
        made = cls(count, kernels.shape[1], slopes.shape[1])
        for name, value in {"weight": kernels, "slopes": slopes, "first": first, "spacing": spacing}.items():
            setattr(made, name, nn.Parameter(value.detach().clone(), requires_grad=False))
        return made

    def kernels(self) -> Tensor:
        """The filters, ``(K, s, s)``."""
        return self.weight

    def profile_parameters(self, kernels: Tensor) -> list[Tensor]:
        """psi' and psi at the knots ``(K, n)``, psi'' between and beyond them ``(K, n + 1)``, a and h ``(K, 1)``."""
        first, h = self.first[:, None], self.spacing[:, None]
        curvature = F.pad(self.slopes.diff(dim=1) / h, (1, 1))
        value = F.pad(torch.cumsum(0.5 * h * (self.slopes[:, 1:] + self.slopes[:, :-1]), 1), (1, 0))
        tables = [self.slopes, value, curvature, first, h]
        at_zero = self.value(torch.zeros_like(first)[None], tables)[0]
        return [self.slopes, value - at_zero, curvature, first, h]

    def _locate(self, u: Tensor, profile: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Index of the interval, distance from its left knot, and the distance beyond the outer knots (signed)."""
        knots, first, h = profile[0].shape[1], profile[3], profile[4]
        position = (u - first) / h
        inside = position.clamp(0, knots - 1)
        # NaN converts to the smallest integer: it must not reach beyond the tables, and stays NaN by the distance
        index = inside.detach().floor().to(torch.int64).clamp_(0, knots - 2)
        return index, h * (inside - index.to(u.dtype)), h * (position - inside)

    @staticmethod
    def _take(table: Tensor, index: Tensor) -> Tensor:
        """table[k, index[..., k, p]]."""
        rows = table.shape[1] * torch.arange(len(table), device=table.device)[:, None]
        return torch.take(table, index + rows)

    def value(self, u: Tensor, profile: list[Tensor]) -> Tensor:
        return self.value_and_slope(u, profile)[0]

    def value_and_slope(self, u: Tensor, profile: list[Tensor]) -> tuple[Tensor, Tensor]:
        index, t, beyond = self._locate(u, profile)
        left, bend = self._take(profile[0], index), self._take(profile[2], index + 1)
        slope = left + bend * t
        return self._take(profile[1], index) + t * (left + 0.5 * bend * t) + beyond * slope, slope

    def slope(self, u: Tensor, profile: list[Tensor]) -> Tensor:
        index, t, _ = self._locate(u, profile)
        return self._take(profile[0], index) + self._take(profile[2], index + 1) * t

    def curvature(self, u: Tensor, profile: list[Tensor]) -> Tensor:
        knots, first, h = profile[0].shape[1], profile[3], profile[4]
        index = ((u - first) / h).floor().clamp_(-1, knots - 1).nan_to_num_().to(torch.int64)
        return self._take(profile[2], index + 1)

    def divided(self, profile: list[Tensor], by: Tensor) -> list[Tensor]:
        return [*(table / by for table in profile[:3]), *profile[3:]]

    def curvature_bound(self, profile: list[Tensor]) -> Tensor:
        """sup |psi_k''|: the concave parts count, too."""
        return profile[2].abs().amax(1)

    def convexity(self) -> float:
        r"""-\|\|sum_k sup(-psi_k'') C_k^T C_k\|\|, guaranteed; 0 if all psi_k' are nondecreasing."""
        concavity = -self.current()[3].amin(1)  # psi'' = 0 beyond the knots, so this is not negative
        return -float(self.spectral_bound(concavity)) if bool((concavity > 0).any()) else 0.0

    def rounding_offset(self, x: Tensor) -> float:
        r"""4 sqrt(n) (sum_k (sup \|psi_k''\| r_k \|\|c_k\|\|)^2)^(1/2), n pixels, r_k the largest \|knot\|.

        A position between knots is the difference of u and a_k, and psi_k' near 0 that of values at knots: both are off
        by rounding errors of the order of r_k and sup |psi_k''| r_k, however small u is.
        """
        kernels, *profile = (t.double() for t in self.current())
        first, h = profile[3][:, 0], profile[4][:, 0]
        reach = torch.maximum(first.abs(), (first + (profile[0].shape[1] - 1) * h).abs())
        size = self.curvature_bound(profile) * reach + profile[0].abs().amax(1)
        return 4 * math.sqrt(x[0].numel()) * float((size * kernels.flatten(1).norm(dim=1)).norm())

    def hessian_variation(self, w: Tensor) -> HessianVariation | None:
        """None: psi_k'' jumps."""
        return None
