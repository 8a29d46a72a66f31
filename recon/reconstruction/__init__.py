"""Reconstruction: a problem, a method, a weight, and a certified solution."""

from recon.reconstruction.boundary import cropped, mirrored
from recon.reconstruction.early_stopped import EarlyStopped, of_energy
from recon.reconstruction.methods import Direct, Method, Network, Reconstruction, Request, Watch
from recon.reconstruction.problem import Data, DicomTarget, NoiseLevel, Origin, Problem
from recon.reconstruction.reconstructor import Reconstructor
from recon.reconstruction.regularized import Regularized
from recon.reconstruction.saddle import Saddle
from recon.reconstruction.total_variation import ExactTotalVariation, PlainTotalVariation
from recon.reconstruction.variational import Variational

__all__ = [
    "Data",
    "DicomTarget",
    "Direct",
    "EarlyStopped",
    "ExactTotalVariation",
    "Method",
    "Network",
    "NoiseLevel",
    "Origin",
    "PlainTotalVariation",
    "Problem",
    "Reconstruction",
    "Reconstructor",
    "Regularized",
    "Request",
    "Saddle",
    "Variational",
    "Watch",
    "cropped",
    "mirrored",
    "of_energy",
]
