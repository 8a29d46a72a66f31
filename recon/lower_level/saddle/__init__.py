"""Saddle-point problems: their parts, their bounds, and the primal-dual method that certifies them."""
