"""The learning problem: certified objectives, inexact hypergradients, and the methods that descend on them."""

from recon.bilevel.hypergradient import Hypergradient
from recon.bilevel.loss import NegativePSNR, SquaredError, UpperLoss
from recon.bilevel.maid import MAID, PublishedMAID
from recon.bilevel.objective import Accuracy, BilevelObjective, Evaluation
from recon.bilevel.record import Progress, Record

__all__ = [
    "MAID",
    "Accuracy",
    "BilevelObjective",
    "Evaluation",
    "Hypergradient",
    "NegativePSNR",
    "Progress",
    "PublishedMAID",
    "Record",
    "SquaredError",
    "UpperLoss",
]
