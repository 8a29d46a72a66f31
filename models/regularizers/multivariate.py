"""Fields of experts whose potentials are functions of four responses at a time, convex or weakly convex."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from models.regularizers.fields_of_experts import FieldsOfExperts
from models.regularizers.group_potentials import GROUP, GROUP_POTENTIALS, SoftMaximum, packed_product
from models.regularizers.initial import InitialFilters
from models.regularizers.kernels import Profiles
from models.regularizers.potentials import Potential


class MultivariateFieldsOfExperts(FieldsOfExperts):
    r"""R(x) = sum_g lambda_g sum_p phi_{nu_g}((c_{4g} * x)_p, ..., (c_{4g+3} * x)_p), lambda_g = e^{theta_0 + theta_g}.

    Filters that follow each other in fours are a group: what phi asks of one response depends on the three others
    (Ducotterd and Unser 2025). With ``weak_convexity`` rho > 0,

        psi_g = lambda_g (phi_{nu_g} - phi_{omega_g}),   omega_g = l lambda_g / v_g,   phi_1'' <= l,
        v_g = rho e^{beta_g} / S(beta, c),   S >= max_xi sum_g e^{beta_g} sum_{k in g} \|c^_k(xi)\|^2,

    so that R + (rho/2)||x||^2 is convex whatever the parameters are. Hessians are Lipschitz continuous, which
    certificates of hypergradients need.

    Parameters
    ----------
    filters, size
        number, a multiple of four, and side length of the filters.
    potential
        ``smoothed_norm``, sqrt(\|u\|^2 + nu^2) - nu, or ``soft_maximum``, nu log(mean_j cosh(u_j/nu)), which the
        compiled kernels have.
    log_scale, log_weight, log_width, smallest_width, weak_convexity, initial_filters
        see :class:`models.FieldsOfExperts`; weights and widths are those of groups.
    unit_norm
        divide the filters of each group by the root of the mean of their squared norms: within a group they may
        differ in norm, and weigh differently.

    Raises
    ------
    ValueError
        a number is out of range, or the potential is unknown.
    """

    group = GROUP
    potentials: Mapping[str, type[Potential]] = GROUP_POTENTIALS

    def __init__(
        self,
        filters: int = 48,
        size: int = 7,
        potential: str = "smoothed_norm",
        log_scale: float = 0.0,
        log_weight: float = -3.0,
        log_width: float = -3.0,
        smallest_width: float = 0.0,
        weak_convexity: float = 0.0,
        initial_filters: InitialFilters = InitialFilters(),
        unit_norm: bool = False,
    ) -> None:
        super().__init__(
            filters,
            size,
            potential,
            log_scale,
            log_weight,
            log_width,
            smallest_width,
            weak_convexity,
            initial_filters,
            unit_norm,
        )

    def curved(self, curvature: Tensor, v: Tensor) -> Tensor:
        return packed_product(curvature, v.view(*v.shape[:2], *curvature.shape[2:]))

    def compiled_profiles(self, profile: list[Tensor]) -> Profiles | None:
        return Profiles("soft_maximum", tuple(profile)) if self.potential is SoftMaximum else None
