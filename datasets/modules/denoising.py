"""The data of denoising, deblurring and other experiments whose measurements are pictures, or like pictures."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Unpack

import torch
from torch.utils.data import Dataset

from datasets.modules.groups import Batches, FlatPatches, PatchPictures, Precision, regrouped
from datasets.modules.simulated import BUILTIN, SimulatedDataModule
from datasets.noise import check_levels
from datasets.sources.images import ColourFolder, ImageFolder, Images, ImageSource
from datasets.sources.measurements import MeasuredImages, Measurement, MeasurementDataset
from datasets.sources.patches import random_patches


class DenoisingDataModule(SimulatedDataModule):
    """Pictures x with noisy measurements y = A x + σ n, for training with the whole training set at once.

    Training pictures are stacked into one batch: pictures of one size, or patches. Pictures for validation and test
    are never cut into patches; where their sizes differ, they are served one by one.

    Parameters
    ----------
    train : str
        A folder or file (``ImageFolder``), or ``"builtin"`` (``BuiltinImages``, squares of 256 pixels unless
        ``pictures`` says otherwise).
    val : str, optional
        A folder or file, ``"builtin"``, or ``"rest"``: the pictures of ``train`` after the first ``pictures.limit``.
        None is ``"builtin"``, whose pictures are not among those of ``train="builtin"``.
    test : str, optional
        As ``val``.
    predict : str, optional
        A folder or file of measured pictures, taken as they are, with no noise added and without ``pictures``; None is
        the measurements of ``test``.
    operator : torch.nn.Module, optional
        A, see ``MeasurementDataset``; None is the identity, i.e. denoising.
    sigma : float or list of two floats
        Standard deviation σ of the noise, at least 0; or the ends of a range, from which that of every picture or patch
        is drawn: for regularizers that know it, :class:`models.NoiseConditioned`.
    pictures : PatchPictures
        Which pictures, of what size, and the patches to learn from.
    seed : int
        Of noise and patches, at least 0.
    dtype : {"float32", "float64"}
        Both see the same noise and patches.
    batches : Batches
        How many pictures are served at once.
    **flat
        Fields of ``pictures`` and ``batches`` as arguments, as in older versions; with the next one they are refused.

    Raises
    ------
    ValueError
        An argument is out of its range.
    DataError
        (a ValueError) in ``setup``, or when data are asked for: pictures that are missing, unreadable, of different
        sizes, or smaller than what is to be cut out of them.
    """

    pictures: PatchPictures

    def __init__(
        self,
        train: str = BUILTIN,
        val: str | None = None,
        test: str | None = None,
        predict: str | None = None,
        operator: torch.nn.Module | None = None,
        sigma: float | tuple[float, float] = 0.1,
        pictures: PatchPictures = PatchPictures(),
        seed: int = 0,
        dtype: Precision = "float64",
        batches: Batches = Batches(),
        **flat: Unpack[FlatPatches],
    ) -> None:
        pictures, batches = regrouped(flat, "pictures batches", pictures, batches)
        super().__init__(train, val, test, pictures, seed, dtype, batches)
        self.predict, self.operator, self.sigma = predict, operator, check_levels(sigma)

    def noise(self) -> Mapping[str, str | float | list[float]]:
        sigma = self.sigma
        return {"kind": "gaussian", "sigma": list(sigma) if isinstance(sigma, tuple) else float(sigma)}

    def _samples(self, images: Images, part: str) -> MeasurementDataset:
        return MeasurementDataset(images, self.sigma, self._stream(part), self.operator, self.dtype)

    def _training_images(self, source: ImageSource) -> Images:
        side = self.pictures.patch_size
        if side is None:
            return super()._training_images(source)
        count = self.pictures.n_patches or len(source)
        return random_patches(source, side, count, self._stream("patches"), source.names)

    @cached_property
    def _predict_source(self) -> ImageSource:
        """The measured pictures, or those whose measurements are simulated instead."""
        if self.predict is None:
            return self._test_source
        return ColourFolder(self.predict) if self.pictures.colour else ImageFolder(self.predict)

    @cached_property
    def _predict_measurements(self) -> Dataset[Measurement]:
        if self.predict is None:
            return super()._predict_measurements
        return MeasuredImages(self._predict_source, self.dtype)
