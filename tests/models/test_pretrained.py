"""The regularizers that come with the project."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datasets import BuiltinImages
from models.storage import load_regularizer
from recon.lower_level import LBFGS, Energy, cropped, mirrored
from recon.metrics import psnr
from tests.lower_level.problems import normal

FILES = sorted((Path(__file__).parents[2] / "models" / "pretrained").glob("*.safetensors"))


def test_there_are_some() -> None:
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_denoises_what_its_metadata_say(path: Path) -> None:
    regularizer, metadata = load_regularizer(path)
    clean = BuiltinImages("test", size=96)[0][None].float()
    y = clean + normal(*clean.shape, seed=1, scale=metadata["sigma"], dtype=torch.float32)
    data = mirrored(y, regularizer.margin)
    solution = LBFGS()(Energy(data, regularizer), data, 0.3)
    assert solution.converged
    x = cropped(solution, (96, 96)).x
    assert float(psnr(x, clean)) > float(psnr(y, clean)) + 6
