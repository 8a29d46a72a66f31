"""Compiled kernels for ridge regularizers on CPUs; native/ has their source."""

from models.regularizers.kernels.bank import Bank, Profiles, Weights, compiled
from models.regularizers.kernels.library import describe

__all__ = ["Bank", "Profiles", "Weights", "compiled", "describe"]
