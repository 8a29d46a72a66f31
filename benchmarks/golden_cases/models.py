"""The trained models that come with the library: they load by their names, and give the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import models
from benchmarks.golden_cases.common import Cases, Context, arguments, bits, exact, normal, pictures
from models import (
    ICNN,
    ConvolutionalCritic,
    ICNNSaddle,
    InitialFilters,
    InitialKernels,
    LeakyReLU,
    LearnedPrimalDual,
    LearnedTV,
    UNet,
    pretrained,
    pretrained_reconstructor,
    pretrained_saddle_model,
)
from recon.lower_level import PDHG, Recreatable, Regularizer, SaddleModel
from recon.operators import CartesianMRI, Identity, LinearOperator, ParallelBeam, RayTransform, simulated_sensitivities


def compute(context: Context) -> dict[str, Any]:
    cases = Cases()
    folder = Path(str(models.__file__)).parent
    names = sorted(path.stem for path in folder.rglob("pretrained/*.safetensors"))
    cases.add("names", lambda: {"names": names})
    for name in names:
        cases.add(name, lambda n=name: _facts(_loaded(n)))
    for name, make in _MADE.items():
        cases.add(f"untrained {name}", lambda m=make: _facts(m()))
    for name, loader in _LOADERS.items():
        cases.add(f"{name} of an unknown name", lambda f=loader: {"loaded": str(f("tv_bds"))})
        cases.add(f"{name} of lpd_ct", lambda f=loader: {"loaded": type(f("lpd_ct")).__name__})
    return cases.results


_LOADERS = {"regularizer": pretrained, "saddle model": pretrained_saddle_model, "network": pretrained_reconstructor}

#: what a seed makes of a class
_MADE = {
    "critic": lambda: ConvolutionalCritic(filters=(4, 4), size=3, seed=3),
    "icnn multiscale": lambda: ICNN(5, 5, layers=2, inner_size=3, initial_filters=InitialFilters("multiscale", 1)),
    "unet": lambda: UNet(scales=2, channels=3, seed=2),
    "lpd": lambda: LearnedPrimalDual(iterations=2, memory=2, channels=4, seed=4, start="naive"),
    "lpd mri": lambda: LearnedPrimalDual(iterations=2, memory=2, channels=4, image_channels=2, data_channels=2),
    "unet mri": lambda: UNet(scales=2, channels=3, image_channels=2, data_channels=2),
    "learned tv": lambda: LearnedTV(3, 5, InitialKernels("random", 5)),
    "icnn saddle": lambda: ICNNSaddle(ICNN(3, 3, activation=LeakyReLU(width=0.05)), (1, 24, 24), mu=0.1),
}


def _loaded(name: str) -> nn.Module:
    """By the loader of its kind."""
    refused = []
    for load in _LOADERS.values():
        try:
            return load(name)
        except ValueError as error:
            refused.append(str(error))
    raise ValueError("; ".join(refused))


def _facts(model: Any) -> dict[str, Any]:
    state = {name: bits(tensor) for name, tensor in model.state_dict().items()}
    given = _plain(arguments(model)) if isinstance(model, Recreatable) else None
    result = {"class": type(model).__name__, "arguments": given, "state": state}
    dtype = next(p.dtype for p in model.parameters())
    if isinstance(model, Regularizer):
        x = pictures(2, getattr(model, "channels", 1), 24, 21, dtype=dtype)
        value, gradient = model.value_and_grad(x)
        moduli = [exact(model.convexity()), exact(model.smoothness())]
        return result | {"value": exact(value), "gradient": bits(gradient), "moduli": moduli}
    if isinstance(model, SaddleModel):
        y = pictures(1, 1, 24, 24, dtype=dtype)
        with torch.no_grad():
            saddle, z = model.saddle_point(y), model.initial(y)
        return result | {"x": bits(PDHG(30, certified=False)(saddle, *saddle.split(z), 1e-9).x)}
    for name, operator in _operators(model).items():
        with torch.no_grad():
            y = operator(pictures(1, model.image_channels, 32, 32, seed=2, dtype=dtype))
            result[name] = bits(model(y + normal(*y.shape, seed=8, scale=0.05, dtype=dtype), operator))
    return result


def _operators(model: Any) -> dict[str, LinearOperator]:
    if model.data_channels == 2:
        mask = (torch.arange(32) % 3 == 0).expand(32, 32)
        return {"mri": CartesianMRI(mask), "coils": CartesianMRI(mask, simulated_sensitivities(3, (32, 32)))}
    return {"ray": RayTransform(ParallelBeam.equispaced((32, 32), 0.5, 12), cache=False), "identity": Identity()}


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments that are models themselves by the names of their classes."""
    return {k: type(v).__name__ if isinstance(v, nn.Module) else exact(v) for k, v in arguments.items()}
