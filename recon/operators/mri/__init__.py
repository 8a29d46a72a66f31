"""Cartesian MRI: sampling, coils, and the operator that they make."""
