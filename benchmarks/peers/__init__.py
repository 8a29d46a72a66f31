"""Other programs beside this one, each in a process of its own: ``python -m benchmarks.peers``."""
