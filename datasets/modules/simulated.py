"""What the data of all experiments have in common whose measurements are simulated from pictures."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Literal

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from datasets.errors import DataError
from datasets.modules.groups import Batches, Pictures, Precision, torch_dtype
from datasets.noise import derive_seed, keyed_generator
from datasets.sources.images import (
    BuiltinImages,
    ColourFolder,
    ImageFolder,
    Images,
    ImageSource,
    PatientSource,
    Split,
    stack_images,
)
from datasets.sources.measurements import (
    Measurement,
    MeasurementDataset,
    Sample,
    SimulatedMeasurements,
    StackedSamples,
    stack_samples,
)
from recon.names import public_name

BUILTIN = "builtin"
REST = "rest"

# Parts of an experiment that draw random numbers, each from a seed of its own.
_STREAMS = {"train": 0, "val": 1, "test": 2, "patches": 3}


class SimulatedDataModule(pl.LightningDataModule, ABC):
    """Pictures x with measurements y = A x + noise, for training with the whole training set at once.

    Training pictures are stacked into one batch, so they need one size. Where the sizes of pictures for validation and
    test differ, they are served one by one. Subclasses say what the measurements are (``_samples`` and ``noise``) and
    where else pictures come from (``_source``).

    Parameters
    ----------
    train, val, test : str, optional
        Where the pictures are, see ``DenoisingDataModule``.
    pictures : Pictures
        Which of them, and of what size.
    seed : int
        Of everything random, at least 0.
    dtype : {"float32", "float64"}
        Both see the same noise.
    batches : Batches
        How many pictures are served at once.

    Raises
    ------
    ValueError
        An argument is out of its range.
    DataError
        (a ValueError) later, as ``DenoisingDataModule``.
    """

    #: A, which made the measurements; None is the identity
    operator: torch.nn.Module | None

    def __init__(
        self,
        train: str,
        val: str | None,
        test: str | None,
        pictures: Pictures,
        seed: int,
        dtype: Precision,
        batches: Batches,
    ) -> None:
        super().__init__()
        if REST in (val, test) and pictures.limit is None:
            raise ValueError(f"val or test is {REST!r}, the training pictures after the first `limit`: set limit")
        keyed_generator(seed)  # for its check
        self.train, self.val, self.test = train, val, test
        self.pictures, self.seed, self.batches = pictures, seed, batches
        self.dtype = torch_dtype(dtype)

    def setup(self, stage: str) -> None:
        """Find, and for training read, the data of the stage, so that errors come before the first computation."""
        if stage == "fit":
            self.train_tensors()
        if stage in ("fit", "validate"):
            _ = self._val_samples
        if stage == "test":
            _ = self._test_samples
        if stage == "predict":
            _ = self._predict_measurements

    def train_tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The whole training set: x of shape (N, C, H, W) and y of shape (N, *range_shape)."""
        return self._train_tensors

    def train_levels(self) -> torch.Tensor | None:
        """Standard deviations of the noise of the training set, (N,) in float64, where every picture has its own."""
        samples = self._train_samples
        if not isinstance(samples.sigma, tuple):
            return None
        return torch.tensor([samples.level(index) for index in range(len(samples))], dtype=torch.float64)

    def train_dataloader(self) -> DataLoader[Sample]:
        """Batches of ``Sample`` in a fixed order, as certified descent needs a deterministic objective."""
        samples = StackedSamples(*self._train_tensors, self.train_levels())
        return DataLoader(samples, batch_size=self.batches.batch_size or len(samples))

    def val_dataloader(self) -> DataLoader[Sample]:
        """Batches of ``Sample`` with pictures for validation."""
        return DataLoader(self._val_samples, batch_size=self._eval_batch_size(self._val_samples.images))

    def test_dataloader(self) -> DataLoader[Sample]:
        """Batches of ``Sample`` with pictures for the test."""
        return DataLoader(self._test_samples, batch_size=self._eval_batch_size(self._test_samples.images))

    def predict_dataloader(self) -> DataLoader[Measurement]:
        """Batches of ``Measurement``."""
        return DataLoader(self._predict_measurements, batch_size=self._eval_batch_size(self._predict_source))

    def names(self, stage: Literal["val", "test", "predict"]) -> list[str]:
        """Files or names of the pictures in the order of the stage's data; ``index`` of a batch points into them."""
        if stage == "predict":
            return list(self._predict_source.names)
        return list((self._val_source if stage == "val" else self._test_source).names)

    @property
    def knows_patients(self) -> bool:
        """Whether the training pictures belong to patients."""
        return isinstance(self._source(self.train, "train"), PatientSource)

    def shared_with_test(self, part: Literal["train", "val"]) -> list[str]:
        """Patients of ``part`` that are in the test data, too, where patients are known; else such pictures.

        Pictures are the same if all their values are. A comparison on such test data says nothing.
        """
        source = self._val_source if part == "val" else self._train_source()
        if isinstance(source, PatientSource) and isinstance(self._test_source, PatientSource):
            return sorted(set(source.patients) & set(self._test_source.patients))
        tested = set(_contents(self._test_source))
        return [name for name, content in zip(source.names, _contents(source), strict=True) if content in tested]

    def fingerprints(self, part: Literal["train", "test"]) -> list[str]:
        """Of the patients of ``part`` where patients are known, else of its pictures: sorted, 64 bits in hexadecimal.

        They tell whether a model has learned from data of a test without naming anybody; whoever guesses the name of a
        patient can confirm the guess, though.
        """
        source = self._test_source if part == "test" else self._train_source()
        patients = source.patients if isinstance(source, PatientSource) else None
        found = _contents(source) if patients is None else (f"patient {name}".encode() for name in patients)
        return sorted(hashlib.sha256(content).hexdigest()[:16] for content in set(found))

    def description(self) -> dict[str, object]:
        """What the data are, in plain values, for the file of a model that was trained on them.

        ``class``, ``noise``, and the arguments that make the pictures, with names of folders and no paths.
        """
        parts = {"train": self.train, "val": self.val, "test": self.test}
        made: dict[str, object] = {name: path if path is None else Path(path).name for name, path in parts.items()}
        # files of models have the entries of patches, whatever the data are
        made |= {"patch_size": None, "n_patches": None} | asdict(self.pictures) | {"seed": self.seed} | self._details()
        if not self.pictures.in_colour:
            made.pop("colour", None)  # files of models for gray pictures are those of older versions
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in made.items()}
        return {"class": public_name(self), "noise": self.noise()} | plain

    def _details(self) -> dict[str, object]:
        """What else ``description`` has to say."""
        return {}

    @abstractmethod
    def noise(self) -> Mapping[str, str | float | list[float]]:
        """``kind`` of the noise and its parameters."""

    @property
    def noise_level(self) -> float | None:
        """Standard deviation of the noise of all data, where it is one number."""
        level = self.noise().get("sigma")
        return level if isinstance(level, float) else None

    @abstractmethod
    def _samples(self, images: Images, part: str) -> MeasurementDataset:
        """Pictures with their measurements; ``part`` says from which seed they are drawn."""

    def _training_images(self, source: ImageSource) -> Images:
        """What is learned from: all pictures in one tensor."""
        return stack_images(source, source.names)

    # Every part is made when it is first needed and kept, whatever order Lightning, or a script without it, calls in.

    @cached_property
    def _train_tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        return stack_samples(self._train_samples)

    @cached_property
    def _train_samples(self) -> MeasurementDataset:
        return self._samples(self._training_images(self._train_source()), "train")

    @cached_property
    def _val_source(self) -> ImageSource:
        return self._source(self.val, "val")

    @cached_property
    def _test_source(self) -> ImageSource:
        return self._source(self.test, "test")

    @property
    def _predict_source(self) -> ImageSource:
        """The pictures whose measurements are reconstructed."""
        return self._test_source

    @cached_property
    def _val_samples(self) -> MeasurementDataset:
        return self._samples(self._val_source, "val")

    @cached_property
    def _test_samples(self) -> MeasurementDataset:
        return self._samples(self._test_source, "test")

    @property
    def _predict_measurements(self) -> Dataset[Measurement]:
        return SimulatedMeasurements(self._test_samples)

    def _train_source(self) -> ImageSource:
        return self._source(self.train, "train").subset(0, self.pictures.limit)

    def _source(self, path: str | None, split: Split) -> ImageSource:
        if path == REST:
            limit = self.pictures.limit
            rest = self._source(self.train, "train").subset(limit or 0)
            if len(rest) == 0:
                raise DataError(f"{self.train}: no picture is left for {split} after the first {limit} (limit)")
            return rest
        (size, crop_size), colour = self.pictures.sides, self.pictures.in_colour
        if path is not None and path != BUILTIN:
            return (ColourFolder if colour else ImageFolder)(path, size=size, crop_size=crop_size)
        if size or crop_size:
            return BuiltinImages(split, size, crop_size, colour)
        return BuiltinImages(split, colour=colour)

    def _stream(self, part: str) -> int:
        return derive_seed(self.seed, _STREAMS[part])

    def _eval_batch_size(self, images: Images) -> int:
        if self.batches.eval_batch_size == 1:
            return 1
        shapes = {images[index].shape for index in range(len(images))}
        return self.batches.eval_batch_size if len(shapes) == 1 else 1


def _contents(source: ImageSource) -> Iterator[bytes]:
    """The shape and values of each picture."""
    return (f"picture {tuple(image.shape)}".encode() + image.numpy().tobytes() for image in source)
