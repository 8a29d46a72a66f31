"""Measured k-space: reading it, its centre, its noise."""
