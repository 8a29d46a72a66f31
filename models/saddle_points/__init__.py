"""Regularizers as saddle-point problems."""
