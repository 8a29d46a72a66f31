"""The learning problem: certified objectives, inexact hypergradients, and the methods that descend on them."""

from recon.bilevel.energy_objective import BilevelObjective, Differentiation
from recon.bilevel.evaluation import Accuracy, Evaluation
from recon.bilevel.hypergradient import Hypergradient
from recon.bilevel.loss import NegativePSNR, SquaredError, UpperLoss
from recon.bilevel.methods.dfols import DFOLS
from recon.bilevel.methods.hoag import HOAG, FixedAccuracy
from recon.bilevel.methods.maid import MAID, PublishedMAID
from recon.bilevel.methods.passes import DivergedError, InexactAdam, InexactSGD
from recon.bilevel.methods.record import Progress, Record
from recon.bilevel.objective import InexactObjective, Objective
from recon.bilevel.piggyback import Piggyback
from recon.bilevel.saddle_objective import SaddleObjective

__all__ = [
    "DFOLS",
    "HOAG",
    "MAID",
    "Accuracy",
    "BilevelObjective",
    "Differentiation",
    "DivergedError",
    "Evaluation",
    "FixedAccuracy",
    "Hypergradient",
    "InexactAdam",
    "InexactObjective",
    "InexactSGD",
    "NegativePSNR",
    "Objective",
    "Piggyback",
    "Progress",
    "PublishedMAID",
    "Record",
    "SaddleObjective",
    "SquaredError",
    "UpperLoss",
]
