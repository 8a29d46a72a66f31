"""``recon compare``."""
