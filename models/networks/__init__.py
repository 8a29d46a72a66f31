"""Networks that reconstruct in one pass."""
