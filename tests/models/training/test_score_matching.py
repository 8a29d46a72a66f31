"""Score matching in Lightning: it learns, and refuses data that are no images with noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datasets import DenoisingDataModule, PatchPictures
from models import FieldsOfExperts, ScoreMatchingModule
from recon.operators import Mask
from tests.trainers import quiet_trainer


def module() -> ScoreMatchingModule:
    torch.manual_seed(0)
    return ScoreMatchingModule(FieldsOfExperts(filters=3, size=3), noise_factor=1.5)


def data(operator: torch.nn.Module | None = None) -> DenoisingDataModule:
    return DenoisingDataModule(pictures=PatchPictures(size=16, limit=4), operator=operator)


def test_the_loss_is_that_of_the_residuals(tmp_path: Path) -> None:
    learner, pictures = module(), data()
    quiet_trainer(tmp_path, epochs=1).fit(learner, pictures)
    summary = learner.summary()
    x, y, *_ = next(iter(pictures.train_dataloader()))
    start = module().double().regularizer  # one mini-batch holds all four: the loss before its step
    expected = 0.5 * (start.grad(y) - 1.5 * (y - x)).square().sum((1, 2, 3)).mean()
    assert summary["loss"] == summary["lower"] == summary["upper"] == pytest.approx(float(expected), rel=1e-10)
    assert summary["guarantee"] == "none"
    assert summary["evaluations"] == 2
    again = module()
    quiet_trainer(tmp_path, epochs=40).fit(again, data())
    assert float(str(again.summary()["loss"])) < 0.9 * float(expected)


def test_other_data_than_images_with_noise_are_refused(tmp_path: Path) -> None:
    mask = Mask(torch.ones(1, 16, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"these data come from recon\.operators\.Mask"):
        quiet_trainer(tmp_path).fit(module(), data(mask))
    with pytest.raises(ValueError, match="noise_factor"):
        ScoreMatchingModule(FieldsOfExperts(filters=3, size=3), noise_factor=-1.0)
