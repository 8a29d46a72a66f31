"""Whether the tests notice when a bound gets smaller: ``python -m benchmarks.mutations``."""
