"""Data of which not everything was measured: dead detector pixels weigh 0 in training, test and prediction."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datasets.modules.sinograms import SinogramDataModule
from models import LearnedTV, TotalVariation
from models.networks.unet import UNet
from models.training.adversarial import AdversarialModule
from models.training.bilevel import BilevelModule
from models.training.saddle import SaddleModule
from models.training.supervised import SupervisedModule
from recon.bilevel import MAID, Accuracy, BilevelObjective
from recon.lower_level import LBFGS, Energy, KullbackLeibler, WeightedSquaredL2
from recon.operators import LinearOperator, Mask
from tests.datasets.scans.disc_scans import BODY, HOLE, INSERT, half_turn, sinogram

ACCURACY = 1e-2
VIEWS, PIXELS, PITCH = 12, 32, 1.5
DEAD = (20, 9)


def _trainer(folder: Path, epochs: int = 1) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        accelerator="cpu",
        inference_mode=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def _module(**options: object) -> BilevelModule:
    module = BilevelModule(TotalVariation(-4.0, -4.0), MAID, mu=1e-2, reconstruction_accuracy=ACCURACY, **options)  # type: ignore[arg-type]
    return module.double()


# --- prediction on measured scans ------------------------------------------------------------------------------------


@pytest.fixture
def scans(tmp_path: Path) -> SinogramDataModule:
    """Three scans of one object: two with a dead column each, not the same, and one without."""
    pytest.importorskip("astra", reason="needs the extra ct")
    z = sinogram(half_turn(VIEWS), (BODY, INSERT, HOLE), pixels=PIXELS, pitch=PITCH)
    for name, column in (("a", DEAD[0]), ("b", DEAD[1]), ("c", None)):
        values = z.copy()
        if column is not None:
            values[:, column] = 11.8
        np.savez(tmp_path / f"{name}.npz", sinogram=values, angles=half_turn(VIEWS), detector_spacing=PITCH)
    with pytest.warns(UserWarning, match="did not measure"):
        return SinogramDataModule(tmp_path, PIXELS // 2, 2 * PITCH, cache=False)


def _expected(data: SinogramDataModule, y: Tensor, column: int | None) -> Tensor:
    """The minimizer with the weights of the column set to 0 by hand."""
    weights = torch.ones_like(y[0])
    if column is not None:
        weights[..., column] = 0.0
    energy = Energy(y, TotalVariation(-4.0, -4.0).double(), data.operator, WeightedSquaredL2(weights), 1e-2)
    start = torch.zeros(1, *data.operator.domain_shape, dtype=y.dtype)  # type: ignore[misc]
    return LBFGS()(energy, start, ACCURACY).x


def test_dead_columns_weigh_nothing_in_prediction(scans: SinogramDataModule, tmp_path: Path) -> None:
    module = _module()
    found = _trainer(tmp_path).predict(module, datamodule=scans)
    assert found is not None
    for batch, made, column in zip(scans.predict_dataloader(), found, (*DEAD, None), strict=True):
        assert (batch.y < 11 / scans.mu_unit).all()  # interpolated
        assert hasattr(batch, "weights") == (column is not None)
        assert float((made.x - _expected(scans, batch.y, column)).norm()) <= 2 * ACCURACY  # type: ignore[union-attr]
        if column is None:
            continue
        interpolated = _expected(scans, batch.y, None)
        assert float((made.x - interpolated).norm()) > 5 * ACCURACY  # type: ignore[union-attr]
        # what stands in for the dead pixel does not matter
        spoiled = batch.y.clone()
        spoiled[..., column] = 0.0
        again = module.reconstruct(spoiled, batch.weights).x
        assert float((made.x - again).norm()) <= 2 * ACCURACY  # type: ignore[union-attr]


def test_networks_see_interpolated_values(scans: SinogramDataModule, tmp_path: Path) -> None:
    """And start from filtered back-projection of them, whatever the weights."""
    torch.manual_seed(0)
    module = SupervisedModule(UNet(scales=2, channels=2))
    found = _trainer(tmp_path).predict(module, datamodule=scans)
    assert found is not None
    for batch, made in zip(scans.predict_dataloader(), found, strict=True):
        assert torch.equal(made.x, module.reconstruct(batch.y).x)  # type: ignore[union-attr]


# --- batches with weights of their own for each image ---------------------------------------------------------------


class _Batch(NamedTuple):
    x: Tensor
    y: Tensor
    weights: Tensor
    index: Tensor


class _Pictures(Dataset[_Batch]):
    def __init__(self, y: Tensor, x: Tensor, weights: Tensor) -> None:
        self.x, self.y, self.weights = x, y, weights

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> _Batch:
        return _Batch(self.x[index], self.y[index], self.weights[index], torch.tensor(index))


class _Smear(LinearOperator):
    """Means of neighbouring columns: data that mix pixels."""

    def __init__(self) -> None:
        super().__init__((1, 12, 12), (1, 12, 12), norm_bound=1.0)

    def _forward(self, x: Tensor) -> Tensor:
        return 0.5 * (x + x.roll(1, -1))

    def _adjoint(self, y: Tensor) -> Tensor:
        return 0.5 * (y + y.roll(-1, -1))


def _pictures() -> tuple[Tensor, Tensor, Tensor]:
    """x, y and weights of three pictures, whose dead columns differ."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.rand(3, 1, 3, 3, generator=generator, dtype=torch.float64)
    x = blocks.repeat_interleave(4, 2).repeat_interleave(4, 3)
    y = _Smear()(x) + 0.05 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    weights = torch.ones_like(y)
    for k, column in enumerate((2, 5)):
        weights[k, ..., column] = 0.0
    return x, y, weights


