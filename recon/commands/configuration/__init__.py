"""Configurations of strangers: YAML of bounded size, and classes that fit their places."""
