"""Pictures to learn from: folders, phantoms, patches, splits, simulated measurements."""
