"""Simulated and measured k-space, and training and reconstruction with it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jsonargparse
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from datasets import DataError, KSpaceDataModule, MRIDataModule, read_kspace
from datasets.modules.mri import ComplexImages, read_mask
from models import FieldsOfExperts, TotalVariation
from models.training.bilevel import BilevelModule
from recon.operators import CartesianMRI, channels_to_complex, complex_to_channels, magnitude, simulated_sensitivities
from recon.operators.mri.cartesian import centred_fft
from recon.operators.mri.sampling import poisson_disc
from tests.trainers import quiet_trainer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures of 16x16 pixels, piecewise constant."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for name in "abcd":
        pixels = np.kron(rng.integers(0, 256, (4, 4), dtype=np.uint8), np.ones((4, 4), dtype=np.uint8))
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{name}.png")
    return tmp_path / "pictures"


def module(folder: Path, **options: Any) -> MRIDataModule:
    return MRIDataModule(**({"train": str(folder), "size": 16, "limit": 3, "val": "rest", "test": "rest"} | options))


@pytest.mark.parametrize("coils", [1, 3])
def test_data_are_samples_and_noise(folder: Path, coils: int) -> None:
    data = module(folder, coils=coils, sigma=0.05, phase=1.0, pattern="poisson_disc", acceleration=2.0)
    x, y = data.train_tensors()
    mask = data.operator.mask
    assert x.shape == (3, 2, 16, 16)
    assert y.shape == (3, coils, 2, 16, 16)
    assert isinstance(data.operator, CartesianMRI)
    assert data.operator.acceleration == pytest.approx(2.0)
    noise = y - data.operator(x)
    assert torch.equal(noise == 0, (~mask).expand_as(noise))
    assert noise[..., mask].std().item() == pytest.approx(0.05, rel=0.05)
    # real and imaginary part, coils and pictures have noise of their own
    flat = noise[..., mask].reshape(3 * coils * 2, -1)
    assert (torch.corrcoef(flat) - torch.eye(len(flat), dtype=torch.float64)).abs().max() < 0.35
    (batch,) = data.train_dataloader()
    torch.testing.assert_close(batch.y, y, rtol=0, atol=0)


def test_phase_is_smooth_bounded_and_leaves_the_magnitude(folder: Path) -> None:
    plain = module(folder).train_tensors()[0]
    turned = module(folder, phase=0.5).train_tensors()[0]
    assert not plain[:, 1].any()
    torch.testing.assert_close(magnitude(turned), plain[:, :1].abs(), rtol=0, atol=1e-12)
    phase = channels_to_complex(turned).angle()[plain[:, 0] > 0.05]
    assert float(phase.abs().max()) <= 0.5 + 1e-12
    assert float(phase.abs().max()) > 0.25
    ones = channels_to_complex(ComplexImages(torch.ones(2, 1, 40, 50), 1.5, seed=3)[1]).angle()
    assert float(ones.abs().max()) == pytest.approx(1.5)
    assert float(ones.diff(dim=0).abs().max()) < 0.3
    assert not torch.equal(turned[0, 1], turned[1, 1])


def test_same_data_in_every_run_type_and_number(folder: Path) -> None:
    x, y = module(folder, phase=1.0).train_tensors()
    again = module(folder, phase=1.0, limit=2, dtype="float32")
    few = again.train_tensors()
    assert few[1].dtype == torch.float32
    torch.testing.assert_close(few[0].double(), x[:2], rtol=0, atol=1e-6)
    torch.testing.assert_close(few[1].double(), y[:2], rtol=0, atol=1e-5)
    other = module(folder, phase=1.0, seed=1)
    assert not torch.equal(other.operator.mask, again.operator.mask)
    (validation,) = module(folder).val_dataloader()
    assert validation.y.shape == (1, 1, 2, 16, 16)
    for measured, sample in zip(module(folder).predict_dataloader(), module(folder).test_dataloader(), strict=True):
        torch.testing.assert_close(measured.y, sample.y, rtol=0, atol=0)


def test_mask_file(folder: Path, tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((16, 16)) < 0.4
    for name, array in (("bool", mask), ("int", mask.astype(np.int32))):
        np.save(tmp_path / f"{name}.npy", array)
        data = module(folder, mask_file=str(tmp_path / f"{name}.npy"))
        np.testing.assert_array_equal(data.operator.mask.numpy(), mask)
    np.save(tmp_path / "float.npy", mask * 0.5)
    (tmp_path / "text.npy").write_text("mask")
    for name, message in (("float", "booleans"), ("text", "cannot be read"), ("none", "no such file")):
        with pytest.raises(DataError, match=rf"{name}\.npy: .*{message}"):
            module(folder, mask_file=str(tmp_path / f"{name}.npy"))
    with pytest.raises(DataError, match=r"shape \(16, 16\); the mask of pictures of 8x9 pixels"):
        read_mask(tmp_path / "bool.npy", (8, 9))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coils": 0}, "coils is 0"),
        ({"phase": -1.0}, "phase is -1.0"),
        ({"phase": math.inf}, "phase is inf"),
        ({"pattern": "spiral"}, "random_lines, equispaced, radial, poisson_disc"),
        ({"acceleration": 0.5}, "acceleration is 0.5"),
        ({"calibration": 17}, "calibration is 17"),
        ({"sigma": -1.0}, "sigma is -1.0"),
        ({"crop_size": 8}, "exclude each other"),
        ({"dtype": "float16"}, "float32, float64"),
    ],
)
def test_values_out_of_range(folder: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(folder, **arguments)
    with pytest.raises(DataError, match=r"gray pictures"):
        ComplexImages(torch.zeros(1, 3, 4, 4))[0]


def test_command_line_can_make_it(folder: Path) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(MRIDataModule, "data")
    config = parser.parse_args(["--data=MRIDataModule", f"--data.train={folder}", "--data.crop_size=8"])
    assert parser.instantiate(config).data.train_tensors()[0].shape == (4, 2, 8, 8)
    with pytest.raises(jsonargparse.ArgumentError, match="pattern"):
        parser.parse_args(["--data=MRIDataModule", "--data.pattern=spiral"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("coils", [1, 2])
@pytest.mark.parametrize("name", ["tv", "foe"])
def test_a_regularizer_is_learned(folder: Path, tmp_path: Path, dtype: str, coils: int, name: str) -> None:
    data = module(folder, dtype=dtype, coils=coils, phase=0.5, sigma=0.02, acceleration=2.0)
    regularizer = TotalVariation(-6.0, -4.0) if name == "tv" else FieldsOfExperts(filters=3, size=3)
    model = BilevelModule(regularizer, mu=1e-2, reconstruction_accuracy=0.05)
    losses: list[float] = []
    quiet_trainer(tmp_path, epochs=3, callbacks=[Losses(losses)], limit_val_batches=0).fit(model, datamodule=data)
    assert isinstance(model.operator, CartesianMRI)
    assert len(losses) == 3
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("coils", [1, 2])
def test_reconstruction_is_certified_and_better_than_zero_filling(folder: Path, tmp_path: Path, coils: int) -> None:
    data = module(folder, coils=coils, phase=0.5, sigma=0.02, acceleration=2.0)
    model = BilevelModule(TotalVariation(-5.0, -5.0), mu=1e-2, reconstruction_accuracy=0.05)
    validating = quiet_trainer(tmp_path)
    validating.validate(model, datamodule=data, verbose=False)
    assert float(validating.callback_metrics["val_error"]) <= 0.05
    (result,) = quiet_trainer(tmp_path).predict(model, datamodule=data)
    sample = next(iter(data.test_dataloader()))
    start = data.operator.adjoint(sample.y)
    assert result.x.shape == sample.x.shape
    assert float((result.x - sample.x).norm()) < float((start - sample.x).norm())


class Losses(pl.Callback):
    def __init__(self, losses: list[float]) -> None:
        self.losses = losses

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.losses.append(pl_module.record.loss)


# --- measured k-space ------------------------------------------------------------------------------------------------


def measured(path: Path, coils: int = 4, scale: float = 300.0) -> np.ndarray:
    """K-space of an ellipse on a file: scaled, undersampled, with a full centre."""
    shape = (32, 29)
    i, j = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape)
    image = ((i[:, None] / 0.8).square() + (j / 0.6).square() <= 1).double() * (0.7 + 0.3 * i[:, None])
    kspace = scale * centred_fft(simulated_sensitivities(coils, shape) * image) * poisson_disc(shape, 2.0, 14)
    array = kspace.numpy().astype(np.complex64)
    np.save(path, array if coils > 1 else array[0])
    return array


@pytest.mark.parametrize("coils", [1, 4])
def test_measured_kspace_brings_its_operator_and_scale(tmp_path: Path, coils: int) -> None:
    array = measured(tmp_path / "k.npy", coils)
    data = KSpaceDataModule(str(tmp_path / "k.npy"))
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert batch.y.shape == (1, coils, 2, 32, 29)
    np.testing.assert_allclose((channels_to_complex(batch.y[0]) * data.scale).numpy(), array, rtol=1e-12)
    np.testing.assert_array_equal(data.operator.mask.numpy(), array[0] != 0)
    assert data.operator.range_shape == (coils, 2, 32, 29)
    assert 150 < data.scale < 450
    assert KSpaceDataModule(str(tmp_path / "k.npy"), scale=2.0).measurement().max() * 2 == pytest.approx(
        float(complex_to_channels(torch.from_numpy(array)).max())
    )
    assert data.names() == [str(tmp_path / "k.npy")]


@pytest.mark.parametrize("coils", [1, 4])
def test_measured_kspace_is_reconstructed(tmp_path: Path, coils: int) -> None:
    measured(tmp_path / "k.npy", coils)
    data = KSpaceDataModule(str(tmp_path / "k.npy"))
    model = BilevelModule(TotalVariation(-6.0, -5.0), mu=1e-3)
    (result,) = quiet_trainer(tmp_path).predict(model, datamodule=data)
    assert result.x.shape == (1, 2, 32, 29)
    image = magnitude(result.x)[0, 0]
    assert float(image[8:24, 10:19].min()) > 0.3
    assert float(image[:3].max()) < 0.15


def test_fastmri_files_are_kspace_too(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    array = measured(tmp_path / "k.npy")
    columns = np.arange(29) % 3 != 0
    with h5py.File(tmp_path / "k.h5", "w") as file:
        file["kspace"] = np.stack([0 * array, array])
        file["mask"] = columns.astype(np.float32)
    kspace = read_kspace(tmp_path / "k.h5", 1)
    np.testing.assert_array_equal(kspace.numpy(), array * columns)
    assert KSpaceDataModule(str(tmp_path / "k.h5"), slice_index=1).measurement().shape == (4, 2, 32, 29)
    with pytest.raises(DataError, match="only zeros"):
        read_kspace(tmp_path / "k.h5", 0)
    with pytest.raises(DataError, match="no slice 1"):
        read_kspace(tmp_path / "k.npy", 1)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((4, 8, 8)), "values of type float64; k-space is"),
        (np.ones(8, dtype=complex), r"shape \(8,\); valid are"),
        (np.full((2, 8, 8), np.nan + 0j), "128 of 128 values are NaN"),
        (np.zeros((2, 8, 8), dtype=complex), "only zeros"),
    ],
)
def test_kspace_that_is_no_good(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "bad.npy", array)
    with pytest.raises(DataError, match=rf"bad\.npy: .*{message}"):
        KSpaceDataModule(str(tmp_path / "bad.npy")).setup("predict")


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    measured(tmp_path / "k.npy")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "k.npy").read_bytes()[:500])
    for name, message in (("cut.npy", "truncated"), ("nowhere.npy", "no such file"), ("k.mat", "valid are .npy")):
        with pytest.raises(DataError, match=rf"{name}: .*{message}"):
            read_kspace(tmp_path / name)
    array = np.load(tmp_path / "k.npy")
    array[:, 16, 14] = 0
    np.save(tmp_path / "hole.npy", array)
    with pytest.raises(DataError, match=r"hole\.npy: the fully sampled centre of k-space has 0x0 points"):
        KSpaceDataModule(str(tmp_path / "hole.npy")).setup("predict")
    with pytest.raises(ValueError, match="prediction only"):
        KSpaceDataModule(str(tmp_path / "k.npy")).setup("fit")
    for arguments, text in (({"scale": 0.0}, "scale is 0.0"), ({"dtype": "int"}, "float32, float64")):
        with pytest.raises(ValueError, match=text):
            KSpaceDataModule("k.npy", **arguments)  # type: ignore[arg-type]


def test_measured_brain(shared_data: Path) -> None:
    file = shared_data / "mri_kspace_8ch" / "cartesian_ksp.npy"
    if not file.is_file():
        pytest.skip(f"real data: no file {file}")
    data = KSpaceDataModule(str(file), dtype="float32")
    data.setup("predict")
    assert data.scale == pytest.approx(1.0, abs=1e-3)
    assert data.operator.range_shape == (8, 2, 230, 180)
    assert next(iter(data.predict_dataloader())).y.dtype == torch.float32
