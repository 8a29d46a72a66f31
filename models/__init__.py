"""Regularizers and networks."""

from models.convex_ridge import ConvexRidge, WeaklyConvexRidge
from models.critic import ConvolutionalCritic
from models.fields_of_experts import FieldsOfExperts
from models.icnn import ICNN
from models.icnn_saddle import ICNNSaddle, PrimalDual
from models.learned_tv import LearnedTV
from models.storage import pretrained
from models.total_variation import TotalVariation

__all__ = [
    "ICNN",
    "ConvexRidge",
    "ConvolutionalCritic",
    "FieldsOfExperts",
    "ICNNSaddle",
    "LearnedTV",
    "PrimalDual",
    "TotalVariation",
    "WeaklyConvexRidge",
    "pretrained",
]
