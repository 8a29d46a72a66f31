"""What the data modules of CT and MRI share: folders whose pictures belong to patients, and are split by them."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from datasets.errors import DataError
from datasets.modules.groups import PatientPictures
from datasets.modules.simulated import BUILTIN, REST, SimulatedDataModule
from datasets.readers.dicom.slices import DicomFolder, Modality, holds_dicom
from datasets.sources.images import ImageSource, PatientSource, Split
from datasets.sources.medical import BuiltinSlices
from datasets.sources.splits import split_by_patient

_SPLITS: tuple[Split, ...] = ("train", "val", "test")


class PatientDataModule(SimulatedDataModule):
    """Pictures of one size, for whose training folder None as ``val`` or ``test`` is a part with other patients.

    If ``val`` or ``test`` is None, or names the folder of ``train`` again, that folder is cut into three parts by
    ``split_by_patient`` with ``pictures.fractions`` and the seed. Else all of it is for training. Other folders are
    taken as they are, with a warning where they share a patient with the training part.
    """

    pictures: PatientPictures

    modality: ClassVar[Modality]
    #: what ``train``, ``val`` and ``test`` may say in place of a path, beside ``"builtin"`` and ``"rest"``
    named: ClassVar[tuple[str, ...]]

    @abstractmethod
    def _named_source(self, name: str, split: Split) -> ImageSource:
        """The pictures of one of the names ``named``."""

    def _patient_source(self, path: Path) -> PatientSource | None:
        """The pictures of a path that holds patients; None of any other path."""
        size, crop_size = self.pictures.sides
        return DicomFolder(path, self.modality, size=size, crop_size=crop_size) if holds_dicom(path) else None

    @property
    def knows_patients(self) -> bool:
        return self._train_patients is not None

    def _source(self, path: str | None, split: Split) -> ImageSource:
        if path is None:
            path = self._default(split)
        if path in self.named:
            return self._named_source(path, split)
        if path == BUILTIN and split == "test":
            return BuiltinSlices(self.modality, *self.pictures.sides)
        if path == REST and self._train_patients is not None:
            raise DataError(f"{split} is {REST!r}, which may hold patients of the training data; leave it out")
        if path in (BUILTIN, REST):
            return super()._source(path, split)
        if self._train_patients is not None and self._is_train(path):
            return self._train_part(split)
        source = self._patient_source(Path(path).expanduser())
        if source is None:
            return super()._source(path, split)
        self._warn_of_shared_patients(source, path)
        return source

    def _default(self, split: Split) -> str:
        return BUILTIN if self._train_patients is None else self.train

    @cached_property
    def _train_patients(self) -> PatientSource | None:
        """The training folder, if it holds patients; its headers are read once."""
        known = self.train in (BUILTIN, *self.named)
        return None if known else self._patient_source(Path(self.train).expanduser())

    def _is_train(self, path: str) -> bool:
        """Whether a path is that of the training data, however it is written."""
        return path == self.train or Path(path).expanduser().resolve() == Path(self.train).expanduser().resolve()

    def _train_part(self, split: Split) -> PatientSource:
        folder = self._train_patients
        assert folder is not None
        if not any(path is None or self._is_train(path) for path in (self.val, self.test)):
            return folder
        try:
            parts = split_by_patient(folder.patients, self.pictures.fractions, self.seed)
        except DataError as error:
            raise DataError(f"{self.train}: {error}; name other data as val and test to use all of it") from error
        return folder.select(parts[_SPLITS.index(split)])

    def _warn_of_shared_patients(self, source: PatientSource, path: str) -> None:
        if self._train_patients is None:
            return
        shared = sorted(set(source.patients) & set(self._train_part("train").patients))
        if shared:
            warnings.warn(
                f"{path}: {len(shared)} of its patients are in the training data too, e.g. {shared[0]}; results on "
                "these pictures are no test",
                stacklevel=2,
            )
