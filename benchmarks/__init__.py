"""Measurements of speed, evaluations and memory, run as ``python -m benchmarks.NAME``; never part of the tests."""
