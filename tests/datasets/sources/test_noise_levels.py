"""Data whose pictures have noise levels of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datasets import DenoisingDataModule, MeasurementDataset, Sample
from datasets.modules.groups import Batches, PatchPictures
from datasets.noise import check_levels, gaussian_noise
from datasets.sources.measurements import LevelMeasurement, LevelSample

RANGE = (0.05, 0.2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures of 24x20 pixels and random gray values."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for name in "abcde":
        Image.fromarray(rng.integers(0, 256, (24, 20), dtype=np.uint8)).save(tmp_path / "pictures" / f"{name}.png")
    return tmp_path / "pictures"


def dataset(count: int = 400, seed: int = 3, side: int = 4) -> MeasurementDataset:
    return MeasurementDataset(torch.zeros(count, 1, side, side, dtype=torch.float64), RANGE, seed)


def test_levels_fill_the_range() -> None:
    """Uniformly: mean, spread, and the distance of the empirical distribution (Kolmogorov and Smirnov, 1e-6)."""
    levels = np.sort([dataset().level(i) for i in range(400)])
    assert RANGE[0] <= levels[0] < levels[-1] <= RANGE[1]
    shares = (levels - RANGE[0]) / (RANGE[1] - RANGE[0])
    assert np.abs(shares - (np.arange(400) + 0.5) / 400).max() < 2.7 / 20
    assert len(set(levels)) == 400
    assert (
        abs(np.corrcoef([dataset().level(i) for i in range(399)], [dataset().level(i + 1) for i in range(399)])[0, 1])
        < 0.2
    )


def test_levels_depend_on_seed_and_index_alone() -> None:
    levels = [dataset().level(i) for i in range(8)]
    few = dataset(count=8, side=9)
    assert [few.level(i) for i in reversed(range(8))] == levels[::-1]
    assert [few[i].sigma for i in (3, 0, 3)] == [levels[3], levels[0], levels[3]]  # type: ignore[union-attr]
    other = dataset(seed=4)
    assert all(other.level(i) != levels[i] for i in range(8))


def test_the_noise_is_that_of_the_level_and_independent_of_it() -> None:
    """Of unit variance once divided by the level, and the same noise as with a known one."""
    samples, normalized = dataset(count=40, side=32), []
    for index in range(40):
        sample = samples[index]
        assert isinstance(sample, LevelSample)
        assert sample.sigma == samples.level(index)
        assert sample.index == index
        assert float(sample.y.std()) == pytest.approx(sample.sigma, rel=0.12)
        torch.testing.assert_close(sample.y, gaussian_noise((1, 32, 32), sample.sigma, 3, index), rtol=0, atol=0)
        normalized.append(sample.y / sample.sigma)
    noise = torch.stack(normalized)
    assert float(noise.std()) == pytest.approx(1.0, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.02)
    levels = torch.tensor([samples.level(i) for i in range(40)])
    assert abs(float(torch.corrcoef(torch.stack([levels, noise.flatten(1).mean(1).float()]))[0, 1])) < 0.5


def test_one_level_stays_a_sample_without() -> None:
    images = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    sample = MeasurementDataset(images, 0.1, 0)[1]
    assert type(sample) is Sample
    assert MeasurementDataset(images, 0.1, 0).level(1) == 0.1
    assert DenoisingDataModule(pictures=PatchPictures(limit=2, size=16)).train_levels() is None


def test_batches_hold_levels(folder: Path) -> None:
    data = DenoisingDataModule(
        train=str(folder), val=str(folder), test=str(folder), sigma=RANGE, batches=Batches(eval_batch_size=2)
    )
    for stage in ("fit", "test", "predict"):
        data.setup(stage)
    (batch,) = data.train_dataloader()
    levels = data.train_levels()
    assert levels is not None
    assert levels.dtype == batch.sigma.dtype == torch.float64
    assert torch.equal(batch.sigma, levels)
    assert batch._fields == ("x", "y", "index", "sigma")
    assert len(set(levels.tolist())) == 5
    for i in range(5):
        assert float((batch.y - batch.x)[i].std()) == pytest.approx(float(levels[i]), rel=0.15)
    found = {}
    for name, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        batches = list(loader)
        assert [len(b.x) for b in batches] == [2, 2, 1]
        found[name] = torch.cat([b.sigma for b in batches])
        for b in batches:
            for i in range(len(b.x)):
                assert float((b.y - b.x)[i].std()) == pytest.approx(float(b.sigma[i]), rel=0.15)
    predicted = list(data.predict_dataloader())
    assert all(b._fields == ("y", "index", "sigma") for b in predicted)
    assert torch.equal(torch.cat([b.sigma for b in predicted]), found["test"])
    assert not set(found["val"].tolist()) & set(found["test"].tolist())
    assert not set(found["val"].tolist()) & set(levels.tolist())


def test_levels_depend_on_neither_batches_nor_numbers_nor_type(folder: Path) -> None:
    def levels(**options: object) -> list[float]:
        data = DenoisingDataModule(train=str(folder), sigma=RANGE, **options)  # type: ignore[arg-type]
        return torch.cat([batch.sigma for batch in data.train_dataloader()]).tolist()

    expected = levels()
    assert levels(dtype="float32", batches=Batches(batch_size=2)) == expected
    assert levels(pictures=PatchPictures(limit=3)) == expected[:3]
    patches = levels(pictures=PatchPictures(patch_size=8, n_patches=12))
    assert patches[:5] == expected
    assert levels(pictures=PatchPictures(patch_size=8, n_patches=7)) == patches[:7]
    assert levels(seed=1) != expected


def test_measured_pictures_have_no_level(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "noisy.npy", np.zeros((7, 9)))
    data = DenoisingDataModule(predict=str(tmp_path / "noisy.npy"), sigma=RANGE)
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert not hasattr(batch, "sigma")


def test_measurements_without_pictures_have_levels() -> None:
    data = DenoisingDataModule(test="builtin", sigma=RANGE, pictures=PatchPictures(size=16))
    (batch, *_) = data.predict_dataloader()
    assert isinstance(batch, LevelMeasurement)
    assert RANGE[0] <= float(batch.sigma[0]) <= RANGE[1]


def test_loaders_collate_them() -> None:
    batch = next(iter(DataLoader(dataset(count=4), batch_size=3)))
    assert isinstance(batch, LevelSample)
    assert batch.sigma.tolist() == [dataset().level(i) for i in range(3)]


@pytest.mark.parametrize(
    ("sigma", "message"),
    [
        ((0.2, 0.1), r"sigma is \[0\.2, 0\.1\]; a range of noise levels is two numbers, the smaller one first"),
        ((0.1, 0.1), r"sigma is \[0\.1, 0\.1\]; a range"),
        ((0.1,), r"sigma is \[0\.1\]; a range of noise levels is two numbers"),
        ((0.1, 0.2, 0.3), "two numbers"),
        ((), "two numbers"),
        ((0.1, float("nan")), "sigma is nan"),
        ((-0.1, 0.2), "sigma is -0.1"),
        ((0.1, float("inf")), "sigma is inf"),
        (float("nan"), "sigma is nan"),
    ],
)
def test_what_is_no_range_is_refused(sigma: tuple[float, ...], message: str) -> None:
    for make in (check_levels, lambda sigma: DenoisingDataModule(sigma=sigma)):
        with pytest.raises(ValueError, match=message):
            make(sigma)  # type: ignore[arg-type]


def test_ranges_are_tuples_whatever_they_were() -> None:
    assert check_levels([0.0, 0.2]) == (0.0, 0.2)  # type: ignore[arg-type]
    assert check_levels(0.1) == 0.1
    data = DenoisingDataModule(sigma=[0.1, 0.2])  # type: ignore[arg-type]
    assert data.sigma == (0.1, 0.2)
    assert data.noise() == {"kind": "gaussian", "sigma": [0.1, 0.2]}
    assert data.noise() != DenoisingDataModule(sigma=0.1).noise()
