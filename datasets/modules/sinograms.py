"""Measured CT scans for reconstruction: one operator and the sinograms that it explains."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from datasets.modules.arguments import check_positive, torch_dtype
from datasets.modules.tomography import MU_UNIT
from datasets.readers.pictures import DataError
from datasets.scans.reading import SINOGRAM_SUFFIXES, read_sinogram
from datasets.scans.scan import Scan
from datasets.sources.measurements import Measurement, WeightedMeasurement
from recon.operators import RayTransform
from recon.operators.tomography.ray_transform import Backend


class MeasuredScans(Dataset[Measurement | WeightedMeasurement]):
    """Sinograms y (1, angles, detectors) divided by ``mu_unit``, so that y = A x for pictures x = µ / µ_unit.

    Where a scan has rays that were not measured (detector pixels that did not work, rays without light), it comes with
    weights, 0 for those and 1 for the others.
    """

    def __init__(self, scans: list[Scan], mu_unit: float = MU_UNIT, dtype: torch.dtype = torch.float64) -> None:
        self.scans, self.mu_unit, self.dtype = scans, mu_unit, dtype

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, index: int) -> Measurement | WeightedMeasurement:
        scan = self.scans[index]
        y = (scan.sinogram[None] / self.mu_unit).to(self.dtype)
        if scan.weights is None or bool((scan.weights > 0).all()):
            return Measurement(y, index)
        return WeightedMeasurement(y, (scan.weights[None] > 0).to(self.dtype), index)


class SinogramDataModule(pl.LightningDataModule):
    """Measured scans of one geometry, for prediction: batches of ``Measurement``.

    Scans with rays that were not measured come as ``WeightedMeasurement``, see ``MeasuredScans``.

    The attribute ``operator`` is the ``RayTransform`` A of that geometry. Pictures x have the unit ``mu_unit``, as
    those of ``TomographyDataModule``, so that models learned there can be used here: µ = ``mu_unit`` x in 1/mm.

    Args:
        path: a file, or a folder whose files with suffixes out of ``SINOGRAM_SUFFIXES`` are taken in order of names.
        size: side of the reconstruction in pixels.
        pixel_size: in mm; None is the size of a detector pixel at the rotation axis.
        first_view, last_view, view_step: which views to use, as in ``range``; by default all.
        options: of the reader, e.g. ``row`` and ``rotation_centre``, see ``read_sinogram``.
        mu_unit: µ in 1/mm of a pixel of value 1.
        backend, cache: of ``RayTransform``.
        dtype: ``"float32"`` or ``"float64"``.

    Raises:
        DataError: no such file or folder, no sinogram in it, scans of different geometries; what the reader raises.
        ValueError: a number is out of its range.
        ImportError: ASTRA is missing, or the package of a reader.
    """

    operator: RayTransform

    def __init__(
        self,
        path: str | Path,
        size: int = 256,
        pixel_size: float | None = None,
        first_view: int | None = None,
        last_view: int | None = None,
        view_step: int | None = None,
        options: Mapping[str, Any] | None = None,
        mu_unit: float = MU_UNIT,
        backend: Backend = "matrix",
        cache: bool = True,
        dtype: Literal["float32", "float64"] = "float64",
    ) -> None:
        super().__init__()
        check_positive(mu_unit=mu_unit)
        self.dtype = torch_dtype(dtype)
        self.mu_unit = mu_unit
        views = slice(first_view, last_view, view_step)
        self.scans = [read_sinogram(file, **(options or {})).select(views) for file in _files(Path(path).expanduser())]
        for text in (text for scan in self.scans for text in scan.warnings):
            warnings.warn(text, stacklevel=2)
        geometries = [scan.geometry((size, size), pixel_size) for scan in self.scans]
        for scan, geometry in zip(self.scans, geometries, strict=True):
            if geometry != geometries[0]:
                raise DataError(
                    f"{scan.path}: its geometry differs from that of {self.scans[0].path}; reconstruct scans of "
                    "different geometries one by one"
                )
        self.operator = RayTransform(geometries[0], backend, cache=cache)

    def predict_dataloader(self) -> DataLoader[Measurement | WeightedMeasurement]:
        """Scan by scan, in a batch of one."""
        return DataLoader(MeasuredScans(self.scans, self.mu_unit, self.dtype), batch_size=1)

    def names(self, stage: Literal["predict"] = "predict") -> list[str]:
        """The files of the scans."""
        return [str(scan.path) for scan in self.scans]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    files = [f for f in sorted(path.iterdir()) if f.suffix.lower() in SINOGRAM_SUFFIXES and not f.name.startswith(".")]
    if not files:
        raise DataError(f"{path}: the folder has no sinogram; looked for {', '.join(SINOGRAM_SUFFIXES)}")
    return files
