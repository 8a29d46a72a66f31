"""Forward operators as torch modules, with exact transposes and proven norm bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recon.operators.algebra import Composition, Restriction, Scaled, Stack, Sum, Transpose, stack
from recon.operators.blur import Blur, gaussian_kernel
from recon.operators.checks import BoundError, adjoint_mismatch, check_adjoint, check_bounds, lanczos_norm_bound
from recon.operators.differences import FiniteDifferences
from recon.operators.linear import Identity, LinearOperator, apply_linear, fft_rounding
from recon.operators.mask import Mask
from recon.operators.mri.cartesian import (
    CartesianMRI,
    channels_to_complex,
    complex_to_channels,
    magnitude,
    root_sum_of_squares,
    zero_filled,
)
from recon.operators.mri.sensitivity import NoCalibrationError, estimate_sensitivities, simulated_sensitivities
from recon.operators.tomography.beams import (
    ConeBeam,
    FanBeam,
    Geometry,
    ParallelBeam,
    geometry_from_dict,
    geometry_to_dict,
)
from recon.operators.tomography.fbp import FilteredBackProjection
from recon.operators.tomography.ray_transform import RayTransform

if TYPE_CHECKING:
    from recon.operators.odl import ODLOperator

__all__ = [
    "Blur",
    "BoundError",
    "CartesianMRI",
    "Composition",
    "ConeBeam",
    "FanBeam",
    "FilteredBackProjection",
    "FiniteDifferences",
    "Geometry",
    "Identity",
    "LinearOperator",
    "Mask",
    "NoCalibrationError",
    "ODLOperator",
    "ParallelBeam",
    "RayTransform",
    "Restriction",
    "Scaled",
    "Stack",
    "Sum",
    "Transpose",
    "adjoint_mismatch",
    "apply_linear",
    "channels_to_complex",
    "check_adjoint",
    "check_bounds",
    "complex_to_channels",
    "estimate_sensitivities",
    "fft_rounding",
    "gaussian_kernel",
    "geometry_from_dict",
    "geometry_to_dict",
    "lanczos_norm_bound",
    "magnitude",
    "root_sum_of_squares",
    "simulated_sensitivities",
    "stack",
    "zero_filled",
]


def __getattr__(name: str) -> object:
    """ODL takes long to import, and only its adapter needs all of it."""
    if name != "ODLOperator":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from recon.operators.odl import ODLOperator

    return ODLOperator
