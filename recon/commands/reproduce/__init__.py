"""``recon reproduce``."""
