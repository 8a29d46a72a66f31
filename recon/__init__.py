"""Variational regularizers for imaging inverse problems, learned by bilevel optimization."""
