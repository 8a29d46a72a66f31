"""Figures that ``recon reproduce`` makes: one module each, named after it.

A module has ``run(scale, output)``, which computes and draws, and may have ``plot(output)``, which draws again from the
files that ``run`` has left in the folder.
"""
