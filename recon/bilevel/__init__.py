"""The learning problem: certified objectives, inexact hypergradients, and the methods that descend on them."""

from recon.bilevel.energy_objective import BilevelObjective, Differentiation
from recon.bilevel.evaluation import Accuracy, CertifiedLoss, Evaluation
from recon.bilevel.hypergradient import Hypergradient
from recon.bilevel.loss import NegativePSNR, SquaredError, UpperLoss
from recon.bilevel.methods.certified_descent import Accelerations, LineSearch
from recon.bilevel.methods.dfols import DFOLS
from recon.bilevel.methods.hoag import HOAG, FixedAccuracy
from recon.bilevel.methods.maid import MAID, Limits
from recon.bilevel.methods.method import DivergedError, UpperLevelMethod
from recon.bilevel.methods.passes import InexactAdam, InexactSGD
from recon.bilevel.methods.proposals.checks import Checks
from recon.bilevel.methods.proposals.lbfgs import InexactLBFGS
from recon.bilevel.methods.proposals.method import CertifiedProposals
from recon.bilevel.methods.published_maid import AccuracySchedule, PublishedMAID
from recon.bilevel.methods.record import Progress, Record
from recon.bilevel.methods.run import Training
from recon.bilevel.methods.score_matching import ScoreMatchingAdam
from recon.bilevel.objective import InexactObjective, Objective
from recon.bilevel.piggyback import Piggyback
from recon.bilevel.saddle_objective import SaddleObjective
from recon.bilevel.score_matching import ScoreMatchingObjective

__all__ = [
    "DFOLS",
    "HOAG",
    "MAID",
    "Accelerations",
    "Accuracy",
    "AccuracySchedule",
    "BilevelObjective",
    "CertifiedLoss",
    "CertifiedProposals",
    "Checks",
    "Differentiation",
    "DivergedError",
    "Evaluation",
    "FixedAccuracy",
    "Hypergradient",
    "InexactAdam",
    "InexactLBFGS",
    "InexactObjective",
    "InexactSGD",
    "Limits",
    "LineSearch",
    "NegativePSNR",
    "Objective",
    "Piggyback",
    "Progress",
    "PublishedMAID",
    "Record",
    "SaddleObjective",
    "ScoreMatchingAdam",
    "ScoreMatchingObjective",
    "SquaredError",
    "Training",
    "UpperLevelMethod",
    "UpperLoss",
]
