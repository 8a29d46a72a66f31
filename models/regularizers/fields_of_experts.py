"""Fields of Experts: learned filters with learned potentials, convex or weakly convex."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from models.regularizers.filter_bank import frequency_response, patches
from models.regularizers.initial import InitialFilters
from models.regularizers.kernels import Profiles
from models.regularizers.potentials import POTENTIALS, LogCosh, Potential, SmoothedL1, StudentT
from models.regularizers.ridge import RidgeRegularizer
from recon.errors import not_negative, one_of
from recon.lower_level import HessianVariation, JacobianBounds, per_image_norm


class FieldsOfExperts(RidgeRegularizer):
    r"""R(x) = e^{theta_0} sum_k e^{theta_k} sum_p phi_{nu_k}((c_k * x)_p), (c_k) of mean zero (Roth and Black 2005).

    With ``weak_convexity`` rho > 0 every potential is bent down to a constant by subtracting a wider copy of itself,

        psi_k(u) = lambda_k (phi_{nu_k}(u) - phi_{omega_k}(u)),   lambda_k = e^{theta_0 + theta_k},
        omega_k = lambda_k / v_k,   v_k = rho e^{beta_k} / S(beta, c),   S >= max_xi sum_k e^{beta_k} |c^_k(xi)|^2,

    so that R + (rho/2)||x||^2 is convex whatever the parameters are: the subtracted part is convex with Hessian at
    most sum_k v_k C_k^T C_k <= rho. Denoising then stays (1 - rho)-strongly convex.

    Parameters
    ----------
    filters, size
        number and side length of the filters.
    potential
        ``smoothed_l1`` (convex), ``log_cosh`` (convex) or ``student_t`` (not convex).
    log_scale, log_weight, log_width
        initial theta_0, theta_k and log nu_k.
    smallest_width
        nu_k = smallest_width + e^{learned}: bounds the curvature e^{theta}/nu of every potential; of use with
        ``unit_norm``.
    weak_convexity
        rho in [0, 1).
    initial_filters, unit_norm
        see :class:`models.regularizers.ridge.RidgeRegularizer`.

    Raises
    ------
    ValueError
        a number is out of range, the potential is unknown, or not convex where ``weak_convexity`` needs it.
    """

    potentials: Mapping[str, type[Potential]] = POTENTIALS

    def __init__(
        self,
        filters: int = 48,
        size: int = 7,
        potential: str = "smoothed_l1",
        log_scale: float = 0.0,
        log_weight: float = -3.0,
        log_width: float = -3.0,
        smallest_width: float = 0.0,
        weak_convexity: float = 0.0,
        initial_filters: InitialFilters = InitialFilters(),
        unit_norm: bool = False,
    ) -> None:
        super().__init__(filters, size, initial_filters, unit_norm)
        one_of(tuple(self.potentials), potential=potential)
        if not 0 <= weak_convexity < 1:
            raise ValueError(f"weak_convexity is {weak_convexity}, but must lie in [0, 1)")
        not_negative(smallest_width=smallest_width)
        chosen, groups = self.potentials[potential], filters // self.group
        if weak_convexity and chosen.concavity:
            raise ValueError(f"weak_convexity needs a convex potential, but {potential!r} is not")
        self.potential, self.smallest_width, self.weak_convexity = chosen, smallest_width, weak_convexity
        self.log_scale = nn.Parameter(torch.tensor(float(log_scale)))
        self.log_weights = nn.Parameter(torch.full((groups,), float(log_weight)))
        self.log_widths = nn.Parameter(torch.full((groups,), float(log_width)))
        self.log_concavity = nn.Parameter(torch.zeros(groups)) if weak_convexity else None

    def profile_parameters(self, kernels: Tensor) -> list[Tensor]:
        """lambda_k, nu_k and, if weakly convex, omega_k, each ``(K, 1)``."""
        weight = torch.exp(self.log_scale + self.log_weights)[:, None]
        profile = [weight, (self.smallest_width + torch.exp(self.log_widths))[:, None]]
        if self.log_concavity is not None:
            shares = self.per_filter(self.log_concavity)
            budget = concavity_budget(kernels, shares, self.weak_convexity)[:: self.group, None]
            profile.append(self.potential.curvature_bound * weight / budget)
        return profile

    def value(self, u: Tensor, profile: list[Tensor]) -> Tensor:
        return _bent(self.potential.value, u, profile)

    def value_and_slope(self, u: Tensor, profile: list[Tensor]) -> tuple[Tensor, Tensor]:
        value, slope = self.potential.value_and_slope(u, profile[1])
        if len(profile) == 3:
            wide = self.potential.value_and_slope(u, profile[2])
            value, slope = value - wide[0], slope - wide[1]
        return value * profile[0], slope * self.per_filter(profile[0])

    def slope(self, u: Tensor, profile: list[Tensor]) -> Tensor:
        return _bent(self.potential.slope, u, profile)

    def curvature(self, u: Tensor, profile: list[Tensor]) -> Tensor:
        curvature = self.potential.curvature(u, profile[1])
        if len(profile) == 3:
            curvature -= self.potential.curvature(u, profile[2])
        return curvature.mul_(_rows(profile[0], curvature))

    def curvature_bound(self, profile: list[Tensor]) -> Tensor:
        """lambda_k sup phi'' / nu_k."""
        return self.per_filter((self.potential.curvature_bound * profile[0] / profile[1])[:, 0])

    def divided(self, profile: list[Tensor], by: Tensor) -> list[Tensor]:
        return [profile[0] / by, *profile[1:]]

    def compiled_profiles(self, profile: list[Tensor]) -> Profiles | None:
        kind = {SmoothedL1: "smoothed_l1", LogCosh: "log_cosh", StudentT: "student_t"}.get(self.potential)
        return None if kind is None else Profiles(kind, tuple(profile))

    def smoothness(self) -> float:
        """The bound of the convex part, or rho where that of the concave one is larger."""
        return max(super().smoothness(), -self.convexity())

    def convexity(self) -> float:
        """-rho for the weakly convex form, -||sum_k sup(-psi_k'') C_k^T C_k|| for Student-t, else 0."""
        if self.weak_convexity:
            return -self.weak_convexity
        if self.potential.concavity:
            _, weight, width = self.current()
            return -float(self.spectral_bound((self.potential.concavity * weight / width)[:, 0]))
        return 0.0

    def hessian_variation(self, w: Tensor) -> HessianVariation | None:
        """T = ||sum_k sup|psi_k'''| max|c_k * w| C_k^T C_k||, and kappa = max_k M max|c_k * w| / nu_k."""
        _, weight, *widths = self.current()
        top = self.potential.joint(self.filtered_maximum(w).unflatten(1, (-1, self.group)))
        third = sum(self.potential.third_bound * (weight / width.square())[:, 0].double() for width in widths)
        lipschitz = self.spectral_bound((third * top).repeat_interleave(self.group, 1))
        # |psi'''| <= M/nu lambda phi_nu'' + M/omega lambda phi_omega'', and the second form is at most rho ||e||^2
        relative = [self.potential.self_concordance * (top / width[:, 0].double()).amax(1) for width in widths]
        concavity = torch.zeros_like(lipschitz)
        if len(relative) == 2:
            concavity = self.weak_convexity * (1 + relative[1] / relative[0].clamp_min(torch.finfo(torch.float64).tiny))
        return HessianVariation(relative[0], lipschitz, concavity)

    def jacobian_bounds(self, x: Tensor, w: Tensor, radius: Tensor) -> JacobianBounds:
        """Proved column by column for theta = (theta_0, theta_k, log nu_k, c_k); an estimate if weakly convex.

        With a_k = ||C_k||, s the side length and patches of zero-mean filters of norm at most s ||x - mean(x)||.
        """
        if self.weak_convexity or self.composed or self.group > 1 or self._source is not None:
            return super().jacobian_bounds(x, w, radius)
        kernels, weight, width = (t.double() for t in self.current())
        weight, width, side = weight[:, 0], width[:, 0], kernels.shape[-1]
        a = self.spectral_bound(torch.eye(len(kernels), dtype=torch.float64, device=x.device)).sqrt()
        curvature, phi, radius = weight / width, self.potential, radius.double()[:, None]
        # moving a learned weight by 1 moves its filter by at most the inverse of its norm, or by at most 1
        raw = (self.weight - self.weight.mean((-2, -1), keepdim=True)).detach().double().flatten(1).norm(dim=1)
        chain = 1 / raw.clamp_min(1e-12) if self.unit_norm else torch.ones_like(raw)
        centred = per_image_norm(x - x.mean((2, 3), keepdim=True))[:, None] + radius
        positions = (x.shape[2] - side + 1) * (x.shape[3] - side + 1) * (x.shape[1] // self.in_channels)
        slope = torch.minimum(self._slope_norm(x) + curvature * a * radius, phi.slope_bound * weight * positions**0.5)
        columns = [
            (a * slope).sum(1),
            (a * slope).norm(dim=1),
            (a * weight * phi.slope_width_bound).norm() * positions**0.5 * torch.ones_like(radius[:, 0]),
            (chain * (a * curvature * side * centred + side * slope)).norm(dim=1),
        ]
        size = per_image_norm(w)[:, None]
        third = phi.third_bound * weight / width.square() * self.filtered_maximum(w)
        moved = [
            self.smoothness() * size[:, 0],
            (curvature * a.square() * size).norm(dim=1),
            (phi.curvature_width_bound * curvature * a.square() * size).norm(dim=1),
            (chain * (third * a * side * centred + 2 * curvature * a * side * size)).norm(dim=1),
        ]
        return JacobianBounds(torch.stack(columns).norm(dim=0), torch.stack(moved).norm(dim=0))

    def _slope_norm(self, x: Tensor) -> Tensor:
        """||psi_k'(c_k * x)|| for every image and filter, ``(batch, K)``, float64."""
        kernels, *profile = self.current()
        norms = [
            self.slope(
                kernels.flatten(1) @ patches(image.unflatten(0, (-1, self.in_channels)), self.kernel_size), profile
            )
            .square()
            .sum((0, 2), dtype=torch.float64)
            .sqrt()
            for image in x
        ]
        return torch.stack(norms)


def _bent(phi: Callable[[Tensor, Tensor], Tensor], u: Tensor, profile: list[Tensor]) -> Tensor:
    """lambda (phi_nu(u) - phi_omega(u)), phi a potential or a derivative of it; without omega lambda phi_nu(u)."""
    found = phi(u, profile[1])
    if len(profile) == 3:
        found = found - phi(u, profile[2])
    return found * _rows(profile[0], found)


def _rows(weight: Tensor, of: Tensor) -> Tensor:
    """To every row what its profile has."""
    return weight.repeat_interleave(of.shape[-2] // len(weight), 0)


def concavity_budget(kernels: Tensor, log_shares: Tensor, rho: float) -> Tensor:
    r"""v_k = rho e^{beta_k} / S, S >= max_xi sum_k e^{beta_k} \|c^_k(xi)\|^2: so \|\|sum_k v_k C_k^T C_k\|\| <= rho.

    S is a 64-norm over the grid of frequencies (and eigenvalues, of filters with several channels) instead of their
    maximum: differentiable, and never smaller.
    """
    response = frequency_response(kernels)
    # the shift cancels in v; it and the smallest share keep v, and lambda / v in single precision, in range
    shares = torch.exp(log_shares.double() - log_shares.detach().double().max()).clamp_min(1e-12)
    spectrum = response.spectrum(shares)
    # constant filters act on nothing, and any budget will do: S need not be smaller than this
    top = spectrum.detach().max().clamp_min(1e-6)
    # one half of the frequencies; the other half is equal and does not change a maximum
    total = top * (spectrum / top).pow(64).sum().clamp_min(1e-30).pow(1 / 64) * response.factor
    budget = rho * shares / total
    return budget.to(kernels.dtype)
