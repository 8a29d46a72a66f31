"""Compiled kernels for ridge regularizers and input convex networks on CPUs; native/ has their source."""

from models.regularizers.kernels.bank import Bank, Profiles, Weights, compiled
from models.regularizers.kernels.hessian import compiled_hessian, flat_images, planes
from models.regularizers.kernels.library import describe
from models.regularizers.kernels.network import Network, compiled_network

__all__ = [
    "Bank",
    "Network",
    "Profiles",
    "Weights",
    "compiled",
    "compiled_hessian",
    "compiled_network",
    "describe",
    "flat_images",
    "planes",
]
