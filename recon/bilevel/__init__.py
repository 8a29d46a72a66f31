"""The learning problem: certified objectives, inexact hypergradients, and the methods that descend on them."""

from recon.bilevel.derivative_free import DFOLS
from recon.bilevel.evaluation import Accuracy, Evaluation
from recon.bilevel.hoag import HOAG, FixedAccuracy
from recon.bilevel.hypergradient import Hypergradient
from recon.bilevel.loss import NegativePSNR, SquaredError, UpperLoss
from recon.bilevel.maid import MAID, PublishedMAID
from recon.bilevel.objective import BilevelObjective
from recon.bilevel.piggyback import Piggyback
from recon.bilevel.record import Progress, Record
from recon.bilevel.saddle_objective import SaddleObjective
from recon.bilevel.stochastic import DivergedError, InexactAdam, InexactSGD

__all__ = [
    "DFOLS",
    "HOAG",
    "MAID",
    "Accuracy",
    "BilevelObjective",
    "DivergedError",
    "Evaluation",
    "FixedAccuracy",
    "Hypergradient",
    "InexactAdam",
    "InexactSGD",
    "NegativePSNR",
    "Piggyback",
    "Progress",
    "PublishedMAID",
    "Record",
    "SaddleObjective",
    "SquaredError",
    "UpperLoss",
]
