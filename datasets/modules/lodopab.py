"""LoDoPaB-CT as it was published, to learn from: its pictures with its own low-dose sinograms."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from datasets.errors import DataError
from datasets.modules.groups import Batches, FlatBatches, Pictures, Precision, regrouped
from datasets.modules.simulated import SimulatedDataModule
from datasets.readers.hdf5 import LODOPAB_MU_MAX, LODOPAB_PARTS, LODOPAB_PHOTONS, LoDoPaB
from datasets.scans.scan import lodopab_geometry
from datasets.sources.images import Images, ImageSource, Split
from datasets.sources.measurements import MeasurementDataset
from recon.errors import at_least
from recon.operators import Geometry, RayTransform
from recon.operators.tomography.ray_transform import Backend


class ObservedPictures(MeasurementDataset):
    """Pictures x of LoDoPaB-CT with the sinograms y of the data set, every ``view_step``-th view of them.

    No noise is added: y has that of the data set, Poisson counts of 4096 photons for each ray.

    Raises
    ------
    DataError
        (when a sample is read) picture or sinogram do not have the shapes of ``operator``, or are not there.
    """

    images: LoDoPaB
    operator: RayTransform

    def __init__(self, images: LoDoPaB, operator: RayTransform, view_step: int, dtype: torch.dtype) -> None:
        super().__init__(images, 0.0, 0, operator, dtype)
        self.view_step = view_step

    def _exact(self, index: int) -> tuple[Tensor, Tensor]:
        x = self.images[index]
        y = self.images.observation(index)[:, :: self.view_step]
        geometry = self.operator.geometry
        if (x.shape, y.shape) != (geometry.domain_shape, geometry.range_shape):
            raise DataError(
                f"{self.images.names[index]}: a picture of shape {tuple(x.shape)} with {y.shape[1]} views of "
                f"{y.shape[2]} detector pixels; the geometry is for {geometry.domain_shape} with "
                f"{geometry.range_shape[1]} of {geometry.range_shape[2]}"
            )
        return x.to(self.dtype), y.to(self.dtype)

    def _measured(self, exact: Tensor, index: int) -> Tensor:
        return exact


class LoDoPaBDataModule(SimulatedDataModule):
    """Pictures x (1, 362, 362) and measured y (1, 1000, 513) of LoDoPaB-CT, by its own parts and with its own noise.

    ``operator`` is the ``RayTransform`` of ``lodopab_geometry`` with lengths in mm, so that y = A x + noise and a pixel
    of value x stands for µ = ``LODOPAB_MU_MAX`` x; see ``LoDoPaB``. The parts of the data set share no patient, and its
    pictures are in random order. The sinograms were made from pictures of 1000 x 1000 pixels, so even their expectation
    is not quite A x.

    The training set is held in memory, 1 MB for a picture and 4.1 MB for its sinogram in float64. Validation and test
    are read one by one; they have 3522 and 3553 pictures, of which Lightning's ``limit_val_batches`` and
    ``limit_test_batches`` take the first.

    Parameters
    ----------
    folder : str
        Of the HDF5 files, see ``LoDoPaB``; a subset of them will do.
    limit : int, optional
        Number of training pictures, the first ones; None is all that are there.
    view_step : int
        1 for all views, 5 for every fifth, and so on.
    geometry : Geometry, optional
        Of all views, for files of the same structure with other pictures; None is ``lodopab_geometry()``.
    backend, cache
        Of ``RayTransform``.
    dtype : {"float32", "float64"}
        Of pictures and sinograms.
    batches : Batches
        How many pictures are served at once.
    **flat
        Fields of ``batches`` as arguments, as in older versions; with the next one they are refused.

    Raises
    ------
    ValueError
        An argument is out of its range.
    DataError
        (a ValueError) in ``setup``, or when data are asked for: what ``LoDoPaB`` and ``ObservedPictures`` raise.
    ImportError
        ASTRA or h5py is missing.
    """

    operator: RayTransform

    def __init__(
        self,
        folder: str,
        limit: int | None = 32,
        view_step: int = 1,
        geometry: Geometry | None = None,
        backend: Backend = "matrix",
        cache: bool = True,
        dtype: Precision = "float32",
        batches: Batches = Batches(),
        **flat: Unpack[FlatBatches],
    ) -> None:
        (batches,) = regrouped(flat, "batches", batches)
        super().__init__(folder, folder, folder, Pictures(limit=limit), 0, dtype, batches)
        at_least(1, view_step=view_step)
        self.view_step = view_step
        every = lodopab_geometry() if geometry is None else geometry
        self.geometry = every.select(slice(None, None, view_step))
        self.operator = RayTransform(self.geometry, backend, cache=cache)

    def mean_weights(self) -> Tensor:
        """Mean over the training set of the inverse variances of y, (1, angles, detectors), for ``WeightedSquaredL2``.

        The count of a ray is 4096 exp(-µ_max y), and to first order y has the variance 1 / (count µ_max^2).
        """
        _, y = self.train_tensors()
        return (LODOPAB_PHOTONS * LODOPAB_MU_MAX**2 * torch.exp(-LODOPAB_MU_MAX * y)).mean(0)

    def noise(self) -> dict[str, str | float]:
        return {"kind": "photons", "photons": float(LODOPAB_PHOTONS), "mu_unit": float(LODOPAB_MU_MAX)}

    def _details(self) -> dict[str, object]:
        return {"view_step": self.view_step}

    def _source(self, path: str | None, split: Split) -> LoDoPaB:
        return LoDoPaB(self.train, LODOPAB_PARTS[split])

    def _training_images(self, source: ImageSource) -> Images:
        return source  # whose sinograms are read with the pictures

    def _samples(self, images: Images, part: str) -> MeasurementDataset:
        assert isinstance(images, LoDoPaB)
        return ObservedPictures(images, self.operator, self.view_step, self.dtype)

    def _eval_batch_size(self, images: Images) -> int:
        return self.batches.eval_batch_size  # all pictures have one size: no need to read them for it
