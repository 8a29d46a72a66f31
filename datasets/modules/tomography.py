"""The data of CT experiments: sinograms simulated from pictures, DICOM slices and phantoms."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from datasets.modules.groups import Batches, FlatPatients, PatientPictures, Precision, regrouped
from datasets.modules.patients import PatientDataModule
from datasets.modules.simulated import BUILTIN
from datasets.noise import check_sigma, gaussian_noise
from datasets.physics import MIN_COUNT, MU_UNIT, line_integrals, transmission_counts, transmission_weights
from datasets.readers.hdf5 import LODOPAB_PARTS, LoDoPaB, holds_lodopab
from datasets.sources.images import Images, ImageSource, PatientSource, Split
from datasets.sources.measurements import MeasurementDataset
from datasets.sources.phantoms import RandomEllipses, SheppLogan
from recon.errors import not_negative, positive
from recon.operators import FanBeam, Geometry, LinearOperator, ParallelBeam, RayTransform
from recon.operators.tomography.ray_transform import Backend

ELLIPSES = "ellipses"
SHEPP_LOGAN = "shepp_logan"

_PHANTOMS = {"train": 32, "val": 8, "test": 8}


@dataclass(frozen=True)
class SinogramNoise:
    """Noise of sinograms and their scale, see :class:`TomographyDataset`.

    Parameters
    ----------
    sigma : float, optional
        Standard deviation on the scale of A x; None is ``relative_sigma``.
    relative_sigma : float
        Relative to the mean of |A x|, at least 0.
    photons : float, optional
        For each ray, in place of Gaussian noise.
    mu_unit : float
        µ in 1/mm of a pixel of value 1.

    Raises
    ------
    ValueError
        A number is out of its range, or sigma and photons are both given.
    """

    sigma: float | None = None
    relative_sigma: float = 0.05
    photons: float | None = None
    mu_unit: float = MU_UNIT

    def __post_init__(self) -> None:
        if self.sigma is not None and self.photons is not None:
            raise ValueError(f"sigma ({self.sigma}) and photons ({self.photons}) exclude each other; set one of them")
        check_sigma(self.sigma or 0.0)
        not_negative(relative_sigma=self.relative_sigma)
        positive(photons=self.photons, mu_unit=self.mu_unit)

    def description(self) -> dict[str, str | float]:
        """``kind`` and parameters, for the file of a model."""
        if self.photons is not None:
            return {"kind": "photons", "photons": float(self.photons), "mu_unit": float(self.mu_unit)}
        if self.sigma is not None:
            return {"kind": "gaussian", "sigma": float(self.sigma)}
        return {"kind": "gaussian, relative to the mean", "relative_sigma": float(self.relative_sigma)}


class TomographyDataset(MeasurementDataset):
    """Pictures x of attenuation µ = µ_unit x with noisy sinograms y of A x, lengths in mm.

    Without ``photons``: y = A x + σ n, where σ is ``sigma``, or ``relative_sigma`` × mean |A x| of the picture.
    With ``photons``: counts ~ Poisson(photons exp(-µ_unit A x)), and y = log(photons / counts) / µ_unit, so y is on the
    scale of A x too; see ``datasets.physics`` for counts of zero.

    Parameters
    ----------
    images, seed, operator, dtype
        see ``MeasurementDataset``.
    noise
        of the sinograms, and their scale.
    """

    operator: LinearOperator

    def __init__(
        self,
        images: Images,
        operator: LinearOperator,
        seed: int,
        noise: SinogramNoise = SinogramNoise(),
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__(images, noise.sigma or 0.0, seed, operator, dtype)
        self.noise = noise

    def _measured(self, exact: Tensor, index: int) -> Tensor:
        noise, photons = self.noise, self.noise.photons
        if photons is None:
            sigma = noise.relative_sigma * float(exact.abs().mean()) if noise.sigma is None else noise.sigma
            return exact + gaussian_noise(exact.shape, sigma, self.seed, index, self.dtype)
        counts = transmission_counts(noise.mu_unit * exact, photons, self.seed, index)
        if (counts < MIN_COUNT).double().mean() > 0.5:
            warnings.warn(
                f"photon starvation: with {photons:g} photons for each ray, most rays of a picture measure "
                "none, so that their line integrals say nothing; use more photons",
                stacklevel=4,  # where the sample was asked for
            )
        return line_integrals(counts, photons) / noise.mu_unit

    @torch.no_grad()
    def weights(self, index: int) -> Tensor:
        """Inverse variances of y of picture ``index``, of its shape, for the weighted L2 fidelity.

        Raises
        ------
        ValueError
            the noise is Gaussian, whose weights are all the same.
        """
        if self.noise.photons is None:
            raise ValueError("weights belong to noise of photons; set photons")
        _, exact = self._exact(index)
        counts = transmission_counts(self.noise.mu_unit * exact, self.noise.photons, self.seed, index)
        return transmission_weights(counts) * self.noise.mu_unit**2


@dataclass(frozen=True)
class SimulatedScan:
    """Where the rays of a simulated scan run, and how line integrals along them are computed.

    Parameters
    ----------
    field_of_view : float
        Side of the pictures in mm.
    views : int
        Number of angles, equispaced over ``arc``.
    arc : float, optional
        Range of the angles in degrees; None is 180 for parallel rays and 360 for a fan.
    detector_pixels : int, optional
        None covers the whole picture with pixels as large as those of the picture (at the axis).
    source_distance, detector_distance : float, optional
        From the axis in mm, for a fan beam; without them, rays are parallel.
    backend, cache
        Of ``RayTransform``.

    Raises
    ------
    ValueError
        A number is out of its range, or one of the two distances is missing.
    """

    field_of_view: float = 300.0
    views: int = 60
    arc: float | None = None
    detector_pixels: int | None = None
    source_distance: float | None = None
    detector_distance: float | None = None
    backend: Backend = "matrix"
    cache: bool = True

    def __post_init__(self) -> None:
        positive(field_of_view=self.field_of_view)
        if self.arc is not None and not 0 < self.arc <= 360:
            raise ValueError(f"arc is {self.arc} degrees; valid are more than 0, up to 360")
        if (self.source_distance is None) != (self.detector_distance is None):
            raise ValueError("source_distance and detector_distance belong together; set both or neither")

    def geometry(self, shape: tuple[int, int]) -> Geometry:
        """The geometry for pictures of that many pixels.

        Raises
        ------
        ValueError
            A number is out of its range.
        """
        pixel = self.field_of_view / shape[-1]
        if self.source_distance is None or self.detector_distance is None:
            arc = math.radians(180.0 if self.arc is None else self.arc)
            return ParallelBeam.equispaced(shape, pixel, self.views, arc=arc, detector_pixels=self.detector_pixels)
        return FanBeam.equispaced(
            shape,
            pixel,
            self.views,
            source_distance=self.source_distance,
            detector_distance=self.detector_distance,
            arc=math.radians(360.0 if self.arc is None else self.arc),
            detector_pixels=self.detector_pixels,
        )


class FlatTomography(FlatPatients, total=False):
    """See :class:`SimulatedScan` and :class:`SinogramNoise`."""

    field_of_view: float
    views: int
    arc: float | None
    detector_pixels: int | None
    source_distance: float | None
    detector_distance: float | None
    backend: Backend
    cache: bool
    sigma: float | None
    relative_sigma: float
    photons: float | None
    mu_unit: float


class TomographyDataModule(PatientDataModule):
    """Pictures x (1, H, W) with simulated sinograms y (1, angles, detectors).

    A pixel of value x stands for the attenuation µ = ``noise.mu_unit`` x, and y for line integrals of x, lengths in mm;
    both as in LoDoPaB-CT. The attribute ``operator`` is the ``RayTransform`` A; it is one for all pictures, so that
    DICOM slices are taken as if they had the ``scan.field_of_view`` given here. Pictures for simulation and
    reconstruction have the same pixels: figures are better than for measured data.

    Parameters
    ----------
    train : str
        ``"ellipses"`` (``RandomEllipses``), ``"builtin"`` (photographs), ``"shepp_logan"``, a folder of DICOM slices,
        of LoDoPaB-CT (whose own noisy sinograms are served by ``LoDoPaBDataModule``), or of pictures.
    val, test : str, optional
        As ``train``, or ``"rest"`` as in ``DenoisingDataModule``; ``"builtin"`` as ``test`` is the CT slices of
        ``BuiltinSlices``. None is a part of the training folder with other patients for DICOM (see
        ``PatientDataModule``), the part of that name for LoDoPaB-CT, other ellipses for validation and Shepp-Logan for
        the test for ``"ellipses"``, and ``"builtin"`` else.
    pictures : PatientPictures
        Which pictures, of what size, and how those of patients are split; ``limit`` is also the number of ellipses to
        learn from, 32 by default.
    scan : SimulatedScan
        Where the rays run.
    geometry : Geometry, optional
        Any other geometry, in place of that of ``scan``.
    noise : SinogramNoise
        Noise of sinograms, and their scale.
    seed : int
        Of noise, phantoms and split, at least 0.
    dtype : {"float32", "float64"}
        Both see the same noise.
    batches : Batches
        How many pictures are served at once.
    **flat
        Fields of ``pictures``, ``scan``, ``noise`` and ``batches`` as arguments, as in older versions; with the next
        one they are refused.

    Raises
    ------
    ValueError
        An argument is out of its range.
    DataError
        (a ValueError) in ``setup``, or when data are asked for: what the readers raise.
    ImportError
        ASTRA is missing.
    """

    modality = "CT"
    named = (ELLIPSES, SHEPP_LOGAN)
    operator: RayTransform

    def __init__(
        self,
        train: str = ELLIPSES,
        val: str | None = None,
        test: str | None = None,
        pictures: PatientPictures = PatientPictures(),
        scan: SimulatedScan = SimulatedScan(),
        geometry: Geometry | None = None,
        noise: SinogramNoise = SinogramNoise(),
        seed: int = 0,
        dtype: Precision = "float64",
        batches: Batches = Batches(),
        **flat: Unpack[FlatTomography],
    ) -> None:
        groups = (pictures, scan, noise, batches)
        pictures, scan, noise, batches = regrouped(flat, "pictures scan noise batches", *groups)
        super().__init__(train, val, test, pictures.sized(), seed, dtype, batches)
        self.sinogram_noise = noise
        shape = (self.pictures.side,) * 2
        if geometry is None:
            geometry = scan.geometry(shape)
        elif geometry.domain_shape != (1, *shape):
            raise ValueError(
                f"geometry is for pictures of {geometry.image_shape} pixels; size or crop_size make {shape}"
            )
        self.geometry = geometry
        self.operator = RayTransform(geometry, scan.backend, cache=scan.cache)

    def mean_weights(self) -> Tensor:
        """Mean over the training set of the inverse variances of y, (1, angles, detectors), for ``WeightedSquaredL2``.

        One set of weights serves all pictures, which need not be optimal for any of them.

        Raises
        ------
        ValueError
            without ``photons``.
        """
        samples = self._samples(self._train_source(), "train")
        total = samples.weights(0)
        for index in range(1, len(samples)):
            total = total + samples.weights(index)
        return total / len(samples)

    def noise(self) -> dict[str, str | float]:
        return self.sinogram_noise.description()

    def _details(self) -> dict[str, object]:
        return {"mu_unit": self.sinogram_noise.mu_unit}

    def _samples(self, images: Images, part: str) -> TomographyDataset:
        return TomographyDataset(images, self.operator, self._stream(part), self.sinogram_noise, self.dtype)

    def _source(self, path: str | None, split: Split) -> ImageSource:
        if path is None:
            path = self._default(split)
        if path not in (BUILTIN, *self.named) and holds_lodopab(Path(path).expanduser()):
            return LoDoPaB(path, LODOPAB_PARTS[split], *self.pictures.sides)
        return super()._source(path, split)

    def _named_source(self, name: str, split: Split) -> ImageSource:
        if name == SHEPP_LOGAN:
            return SheppLogan(self.pictures.side)
        count = self.pictures.limit if split == "train" and self.pictures.limit is not None else _PHANTOMS[split]
        return RandomEllipses(count, self.pictures.side, self._stream(split))

    def _default(self, split: Split) -> str:
        if self.train == ELLIPSES:
            return ELLIPSES if split == "val" else SHEPP_LOGAN
        return self.train if holds_lodopab(Path(self.train).expanduser()) else super()._default(split)

    def _patient_source(self, path: Path) -> PatientSource | None:
        # LoDoPaB-CT comes with parts of its own
        return None if holds_lodopab(path) else super()._patient_source(path)
