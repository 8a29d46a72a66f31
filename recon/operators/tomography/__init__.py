"""X-ray transforms of parallel, fan and cone beams, and filtered back-projection."""
