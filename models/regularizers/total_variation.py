"""Smoothed isotropic total variation with learnable weight and smoothing."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon.lower_level import HessianMap, HessianVariation, JacobianBounds, Regularizer, per_image_norm


class TotalVariation(Regularizer):
    r"""R(x) = e^{theta_1} sum_p (sqrt(\|(Dx)_p\|^2 + nu^2) - nu), nu = e^{theta_2}.

    D are forward differences with Neumann boundary (pixel spacing 1), channel by channel. The constant -nu makes
    R(0) = 0 and changes no minimizer.

    Parameters
    ----------
    log_weight, log_smoothing
        initial theta_1 and theta_2, both learned.

    Raises
    ------
    ValueError
        one is not finite.
    """

    def __init__(self, log_weight: float = -5.0, log_smoothing: float = -5.0) -> None:
        super().__init__()
        if not (math.isfinite(log_weight) and math.isfinite(log_smoothing)):
            raise ValueError(f"log_weight ({log_weight}) and log_smoothing ({log_smoothing}) must be finite")
        self.log_weight = nn.Parameter(torch.tensor(float(log_weight)))
        self.log_smoothing = nn.Parameter(torch.tensor(float(log_smoothing)))

    def forward(self, x: Tensor) -> Tensor:
        """R(x), ``(batch, channel, height, width) -> (batch,)``, differentiable in x and the parameters."""
        weight, nu = self.log_weight.double().exp().to(x.dtype), self.log_smoothing.double().exp().to(x.dtype)
        root = torch.sqrt(_differences(x).square().sum(0) + nu * nu)
        return weight * (root - nu).flatten(1).sum(1)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""R(x), ``(batch,)`` in float64, and e^{theta_1} D^T (Dx / sqrt(\|Dx\|^2 + nu^2)), of the shape of x."""
        weight, nu = self._current(x.dtype)
        z = _differences(x)
        root = torch.sqrt(z.square().sum(0) + nu * nu)
        value = weight * (root - nu).flatten(1).sum(1, dtype=torch.float64)
        return value, _transpose(z.mul_(weight / root))

    def hessian(self, x: Tensor) -> HessianMap:
        r"""v -> e^{theta_1} D^T (Dv / s - z <z, Dv> / s^3) with z = Dx, s = sqrt(\|z\|^2 + nu^2)."""
        weight, nu = self._current(x.dtype)
        z = _differences(x)
        inverse = torch.rsqrt(z.square().sum(0) + nu * nu)
        direction = z * inverse
        inverse = weight * inverse

        def apply(v: Tensor, kept: Tensor | None) -> Tensor:
            along, scale = (direction, inverse) if kept is None else (direction[:, kept], inverse[kept])
            d = _differences(v)
            return _transpose((d - along * (along * d).sum(0)).mul_(scale))

        return HessianMap(apply)

    def parameter_vjp(self, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        r"""g = e^{theta_1} sum <Dx, Dw> / s in theta_1, -nu^2 e^{theta_1} sum <Dx, Dw> / s^3 in theta_2."""
        weight, nu = self._current(x.dtype)
        z, dw = _differences(x), _differences(w)
        inverse = torch.rsqrt(z.square().sum(0) + nu * nu)
        slope = weight * (z * dw).sum(0) * inverse
        by_name = {
            "log_weight": slope.sum(),
            "log_smoothing": -(nu * nu) * (slope * inverse.square()).sum(),
        }
        return tuple(by_name[name].to(p) for name, p in self.named_parameters() if p.requires_grad)

    def slack(self, x: Tensor) -> Tensor:
        r"""e^{theta_1} (TV(x) - <Dx, p>) per image, float64, p = Dx / sqrt(\|Dx\|^2 + nu^2): at most 0.31 nu a pixel.

        p is in the dual ball. So with a gradient r at x of the smoothed energy of modulus m the minimizer *without*
        smoothing is within \|\|r\|\|/2m + ((\|\|r\|\|/2m)^2 + slack/m)^(1/2): docs/mathematics.md, section 8.
        """
        weight, nu = self._current()
        length = _differences(x.double()).square().sum(0).sqrt()
        root = torch.hypot(length, nu)
        # |z| - |z|^2 / s, without the difference
        return (weight * length * (nu / root) * (nu / (root + length))).flatten(1).sum(1)

    def smoothness(self) -> float:
        """8 e^{theta_1} / nu, since ||D||^2 < 8."""
        weight, nu = self._current()
        return 8 * float(weight / nu)

    def convexity(self) -> float:
        return 0.0

    def hessian_variation(self, w: Tensor) -> HessianVariation | None:
        r"""sqrt(\|z\|^2 + nu^2) is generalized self-concordant in the plane with M = 3/(2 nu), as on the line.

        Its third derivative is a symmetric trilinear form, at most 0.859/nu^2, attained along z.
        """
        weight, nu = self._current()
        top = _differences(w).square().sum(0).sqrt().flatten(1).amax(1).double()
        lipschitz = 8 * weight * (1.5 / 1.25**2.5) / nu**2 * top
        return HessianVariation(1.5 / nu * top, lipschitz, torch.zeros_like(top))

    def jacobian_bounds(self, x: Tensor, w: Tensor, radius: Tensor) -> JacobianBounds:
        """The two columns of J at x, and how fast they move: by 8 e^{theta_1}/nu per unit of x, both."""
        weight, nu = self._current(x.dtype)
        z = _differences(x)
        inverse = torch.rsqrt(z.square().sum(0) + nu * nu)
        first = per_image_norm(_transpose(weight * z * inverse))
        second = per_image_norm(_transpose(weight * nu * nu * z * inverse**3))
        rate, radius = self.smoothness(), radius.double()
        norm = torch.hypot(first + rate * radius, second + rate * radius)
        return JacobianBounds(norm, 2**0.5 * rate * per_image_norm(w))

    def _current(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """e^{theta_1} and nu: exponentials of the parameters that do not depend on the type these are stored in."""
        return self.log_weight.detach().double().exp().to(dtype), self.log_smoothing.detach().double().exp().to(dtype)


def _differences(x: Tensor) -> Tensor:
    """Dx, stacked in front: ``(2, batch, channel, height, width)``; zero behind the last row and column."""
    rows = F.pad(x[..., 1:, :] - x[..., :-1, :], (0, 0, 0, 1))
    cols = F.pad(x[..., 1:] - x[..., :-1], (0, 1))
    return torch.stack((rows, cols))


def _transpose(p: Tensor) -> Tensor:
    """D^T p, ``(2, batch, channel, height, width) -> (batch, channel, height, width)``."""
    x = torch.zeros_like(p[0])
    x[..., 1:, :] += p[0][..., :-1, :]
    x[..., :-1, :] -= p[0][..., :-1, :]
    x[..., 1:] += p[1][..., :-1]
    x[..., :-1] -= p[1][..., :-1]
    return x
