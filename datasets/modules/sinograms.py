"""Measured CT scans for reconstruction: one operator and the sinograms that it explains."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from datasets.errors import DataError
from datasets.modules.groups import Precision, regrouped, torch_dtype
from datasets.physics import MU_UNIT
from datasets.readers.folders import files_of
from datasets.scans.reading import SINOGRAM_SUFFIXES, read_sinogram
from datasets.scans.scan import Scan
from datasets.sources.measurements import Measurement, WeightedMeasurement
from recon.errors import positive
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


@dataclass(frozen=True)
class Views:
    """Which views of a scan to use, as in ``range``.

    Parameters
    ----------
    first_view, last_view, view_step : int, optional
        By default all views.
    """

    first_view: int | None = None
    last_view: int | None = None
    view_step: int | None = None


class FlatViews(TypedDict, total=False):
    """See :class:`Views`."""

    first_view: int | None
    last_view: int | None
    view_step: int | None


class SinogramDataModule(pl.LightningDataModule):
    """Measured scans of one geometry, for prediction: batches of ``Measurement``.

    Scans with rays that were not measured come as ``WeightedMeasurement``, see ``MeasuredScans``.

    The attribute ``operator`` is the ``RayTransform`` A of that geometry. Pictures x have the unit ``mu_unit``, as
    those of ``TomographyDataModule``, so that models learned there can be used here: µ = ``mu_unit`` x in 1/mm.

    Parameters
    ----------
    path : str or Path
        A file, or a folder whose files with suffixes out of ``SINOGRAM_SUFFIXES`` are taken in order of names.
    size : int
        Side of the reconstruction in pixels.
    pixel_size : float, optional
        In mm; None is the size of a detector pixel at the rotation axis.
    views : Views
        Which views to use.
    options : mapping, optional
        Of the reader, e.g. ``row`` and ``rotation_centre``, see ``read_sinogram``.
    mu_unit : float
        µ in 1/mm of a pixel of value 1.
    backend, cache
        Of ``RayTransform``.
    dtype : {"float32", "float64"}
        Of the measurements.
    **flat
        Fields of ``views`` as arguments, as in older versions; with the next one they are refused.

    Raises
    ------
    DataError
        No such file or folder, no sinogram in it, scans of different geometries; what the reader raises.
    ValueError
        A number is out of its range.
    ImportError
        ASTRA is missing, or the package of a reader.
    """

    operator: RayTransform

    def __init__(
        self,
        path: str | Path,
        size: int = 256,
        pixel_size: float | None = None,
        views: Views = Views(),
        options: Mapping[str, Any] | None = None,
        mu_unit: float = MU_UNIT,
        backend: Backend = "matrix",
        cache: bool = True,
        dtype: Precision = "float64",
        **flat: Unpack[FlatViews],
    ) -> None:
        super().__init__()
        (views,) = regrouped(flat, "views", views)
        positive(mu_unit=mu_unit)
        self.dtype = torch_dtype(dtype)
        self.mu_unit = mu_unit
        chosen = slice(views.first_view, views.last_view, views.view_step)
        self.scans = [read_sinogram(file, **(options or {})).select(chosen) for file in _files(Path(path).expanduser())]
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
    kind = f"sinogram; looked for {', '.join(SINOGRAM_SUFFIXES)}"
    return files_of(path, lambda file: file.suffix.lower() in SINOGRAM_SUFFIXES, kind)
