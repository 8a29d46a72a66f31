"""Proposals with certificates: any method moves the parameters, and intervals of the whole loss decide."""
