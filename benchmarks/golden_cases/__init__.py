"""The cases of ``benchmarks.golden``, a module for each group."""
