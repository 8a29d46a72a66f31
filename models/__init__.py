"""Regularizers and networks."""

from models.convex_ridge import ConvexRidge, WeaklyConvexRidge
from models.critic import ConvolutionalCritic
from models.fields_of_experts import FieldsOfExperts
from models.icnn import ICNN
from models.icnn_iteration import NetworkIteration
from models.icnn_saddle import ICNNSaddle, PrimalDual
from models.learned_primal_dual import LearnedPrimalDual
from models.learned_tv import LearnedTV
from models.storage import pretrained, pretrained_reconstructor, pretrained_saddle_model
from models.total_variation import TotalVariation
from models.unet import UNet

__all__ = [
    "ICNN",
    "ConvexRidge",
    "ConvolutionalCritic",
    "FieldsOfExperts",
    "ICNNSaddle",
    "LearnedPrimalDual",
    "LearnedTV",
    "NetworkIteration",
    "PrimalDual",
    "TotalVariation",
    "UNet",
    "WeaklyConvexRidge",
    "pretrained",
    "pretrained_reconstructor",
    "pretrained_saddle_model",
]
