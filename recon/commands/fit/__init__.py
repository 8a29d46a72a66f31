"""``recon fit | validate | test | predict``."""
