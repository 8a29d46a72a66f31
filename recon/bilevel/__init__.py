"""The learning problem: certified objectives, inexact hypergradients, and the methods that descend on them."""

from recon.bilevel.hypergradient import Hypergradient
from recon.bilevel.loss import SquaredError, UpperLoss
from recon.bilevel.maid import MAID, Progress, PublishedMAID, Record
from recon.bilevel.objective import Accuracy, BilevelObjective, Evaluation

__all__ = [
    "MAID",
    "Accuracy",
    "BilevelObjective",
    "Evaluation",
    "Hypergradient",
    "Progress",
    "PublishedMAID",
    "Record",
    "SquaredError",
    "UpperLoss",
]
