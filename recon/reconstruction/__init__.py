"""Reconstruction: a problem, a weight, and a certified solution."""

from recon.reconstruction.boundary import cropped, mirrored
from recon.reconstruction.reconstructor import Reconstructor

__all__ = ["Reconstructor", "cropped", "mirrored"]
