"""``recon demo``."""
