"""The data of denoising, deblurring and other experiments whose measurements are simulated from pictures."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from datasets.modules.arguments import check_counts, check_side, torch_dtype
from datasets.noise import check_sigma, derive_seed, keyed_generator
from datasets.readers.pictures import DataError
from datasets.sources.images import BuiltinImages, ImageFolder, Images, ImageSource, PatientSource, Split, stack_images
from datasets.sources.measurements import (
    MeasuredImages,
    Measurement,
    MeasurementDataset,
    Sample,
    SimulatedMeasurements,
    stack_samples,
)
from datasets.sources.patches import random_patches
from recon.names import public_name

BUILTIN = "builtin"
REST = "rest"

# Parts of an experiment that draw random numbers, each from a seed of its own.
_STREAMS = {"train": 0, "val": 1, "test": 2, "patches": 3}


class DenoisingDataModule(pl.LightningDataModule):
    """Pictures x with noisy measurements y = A x + σ n, for training with the whole training set at once.

    Training pictures are stacked into one batch: pictures of one size, or patches. Pictures for validation and test
    are never cut into patches; where their sizes differ, they are served one by one.

    Args:
        train: a folder or file (``ImageFolder``), or ``"builtin"`` (``BuiltinImages``, squares of 256 pixels unless
            ``size`` or ``crop_size`` says otherwise).
        val: a folder or file, ``"builtin"``, or ``"rest"``: the pictures of ``train`` after the first ``limit``.
            None is ``"builtin"``, whose pictures are not among those of ``train="builtin"``.
        test: as ``val``.
        predict: a folder or file of measured pictures, taken as they are, with no noise added and without ``size`` or
            ``crop_size``; None is the measurements of ``test``.
        operator: A, see ``MeasurementDataset``; None is the identity, i.e. denoising.
        sigma: standard deviation σ of the noise, at least 0.
        size: side in pixels of the squares to which all pictures are resized.
        crop_size: side in pixels of the squares that are cut out of the centre of all pictures; excludes ``size``.
        patch_size: side in pixels of the patches to learn from; None learns from whole pictures.
        n_patches: number of patches; None is one for each training picture.
        limit: number of training pictures, the first in the order of their names; None is all.
        seed: of noise and patches, at least 0.
        dtype: ``"float32"`` or ``"float64"``; both see the same noise and patches.
        batch_size: of the training batches; None is one batch with the whole training set.
        eval_batch_size: of the other batches, for pictures of one size.

    Raises:
        ValueError: an argument is out of its range.
        DataError (a ValueError): in ``setup``, or when data are asked for: pictures that are missing, unreadable, of
            different sizes, or smaller than what is to be cut out of them.
    """

    def __init__(
        self,
        train: str = BUILTIN,
        val: str | None = None,
        test: str | None = None,
        predict: str | None = None,
        operator: torch.nn.Module | None = None,
        sigma: float = 0.1,
        size: int | None = None,
        crop_size: int | None = None,
        patch_size: int | None = None,
        n_patches: int | None = None,
        limit: int | None = None,
        seed: int = 0,
        dtype: Literal["float32", "float64"] = "float64",
        batch_size: int | None = None,
        eval_batch_size: int = 1,
    ) -> None:
        super().__init__()
        check_counts(
            size=size,
            crop_size=crop_size,
            patch_size=patch_size,
            n_patches=n_patches,
            limit=limit,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
        )
        check_side(size, crop_size)
        if n_patches is not None and patch_size is None:
            raise ValueError(f"n_patches is {n_patches}, but patch_size is not set; set both or neither")
        if REST in (val, test) and limit is None:
            raise ValueError(f"val or test is {REST!r}, the training pictures after the first `limit`: set limit")
        keyed_generator(seed)  # for its check
        self.train, self.val, self.test, self.predict = train, val, test, predict
        self.operator = operator
        self.sigma = check_sigma(sigma)
        self.size, self.crop_size = size, crop_size
        self.patch_size, self.n_patches, self.limit = patch_size, n_patches, limit
        self.seed = seed
        self.dtype = torch_dtype(dtype)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size

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
        """The whole training set: x of shape (N, 1, H, W) and y of shape (N, *range_shape)."""
        return self._train_tensors

    def train_dataloader(self) -> DataLoader[Sample]:
        """Batches of ``Sample`` in a fixed order, as certified descent needs a deterministic objective."""
        x, y = self._train_tensors
        samples = _StackedSamples(x, y)
        return DataLoader(samples, batch_size=self.batch_size or len(samples))

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
        if stage == "val":
            return list(self._val_source.names)
        source = self._test_source if stage == "test" else self._predict_source
        return list(source.names)

    @property
    def knows_patients(self) -> bool:
        """Whether the training pictures belong to patients."""
        return isinstance(self._source(self.train, "train"), PatientSource)

    def shared_with_test(self, part: Literal["train", "val"]) -> list[str]:
        """Patients of ``part`` that are in the test data, too, where patients are known; else such pictures.

        Pictures are the same if all their values are. A comparison on such test data says nothing.
        """
        source = self._val_source if part == "val" else self._source(self.train, "train").subset(0, self.limit)
        if isinstance(source, PatientSource) and isinstance(self._test_source, PatientSource):
            return sorted(set(source.patients) & set(self._test_source.patients))
        tested = {(tuple(image.shape), image.numpy().tobytes()) for image in self._test_source}
        pictures = zip(source.names, source, strict=True)
        return [name for name, image in pictures if (tuple(image.shape), image.numpy().tobytes()) in tested]

    def fingerprints(self, part: Literal["train", "test"]) -> list[str]:
        """Of the patients of ``part`` where patients are known, else of its pictures: sorted, 64 bits in hexadecimal.

        They tell whether a model has learned from data of a test without naming anybody; whoever guesses the name of a
        patient can confirm the guess, though.
        """
        source = self._test_source if part == "test" else self._source(self.train, "train").subset(0, self.limit)
        if isinstance(source, PatientSource):
            found = {f"patient {name}".encode() for name in source.patients}
        else:
            found = {f"picture {tuple(image.shape)}".encode() + image.numpy().tobytes() for image in source}
        return sorted(hashlib.sha256(content).hexdigest()[:16] for content in found)

    def description(self) -> dict[str, Any]:
        """What the data are, in plain values, for the file of a model that was trained on them.

        ``class``, ``noise``, and the arguments that make the pictures, with names of folders and no paths.
        """
        pictures: dict[str, Any] = {}
        for part in ("train", "val", "test"):
            path = getattr(self, part)
            pictures[part] = None if path is None else Path(path).name
        for name in ("size", "crop_size", "patch_size", "n_patches", "limit", "seed", *self._settings):
            value = getattr(self, name)
            pictures[name] = list(value) if isinstance(value, tuple) else value
        return {"class": public_name(self), "noise": self.noise()} | pictures

    #: further attributes that ``description`` has
    _settings: tuple[str, ...] = ()

    def noise(self) -> dict[str, Any]:
        """``kind`` of the noise and its parameters."""
        return {"kind": "gaussian", "sigma": float(self.sigma)}

    # Every part is made when it is first needed and kept, whatever order Lightning, or a script without it, calls in.

    @cached_property
    def _train_tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        source = self._source(self.train, "train").subset(0, self.limit)
        if self.patch_size is None:
            images = stack_images(source, source.names)
        else:
            count = self.n_patches or len(source)
            images = random_patches(source, self.patch_size, count, self._stream("patches"), source.names)
        return stack_samples(self._samples(images, "train"))

    @cached_property
    def _val_source(self) -> ImageSource:
        return self._source(self.val, "val")

    @cached_property
    def _test_source(self) -> ImageSource:
        return self._source(self.test, "test")

    @cached_property
    def _predict_source(self) -> ImageSource:
        """The measured pictures, or those whose measurements are simulated instead."""
        return self._test_source if self.predict is None else ImageFolder(self.predict)

    @cached_property
    def _val_samples(self) -> MeasurementDataset:
        return self._samples(self._val_source, "val")

    @cached_property
    def _test_samples(self) -> MeasurementDataset:
        return self._samples(self._test_source, "test")

    @cached_property
    def _predict_measurements(self) -> Dataset[Measurement]:
        if self.predict is None:
            return SimulatedMeasurements(self._test_samples)
        return MeasuredImages(self._predict_source, self.dtype)

    def _source(self, path: str | None, split: Split) -> ImageSource:
        if path == REST:
            rest = self._source(self.train, "train").subset(self.limit or 0)
            if len(rest) == 0:
                raise DataError(f"{self.train}: no picture is left for {split} after the first {self.limit} (limit)")
            return rest
        if path is not None and path != BUILTIN:
            return ImageFolder(path, size=self.size, crop_size=self.crop_size)
        if self.size is None and self.crop_size is None:
            return BuiltinImages(split)
        return BuiltinImages(split, size=self.size, crop_size=self.crop_size)

    def _samples(self, images: Images, part: str) -> MeasurementDataset:
        return MeasurementDataset(images, self.sigma, self._stream(part), self.operator, self.dtype)

    def _stream(self, part: str) -> int:
        return derive_seed(self.seed, _STREAMS[part])

    def _eval_batch_size(self, images: Images) -> int:
        if self.eval_batch_size == 1:
            return 1
        shapes = {images[index].shape for index in range(len(images))}
        return self.eval_batch_size if len(shapes) == 1 else 1


class _StackedSamples(Dataset[Sample]):
    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.x[index], self.y[index], index)
