"""``recon reconstruct``."""
