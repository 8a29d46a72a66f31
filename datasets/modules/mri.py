"""The data of MRI experiments whose k-space is simulated from pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np
import torch

from datasets.errors import DataError
from datasets.modules.groups import Batches, FlatPatients, PatientPictures, Precision, regrouped
from datasets.modules.patients import PatientDataModule
from datasets.modules.simulated import BUILTIN
from datasets.noise import check_sigma, derive_seed, gaussian_noise, keyed_generator
from datasets.readers.limits import load_array
from datasets.sources.fastmri import FastMRIFolder, holds_fastmri
from datasets.sources.images import Images, ImageSource, PatientSource, Split
from datasets.sources.measurements import MeasurementDataset
from datasets.sources.medical import BRAIN, BrainSlice
from recon.errors import at_least, not_negative, one_of
from recon.operators import CartesianMRI, channels_to_complex, complex_to_channels
from recon.operators.mri.sampling import PATTERNS, Pattern
from recon.operators.mri.sensitivity import simulated_sensitivities

# Sets the random phases apart from the noise of the same pictures.
_PHASE = 1


class ComplexImages:
    """Gray pictures (1, H, W) as complex ones with two channels: m(p) exp(i t(p)), ``(2, H, W)``.

    Pictures with two channels are complex already, and are multiplied with exp(i t(p)). The phase t is a random
    quadratic polynomial in the position, fixed by (seed, index) and scaled to max |t| = ``phase`` radians: the smooth
    phase that coils and field inhomogeneity leave in measured images.

    Parameters
    ----------
    images
        the magnitudes m, or complex pictures.
    phase
        amplitude in radians, at least 0; with 0 the images are real.
    seed
        at least 0.

    Raises
    ------
    ValueError
        phase is negative or not finite.
    DataError
        (when the picture is read) a picture is neither gray nor complex.
    """

    def __init__(self, images: Images, phase: float = 0.0, seed: int = 0) -> None:
        not_negative(phase=phase)
        self.images, self.phase, self.seed = images, phase, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = self.images[index]
        if image.ndim != 3 or image.shape[0] not in (1, 2):
            raise DataError(
                f"picture {index} has the shape {tuple(image.shape)}; MRI needs gray pictures (1, H, W), or complex "
                "ones (2, H, W)"
            )
        image = image.double()
        phase = self._smooth_phase(index, image.shape[1:])
        if len(image) == 1:
            return complex_to_channels(torch.polar(image[0], phase))
        if not self.phase:
            return image
        return complex_to_channels(channels_to_complex(image) * torch.polar(torch.ones_like(phase), phase))

    def _smooth_phase(self, index: int, shape: torch.Size) -> torch.Tensor:
        if not self.phase:
            return torch.zeros(shape, dtype=torch.float64)
        i, j = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape)
        i, j = i[:, None].expand(shape), j.expand(shape)
        coefficients = keyed_generator(self.seed, index, _PHASE).standard_normal(6)
        terms = (torch.ones(shape, dtype=torch.float64), i, j, i * j, i * i, j * j)
        phase = sum((float(c) * t for c, t in zip(coefficients, terms, strict=True)), start=torch.zeros(()))
        return self.phase * phase / phase.abs().max()


class KSpaceDataset(MeasurementDataset):
    """Complex pictures x with y = A x + σ M n: noise in the samples only, unsampled points stay zero.

    σ is the standard deviation of the real and of the imaginary part of every sample of every coil. The Fourier
    transform is unitary, so it is also that of every pixel of a fully sampled coil image. Arguments as
    ``MeasurementDataset``.
    """

    operator: CartesianMRI

    def _measured(self, exact: torch.Tensor, index: int) -> torch.Tensor:
        noise = gaussian_noise(exact.shape, self.level(index), self.seed, index, self.dtype)
        return exact + noise.masked_fill(~self.operator.mask, 0.0)


@dataclass(frozen=True)
class Sampling:
    """Which points of k-space the coils sample.

    Parameters
    ----------
    pattern : str
        Of the mask, see :mod:`recon.operators.mri.sampling`.
    acceleration : float
        Grid points for each sampled one, at least 1.
    calibration : int, optional
        Lines or side of the fully sampled centre; None is the default of the pattern.
    mask_file : str, optional
        A NumPy file with a boolean array (side, side) to use instead, True where k-space is sampled, zero frequency at
        (side // 2, side // 2).
    coils : int
        Number of coils; with more than one, sensitivities are those of ``simulated_sensitivities``.

    Raises
    ------
    ValueError
        No coil, or an unknown pattern.
    """

    pattern: Pattern = "random_lines"
    acceleration: float = 4.0
    calibration: int | None = None
    mask_file: str | None = None
    coils: int = 1

    def __post_init__(self) -> None:
        at_least(1, coils=self.coils)
        one_of(tuple(PATTERNS), pattern=self.pattern)

    def operator(self, shape: tuple[int, int], seed: int) -> CartesianMRI:
        """A for pictures of that shape, with the mask of that seed.

        Raises
        ------
        ValueError
            The pattern has no such acceleration or calibration.
        DataError
            (a ValueError) The file of the mask cannot be used.
        """
        if self.mask_file is None:
            mask = PATTERNS[self.pattern](shape, self.acceleration, self.calibration, seed)
        else:
            mask = read_mask(self.mask_file, shape)
        return CartesianMRI(mask, simulated_sensitivities(self.coils, shape) if self.coils > 1 else None)


class FlatMRI(FlatPatients, total=False):
    """See :class:`Sampling`."""

    pattern: Pattern
    acceleration: float
    calibration: int | None
    mask_file: str | None
    coils: int


class MRIDataModule(PatientDataModule):
    """Pictures as complex images x ``(2, H, W)`` with undersampled k-space y ``(coils, 2, H, W)``.

    All pictures are squares of the same side, because one mask serves them all; the attribute ``operator`` is the
    ``CartesianMRI`` that made the data, which ``BilevelModule`` takes over.

    Parameters
    ----------
    train : str
        ``"builtin"`` (photographs), a folder of MR slices in DICOM, of fully sampled fastMRI files (``FastMRIFolder``:
        complex pictures with the noise of the measurement, so ``sigma`` may be 0), or of pictures.
    val, test : str, optional
        As ``train``, or ``"rest"`` as in ``DenoisingDataModule``, or ``"brain"``, the T1 slice of ``BrainSlice``;
        ``"builtin"`` as ``test`` is the MR slices of ``BuiltinSlices``. None is a part of the training folder with
        other patients for DICOM and fastMRI (see ``PatientDataModule``), ``"builtin"`` else.
    pictures : PatientPictures
        Which pictures, of what size, and how those of patients are split.
    sampling : Sampling
        Which points of k-space the coils sample.
    phase : float
        Amplitude in radians of a smooth random phase of each picture, see ``ComplexImages``.
    sigma : float
        Standard deviation of the noise, see ``KSpaceDataset``.
    seed : int
        Of mask, phases and noise, at least 0.
    dtype : {"float32", "float64"}
        Both see the same noise.
    batches : Batches
        How many pictures are served at once.
    **flat
        Fields of ``pictures``, ``sampling`` and ``batches`` as arguments, as in older versions; with the next one they
        are refused.

    Raises
    ------
    ValueError
        An argument is out of its range.
    DataError
        (a ValueError) The mask's file cannot be used; later, as ``DenoisingDataModule``.
    ImportError
        Later: the package of a reader or of built-in slices is missing.
    """

    modality = "MR"
    named = (BRAIN,)
    operator: CartesianMRI

    def __init__(
        self,
        train: str = BUILTIN,
        val: str | None = None,
        test: str | None = None,
        pictures: PatientPictures = PatientPictures(),
        sampling: Sampling = Sampling(),
        phase: float = 0.0,
        sigma: float = 0.01,
        seed: int = 0,
        dtype: Precision = "float64",
        batches: Batches = Batches(),
        **flat: Unpack[FlatMRI],
    ) -> None:
        pictures, sampling, batches = regrouped(flat, "pictures sampling batches", pictures, sampling, batches)
        super().__init__(train, val, test, pictures.sized(), seed, dtype, batches)
        not_negative(phase=phase)
        self.sampling, self.phase, self.sigma = sampling, phase, check_sigma(sigma)
        self.operator = sampling.operator((self.pictures.side,) * 2, seed)

    def noise(self) -> dict[str, str | float]:
        return {"kind": "gaussian", "sigma": float(self.sigma)}

    def _details(self) -> dict[str, object]:
        return {"coils": self.sampling.coils, "phase": self.phase}

    def _named_source(self, name: str, split: Split) -> ImageSource:
        if split == "train" or self.train == BRAIN:
            raise DataError(f"train is {BRAIN!r}, a single picture for validation or test")
        return BrainSlice(*self.pictures.sides)

    def _patient_source(self, path: Path) -> PatientSource | None:
        return FastMRIFolder(path, *self.pictures.sides) if holds_fastmri(path) else super()._patient_source(path)

    def _samples(self, images: Images, part: str) -> MeasurementDataset:
        stream = self._stream(part)
        pictures = ComplexImages(images, self.phase, derive_seed(stream, _PHASE))
        return KSpaceDataset(pictures, self.sigma, stream, self.operator, self.dtype)


def read_mask(path: str | Path, shape: tuple[int, int]) -> torch.Tensor:
    """A sampling mask out of a NumPy file: boolean, or the integers 0 and 1.

    Raises
    ------
    DataError
        no such file, not a NumPy array, another shape or other values.
    """
    path = Path(path).expanduser()
    array = load_array(path)
    if array.shape != shape:
        raise DataError(
            f"{path}: an array of shape {array.shape}; the mask of pictures of {shape[0]}x{shape[1]} pixels has their "
            "shape"
        )
    if array.dtype != np.bool_ and not (np.issubdtype(array.dtype, np.integer) and np.isin(array, (0, 1)).all()):
        raise DataError(f"{path}: values of type {array.dtype}; a mask holds booleans, or the integers 0 and 1")
    return torch.from_numpy(array.astype(np.bool_))
