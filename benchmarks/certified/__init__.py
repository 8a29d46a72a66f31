"""The parts of ``python -m benchmarks.certificates``: references of its own, random problems, and what is checked."""
