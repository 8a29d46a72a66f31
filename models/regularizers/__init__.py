"""Regularizers R(x) of energies."""
