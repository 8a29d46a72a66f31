"""Solvers of energies, and what they have in common."""
