"""Measured CT scans: reading them, and what is wrong with them."""
