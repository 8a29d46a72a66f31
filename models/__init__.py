"""Regularizers, saddle-point models, networks, and the Lightning modules that train them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from models.files.storage import pretrained, pretrained_reconstructor, pretrained_saddle_model
from models.networks.learned_primal_dual import LearnedPrimalDual
from models.networks.unet import UNet
from models.regularizers.convex_ridge import ConvexRidge, WeaklyConvexRidge
from models.regularizers.critic import ConvolutionalCritic
from models.regularizers.fields_of_experts import FieldsOfExperts
from models.regularizers.icnn import ICNN
from models.regularizers.initial import InitialFilters
from models.regularizers.leaky_relu import LeakyReLU
from models.regularizers.linear_spline import LinearSplineRidge
from models.regularizers.multivariate import MultivariateFieldsOfExperts
from models.regularizers.noise_level import NoiseConditioned
from models.regularizers.total_variation import TotalVariation
from models.saddle_points.icnn_iteration import NetworkIteration
from models.saddle_points.icnn_saddle import ICNNSaddle, PrimalDual
from models.saddle_points.learned_tv import Convexity, InitialKernels, LearnedTV

if TYPE_CHECKING:
    from models.training.adversarial import AdversarialModule
    from models.training.bilevel import BilevelModule
    from models.training.critic import CriticAdam
    from models.training.saddle import SaddleModule
    from models.training.score_matching import ScoreMatchingModule
    from models.training.supervised import PublishedAdam, SupervisedModule

__all__ = [
    "ICNN",
    "AdversarialModule",
    "BilevelModule",
    "ConvexRidge",
    "Convexity",
    "ConvolutionalCritic",
    "CriticAdam",
    "FieldsOfExperts",
    "ICNNSaddle",
    "InitialFilters",
    "InitialKernels",
    "LeakyReLU",
    "LearnedPrimalDual",
    "LearnedTV",
    "LinearSplineRidge",
    "MultivariateFieldsOfExperts",
    "NetworkIteration",
    "NoiseConditioned",
    "PrimalDual",
    "PublishedAdam",
    "SaddleModule",
    "ScoreMatchingModule",
    "SupervisedModule",
    "TotalVariation",
    "UNet",
    "WeaklyConvexRidge",
    "pretrained",
    "pretrained_reconstructor",
    "pretrained_saddle_model",
]

# Lightning takes seconds to import, and most programs need none of it
_TRAINING = {
    "AdversarialModule": "adversarial",
    "BilevelModule": "bilevel",
    "CriticAdam": "critic",
    "PublishedAdam": "supervised",
    "SaddleModule": "saddle",
    "ScoreMatchingModule": "score_matching",
    "SupervisedModule": "supervised",
}


def __getattr__(name: str) -> object:
    if name not in _TRAINING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"models.training.{_TRAINING[name]}"), name)
