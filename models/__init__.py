"""Regularizers and networks."""

from models.files.storage import pretrained, pretrained_reconstructor, pretrained_saddle_model
from models.networks.learned_primal_dual import LearnedPrimalDual
from models.networks.unet import UNet
from models.regularizers.convex_ridge import ConvexRidge, WeaklyConvexRidge
from models.regularizers.critic import ConvolutionalCritic
from models.regularizers.fields_of_experts import FieldsOfExperts
from models.regularizers.icnn import ICNN
from models.regularizers.total_variation import TotalVariation
from models.saddle_points.icnn_iteration import NetworkIteration
from models.saddle_points.icnn_saddle import ICNNSaddle, PrimalDual
from models.saddle_points.learned_tv import LearnedTV

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