def test_every_image_has_its_own_weights() -> None:
    """Minimizers, losses and hypergradients of a batch are those of its images alone."""
    x, y, weights = _pictures()

    def objective(k: slice, chunk_size: int | None = None) -> BilevelObjective:
        # one image: weights for all images of its data, without the batch
        fidelity = WeightedSquaredL2(weights[k] if k == slice(None) else weights[k][0])
        return BilevelObjective(
            TotalVariation(-2.0, -3.0).double(), x[k], y[k], _Smear(), fidelity, 0.1, chunk_size=chunk_size
        )

    accuracy = Accuracy(1e-9, 1e-9)
    alone, images = [], []
    for k in range(3):
        problem = objective(slice(k, k + 1))
        found = problem.evaluate(accuracy)
        images.append(found.x)
        alone.append((found.value, problem.hypergradient(found, accuracy).z))
    for chunk_size in (None, 1, 2):
        together = objective(slice(None), chunk_size)
        found = together.evaluate(accuracy)
        torch.testing.assert_close(found.x, torch.cat(images), rtol=0, atol=1e-8)
        assert found.value == pytest.approx(sum(loss for loss, _ in alone) / 3, rel=1e-7)
        z = together.hypergradient(found, accuracy).z
        torch.testing.assert_close(z, torch.stack([z for _, z in alone]).mean(0), rtol=1e-6, atol=1e-9)
    part = objective(slice(None)).subset(torch.tensor([2, 0]))
    torch.testing.assert_close(part.evaluate(accuracy).x, torch.cat([images[2], images[0]]), rtol=0, atol=1e-8)


def test_training_and_test_do_not_see_what_weighs_nothing(tmp_path: Path) -> None:
    """Whatever dead columns hold, the same parameters are learned; without weights, others are."""
    x, y, weights = _pictures()
    spoiled = torch.where(weights > 0, y, 3.0)
    learned, quality = [], []
    for data, w in ((y, weights), (spoiled, weights), (spoiled, torch.ones_like(weights))):
        module = _module(operator=_Smear(), chunk_size=2)
        loader = DataLoader(_Pictures(data, x, w), batch_size=3)
        trainer = _trainer(tmp_path, epochs=3)
        trainer.fit(module, loader, loader)
        assert trainer.global_step == 3
        trainer.test(module, loader, verbose=False)
        learned.append(torch.cat([p.detach().flatten() for p in module.regularizer.parameters()]))
        quality.append(float(trainer.callback_metrics["test_psnr"]))
    torch.testing.assert_close(learned[0], learned[1], rtol=1e-3, atol=1e-4)
    assert quality[0] == pytest.approx(quality[1], abs=0.01)
    assert float((learned[0] - learned[2]).abs().max()) > 0.01
    assert quality[0] > quality[2] + 1


def test_saddle_points_with_weights() -> None:
    """As the same model with the rows of the operator removed."""
    _, y, weights = _pictures()
    model = LearnedTV().double()
    model.image_convexity = 0.1
    module = SaddleModule(model, operator=_Smear(), reconstruction_accuracy=1e-5)
    found = module.reconstruct(torch.where(weights > 0, y, 3.0), weights)
    for k in range(3):
        kept = Mask(weights[k] > 0)

        class _Kept(_Smear):
            def _forward(self, x: Tensor, kept: Mask = kept) -> Tensor:
                return kept(super()._forward(x))

            def _adjoint(self, y: Tensor, kept: Mask = kept) -> Tensor:
                return super()._adjoint(kept(y))

        other = LearnedTV().double()
        other.image_convexity = 0.1
        by_hand = SaddleModule(other, operator=_Kept(), reconstruction_accuracy=1e-5).reconstruct(kept(y[k : k + 1]))
        assert float((found.x[k] - by_hand.x[0]).norm()) <= 3e-5
    assert float((module.reconstruct(y).x - found.x).norm()) > 1e-3  # all of them are measured again


def test_weights_that_nothing_is_made_of_are_refused() -> None:
    x, y, weights = _pictures()
    with pytest.raises(ValueError, match="KullbackLeibler knows no weights"):
        _module(operator=_Smear(), fidelity=KullbackLeibler(0.1)).reconstruct(y, weights)
    with pytest.raises(ValueError, match="weights have the shape"):
        _module(operator=_Smear()).reconstruct(y, weights[:2])
    for module in (AdversarialModule(TotalVariation(-2.0, -3.0)), SaddleModule(LearnedTV(), operator=_Smear())):
        module._weights = weights
        with pytest.raises(ValueError, match="knows no weights"):
            module._objective(x, y)
