"""The trained models that come with the project: each is better than the plain reconstruction on its own problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datasets import BuiltinImages, SheppLogan
from models.files.storage import load_model
from recon.lower_level import LBFGS, Energy, Regularizer
from recon.metrics import psnr
from recon.operators import CartesianMRI, LinearOperator, RayTransform, geometry_from_dict, simulated_sensitivities
from recon.operators.mri.sampling import random_lines
from recon.reconstruction import cropped, mirrored
from recon.reconstruction.reconstructor import Reconstructor, naive_reconstruction
from tests.lower_level.problems import normal

FILES = sorted((Path(__file__).parents[3] / "models" / "pretrained").glob("*.safetensors"))


def test_there_are_some() -> None:
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_does_what_its_metadata_say(path: Path) -> None:
    model, metadata = load_model(path)
    kind = metadata["operator" if isinstance(model, Regularizer) else "setting"]
    name = kind if isinstance(kind, str) else kind["operator"]["class"]
    if name.endswith("Identity"):
        denoises(model, metadata)
    elif name.endswith("RayTransform"):
        pytest.importorskip("astra", reason="needs the extra ct")
        setting = metadata["setting"]
        x = SheppLogan(256)[0][None].float()
        operator = RayTransform(geometry_from_dict(setting["operator"]["geometry"]))
        z = operator(x)
        y = z + setting["noise"]["relative_sigma"] * z.mean() * normal(*z.shape, seed=1, dtype=torch.float32)
        beats_the_plain_reconstruction(model, metadata, operator, x, y)
    else:
        assert name.endswith("CartesianMRI")
        shape = (256, 256)
        x = torch.cat([SheppLogan(256)[0][None].float(), torch.zeros(1, 1, *shape)], 1)
        mri = CartesianMRI(random_lines(shape, 4, seed=1), simulated_sensitivities(8, shape))
        z = mri(x)
        sigma = metadata["setting"]["noise"]["sigma"]
        noise = normal(*z.shape, seed=1, scale=sigma, dtype=torch.float32).masked_fill(~mri.mask, 0.0)
        beats_the_plain_reconstruction(model, metadata, mri, x, z + noise)


def denoises(regularizer: Any, metadata: dict[str, Any]) -> None:
    clean = BuiltinImages("test", size=96, colour=regularizer.in_channels == 3)[0][None].float()
    sigma = metadata["sigma"] if regularizer.typical_noise is None else regularizer.typical_noise
    y = clean + normal(*clean.shape, seed=1, scale=sigma, dtype=torch.float32)
    regularizer = regularizer.at(sigma)
    data = mirrored(y, regularizer.margin)
    solution = LBFGS()(Energy(data, regularizer), data, 0.3)
    assert solution.converged
    x = cropped(solution, (96, 96)).x
    assert float(psnr(x, clean)) > float(psnr(y, clean)) + 6


@torch.no_grad()
def beats_the_plain_reconstruction(
    model: Any, metadata: dict[str, Any], operator: LinearOperator, x: Tensor, y: Tensor
) -> None:
    start = naive_reconstruction(y, operator)
    if isinstance(model, Reconstructor):
        found = model(y, operator)
    else:
        solution = LBFGS()(Energy(y, model, operator, mu=metadata["mu"]), start, 5.0)
        assert solution.converged
        found = solution.x
    show = operator.display
    assert float(psnr(show(found), show(x))) > float(psnr(show(start), show(x))) + 3
