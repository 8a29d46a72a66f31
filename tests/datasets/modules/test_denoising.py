"""Measurements and the LightningDataModule that serves them."""

from __future__ import annotations

from pathlib import Path

import jsonargparse
import numpy as np
import pytest
import torch
from PIL import Image

from datasets import DataError, DenoisingDataModule, Measurement, MeasurementDataset, PatchPictures, Sample
from datasets.noise import gaussian_noise


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures of 24x20 pixels and random gray values."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for name in "abcde":
        Image.fromarray(rng.integers(0, 256, (24, 20), dtype=np.uint8)).save(tmp_path / "pictures" / f"{name}.png")
    return tmp_path / "pictures"


class Halved(torch.nn.Module):
    """A x: the mean of neighbouring columns."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(x, (1, 2))


def test_measurements_are_operator_plus_noise() -> None:
    images = torch.rand(3, 1, 6, 8, dtype=torch.float64)
    dataset = MeasurementDataset(images, 0.1, seed=4, operator=Halved())
    sample = dataset[2]
    assert isinstance(sample, Sample)
    torch.testing.assert_close(sample.x, images[2])
    expected = Halved()(images[2:3])[0] + gaussian_noise((1, 6, 4), 0.1, 4, 2)
    torch.testing.assert_close(sample.y, expected)
    assert sample.index == 2
    assert len(list(dataset)) == 3
    with pytest.raises(IndexError):
        dataset[3]


def test_training_set_is_one_batch(folder: Path) -> None:
    data = DenoisingDataModule(train=str(folder), sigma=0.2, limit=4)
    data.setup("fit")
    x, y = data.train_tensors()
    assert x.shape == y.shape == (4, 1, 24, 20)
    assert x.dtype == y.dtype == torch.float64
    assert (y - x).std().item() == pytest.approx(0.2, rel=0.1)
    (batch,) = data.train_dataloader()
    torch.testing.assert_close(batch.x, x, rtol=0, atol=0)
    torch.testing.assert_close(batch.y, y, rtol=0, atol=0)
    assert batch.index.tolist() == [0, 1, 2, 3]


def test_noise_depends_on_neither_batch_nor_number_nor_type(folder: Path) -> None:
    x, y = DenoisingDataModule(train=str(folder)).train_tensors()
    data = DenoisingDataModule(train=str(folder), limit=3, dtype="float32", batch_size=2)
    batches = list(data.train_dataloader())
    assert [len(batch.y) for batch in batches] == [2, 1]
    few = torch.cat([batch.y for batch in batches])
    assert few.dtype == torch.float32
    torch.testing.assert_close(few.double(), y[:3], rtol=0, atol=2e-7)
    other_seed = DenoisingDataModule(train=str(folder), seed=1).train_tensors()
    torch.testing.assert_close(other_seed[0], x, rtol=0, atol=0)
    assert (other_seed[1] - y).abs().min() > 0


def test_patches_are_reproducible_and_measured_after_the_cut(folder: Path) -> None:
    arguments = {"train": str(folder), "patch_size": 8, "n_patches": 12, "seed": 5}
    x, y = DenoisingDataModule(**arguments, operator=Halved()).train_tensors()
    assert x.shape == (12, 1, 8, 8)
    assert y.shape == (12, 1, 8, 4)
    again = DenoisingDataModule(**arguments).train_tensors()
    torch.testing.assert_close(again[0], x, rtol=0, atol=0)
    assert len(DenoisingDataModule(train=str(folder), patch_size=8).train_tensors()[0]) == 5


def test_builtin_data_need_no_argument() -> None:
    data = DenoisingDataModule(limit=2)
    data.setup("fit")
    assert data.train_tensors()[0].shape == (2, 1, 256, 256)
    assert not set(data.names("val")) & set(data.names("test"))
    small = DenoisingDataModule(size=32, eval_batch_size=8)
    (validation,) = small.val_dataloader()
    assert validation.x.shape == (2, 1, 32, 32)
    # Training and validation have independent noise, also for the same index.
    x, y = small.train_tensors()
    noise, other = (y - x)[0].flatten(), (validation.y - validation.x)[0].flatten()
    assert torch.corrcoef(torch.stack([noise, other]))[0, 1].abs() < 0.15


def test_rest_of_the_training_pictures_validates(folder: Path) -> None:
    data = DenoisingDataModule(train=str(folder), limit=3, val="rest", test="rest", eval_batch_size=4)
    assert [Path(name).name for name in data.names("val")] == ["d.png", "e.png"]
    (batch,) = data.val_dataloader()
    everything = DenoisingDataModule(train=str(folder)).train_tensors()[0]
    torch.testing.assert_close(batch.x, everything[3:])
    with pytest.raises(ValueError, match="set limit"):
        DenoisingDataModule(train=str(folder), val="rest")
    data = DenoisingDataModule(train=str(folder), limit=5, test="rest")
    with pytest.raises(DataError, match="no picture is left for test after the first 5"):
        data.setup("test")


def test_pictures_of_different_sizes_are_served_one_by_one(folder: Path) -> None:
    Image.fromarray(np.zeros((9, 30), dtype=np.uint8)).save(folder / "f.png")
    data = DenoisingDataModule(test=str(folder), eval_batch_size=3)
    data.setup("test")
    assert [tuple(batch.x.shape[2:]) for batch in data.test_dataloader()] == [(24, 20)] * 5 + [(9, 30)]
    with pytest.raises(
        DataError, match=r"a\.png has 24x20 pixels, .*f\.png has 9x30 pixels; set patch_size or crop_size"
    ):
        DenoisingDataModule(train=str(folder)).setup("fit")
    with pytest.raises(DataError, match=r"f\.png: the picture has 9x30"):
        DenoisingDataModule(train=str(folder), patch_size=10, n_patches=6).setup("fit")


def test_prediction_takes_measured_pictures_as_they_are(folder: Path, tmp_path: Path) -> None:
    noisy = np.random.default_rng(1).normal(size=(7, 9))
    np.save(tmp_path / "noisy.npy", noisy)
    data = DenoisingDataModule(predict=str(tmp_path / "noisy.npy"), size=4)
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert isinstance(batch, Measurement)
    np.testing.assert_array_equal(batch.y[0, 0].numpy(), noisy)
    assert data.names("predict") == [str(tmp_path / "noisy.npy")]

    simulated = DenoisingDataModule(test=str(folder))
    for measured, sample in zip(simulated.predict_dataloader(), simulated.test_dataloader(), strict=True):
        torch.testing.assert_close(measured.y, sample.y, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": -1.0}, "sigma is -1.0"),
        ({"sigma": float("nan")}, "sigma is nan"),
        ({"size": 0}, "size is 0"),
        ({"crop_size": -3}, "crop_size is -3"),
        ({"size": 3, "crop_size": 3}, "exclude each other"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"patch_size": 8, "n_patches": 0}, "n_patches is 0"),
        ({"n_patches": 4}, "patch_size is not set"),
        ({"limit": 0}, "limit is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"eval_batch_size": 0}, "eval_batch_size is 0"),
        ({"seed": -1}, "seed and index"),
        ({"dtype": "float16"}, "float32, float64"),
    ],
)
def test_values_out_of_range(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenoisingDataModule(**arguments)


def test_missing_and_broken_data_are_named(folder: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        DenoisingDataModule(train=str(folder / "nowhere")).setup("fit")
    (folder / "c.png").write_bytes((folder / "c.png").read_bytes()[:200])
    with pytest.raises(DataError, match=r"c\.png: cannot be read"):
        DenoisingDataModule(train=str(folder)).setup("fit")


def test_command_line_can_make_it(folder: Path) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DenoisingDataModule, "data")
    config = parser.parse_args(
        ["--data=DenoisingDataModule", f"--data.train={folder}", "--data.limit=2", "--data.operator=torch.nn.Identity"]
    )
    data = parser.instantiate(config).data
    assert data.train_tensors()[0].shape == (2, 1, 24, 20)
    with pytest.raises(jsonargparse.ArgumentError, match="dtype"):
        parser.parse_args(["--data=DenoisingDataModule", "--data.dtype=float16"])


def test_real_photographs(shared_data: Path) -> None:
    data = DenoisingDataModule(train=str(shared_data / "bsd_train400"), patch_size=64, n_patches=96)
    x, y = data.train_tensors()
    assert x.shape == y.shape == (96, 1, 64, 64)


@pytest.mark.parametrize("sizes", [{"size": 20}, {"crop_size": 16}, {"patch_size": 8, "n_patches": 5}])
def test_pictures_in_colour(tmp_path: Path, sizes: dict[str, int]) -> None:
    """Each channel has its own noise, and the same seed gives the same in gray."""
    rng = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    pictures = PatchPictures(colour=True, **sizes)
    data = DenoisingDataModule(str(tmp_path), str(tmp_path), str(tmp_path), str(tmp_path), sigma=0.1, pictures=pictures)
    x, y = data.train_tensors()
    assert x.shape[1] == 3
    noise = (y - x).flatten(2)
    assert float(noise[:, 0].sub(noise[:, 1]).abs().min()) > 0
    assert float(noise.std()) == pytest.approx(0.1, rel=0.2)
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert next(iter(loader)).x.shape[1] == 3
    assert next(iter(data.predict_dataloader())).y.shape == (1, 3, 24, 20)
    assert data.description()["colour"] is True
    Image.fromarray(rng.integers(0, 256, (24, 20), dtype=np.uint8)).save(tmp_path / "c.png")
    gray = DenoisingDataModule(str(tmp_path), sigma=0.1, pictures=pictures)
    with pytest.raises(DataError, match=r"c\.png: a gray picture among those in colour"):
        gray.train_tensors()
