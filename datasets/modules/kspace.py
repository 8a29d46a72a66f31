"""Measured k-space: the LightningDataModule that serves it with its operator."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal, TypedDict, Unpack

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from datasets.errors import DataError
from datasets.kspace.files import load_kspace, read_noise_scan
from datasets.kspace.ismrmrd import MeasuredKSpace
from datasets.kspace.noise import NoiseEstimate, estimate_noise, measured_noise
from datasets.modules.groups import Precision, regrouped, torch_dtype
from datasets.sources.measurements import MeasuredImages, Measurement, Sample, StackedSamples
from recon.errors import one_of, positive
from recon.operators import CartesianMRI, complex_to_channels, root_sum_of_squares, zero_filled
from recon.operators.mri.sampling import PATTERNS, Pattern
from recon.operators.mri.sensitivity import NoCalibrationError, estimate_sensitivities, sampled_points

# Share of the points of fully sampled k-space that are not exactly zero, at least.
_FULL = 0.99


@dataclass(frozen=True)
class SensitivityOptions:
    """How sensitivities are estimated, see ``estimate_sensitivities``.

    Parameters
    ----------
    kernel : int
        Side of the kernels in k-space.
    noise_level : float
        Relative to the largest singular value, below which singular values are those of noise.
    support : float
        Eigenvalue below which a pixel is outside of the object.
    """

    kernel: int = 6
    noise_level: float = 0.03
    support: float = 0.8


@dataclass(frozen=True)
class Undersampling:
    """The mask that fully sampled data are undersampled with in retrospect, see :mod:`recon.operators.mri.sampling`.

    Parameters
    ----------
    acceleration : float, optional
        Grid points for each sampled one, at least 1; None takes what was measured.
    pattern : str
        Of the mask.
    calibration : int, optional
        Lines or side of the fully sampled centre; None is the default of the pattern.
    seed : int
        Of the mask.

    Raises
    ------
    ValueError
        An unknown pattern.
    """

    acceleration: float | None = None
    pattern: Pattern = "random_lines"
    calibration: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        one_of(tuple(PATTERNS), pattern=self.pattern)


class FlatKSpace(TypedDict, total=False):
    """See :class:`SensitivityOptions` and :class:`Undersampling`."""

    kernel: int
    noise_level: float
    support: float
    acceleration: float | None
    pattern: Pattern
    calibration: int | None
    seed: int


class KSpaceDataModule(pl.LightningDataModule):
    """One slice of measured k-space: y ``(1, coils, 2, H, W)`` and the operator that fits it.

    Without ``undersampling``, for prediction only. With it, fully sampled data are undersampled in retrospect: y is the
    measured k-space on a mask, zero elsewhere, with all its coils and its own noise. The true image x is the
    combination sum_c conj(s_c) F^-1 k_c of the full data with the sensitivities of the operator, and training,
    validation and test are served this one pair too. Many slices to learn from are for ``MRIDataModule``, as every
    slice of several coils has an operator of its own.

    Otherwise the mask is where any coil is not zero. The sensitivities of several coils are estimated from the fully
    sampled centre of y by ``estimate_sensitivities``, as if the rest had never been measured. ``BilevelModule``
    takes over ``operator`` from here.

    Regularizers are not invariant to the scale of the image, and that of k-space is arbitrary: the data are divided by
    ``scale``, and reconstructions have to be multiplied with it to be on the scale of the file.

    Coils whose noise is correlated or differs are whitened (``NoiseEstimate.whitened``) before anything else, where
    their covariance is known: from ``noise_scan``, from acquisitions of noise in the file, or from the data where
    ``estimate_noise`` is certain.

    Parameters
    ----------
    path : str
        The file, see ``load_kspace``.
    slice_index : int
        Of an HDF5 file.
    scale : float, optional
        None is the maximum of the zero-filled root-sum-of-squares image, which becomes 1.
    sensitivities : SensitivityOptions
        How those of several coils are estimated.
    undersampling : Undersampling
        Of fully sampled data in retrospect; by default, what was measured is taken.
    dtype : {"float32", "float64"}
        Of the measurement.
    noise_scan : str, optional
        File with noise alone, see ``read_noise_scan``.
    noise : float, optional
        Standard deviation of the real and imaginary parts of samples, on the scale of the file, of independent coils:
        nothing is estimated then, nor whitened. None estimates it.
    **flat
        Fields of ``sensitivities`` and ``undersampling`` as arguments, as in older versions; with the next one they
        are refused.

    Raises
    ------
    ValueError
        An argument is out of its range.
    DataError
        (a ValueError) in ``setup``, or when data are asked for: the file cannot be used, the centre of its k-space is
        not sampled, or with ``undersampling``, its k-space is undersampled already.
    """

    def __init__(
        self,
        path: str,
        slice_index: int = 0,
        scale: float | None = None,
        sensitivities: SensitivityOptions = SensitivityOptions(),
        undersampling: Undersampling = Undersampling(),
        dtype: Precision = "float64",
        noise_scan: str | None = None,
        noise: float | None = None,
        **flat: Unpack[FlatKSpace],
    ) -> None:
        super().__init__()
        positive(scale=scale, noise=noise)
        if noise is not None and noise_scan is not None:
            raise ValueError("noise and noise_scan exclude each other; give one of them")
        self.sensitivities, self.undersampling = regrouped(
            flat, "sensitivities undersampling", sensitivities, undersampling
        )
        self.path, self.slice_index, self.given_scale = path, slice_index, scale
        self.dtype = torch_dtype(dtype)
        self.noise_scan, self.given_noise = noise_scan, noise

    def setup(self, stage: str) -> None:
        """Read the file and estimate the sensitivities, so that errors come before the first computation."""
        if stage != "predict" and self.undersampling.acceleration is None:
            raise ValueError(
                f"measured k-space has no true images: it serves prediction only, not {stage!r}. If it is fully "
                "sampled, set acceleration"
            )
        _ = self.operator
        for text in self.file.warnings:
            warnings.warn(text, stacklevel=2)

    @cached_property
    def file(self) -> MeasuredKSpace:
        """What the file holds, before whitening."""
        return load_kspace(self.path, self.slice_index)

    @cached_property
    def covariance(self) -> NoiseEstimate | None:
        """The noise of the samples of ``file``, or None where ``noise`` was given."""
        if self.given_noise is not None:
            return None
        scan, name = self.file.noise, self.path
        if self.noise_scan is not None:
            scan, name = read_noise_scan(self.noise_scan), self.noise_scan
        if scan is None:
            return estimate_noise(self.file.values, sampled_points(self.file.values))
        coils = len(self.file.values)
        if len(scan) != coils:
            raise DataError(f"{name}: noise of {len(scan)} coils, but {self.path} has {coils}")
        try:
            return measured_noise(scan, f"measured, in {name}")
        except ValueError as error:
            raise DataError(f"{name}: {error}") from error

    @property
    def whitened(self) -> bool:
        """Whether the coils were replaced by combinations whose noise is independent and alike."""
        return self.covariance is not None and self.covariance.certain and not self.covariance.alike

    @cached_property
    def noise(self) -> float:
        """Root mean square over the coils of the noise in the real (or imaginary) part of ``measured``."""
        if self.covariance is None:
            assert self.given_noise is not None
            return self.given_noise
        return self.covariance.level if self.whitened else self.covariance.root_mean_square

    @cached_property
    def measured(self) -> torch.Tensor:
        """What was measured, complex128 ``(coils, H, W)``: as in the file, or whitened."""
        if not self.whitened or self.covariance is None:
            return self.file.values
        return self.covariance.whitened(self.file.values)

    @cached_property
    def kspace(self) -> torch.Tensor:
        """What reconstructions are made from, complex128 ``(coils, H, W)``: all that was measured, or part of it."""
        return self.measured if self.undersampling.acceleration is None else self.measured * self._mask

    @cached_property
    def _mask(self) -> torch.Tensor:
        sampled, chosen = sampled_points(self.measured), self.undersampling
        if chosen.acceleration is None:
            return sampled
        # Rows and columns of zeros at the rim are resolution that was not asked for, not undersampling.
        rows, columns = (torch.nonzero(sampled.any(axis)).flatten() for axis in (1, 0))
        inside = sampled[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        if float(inside.double().mean()) < _FULL:
            raise DataError(
                f"{self.path}: only {int(inside.sum())} of {inside.numel()} points of k-space are sampled; "
                "acceleration needs fully sampled data"
            )
        shape = (int(sampled.shape[0]), int(sampled.shape[1]))
        return PATTERNS[chosen.pattern](shape, chosen.acceleration, chosen.calibration, chosen.seed)

    @cached_property
    def scale(self) -> float:
        """The number that data are divided by."""
        if self.given_scale is not None:
            return self.given_scale
        return float(root_sum_of_squares(zero_filled(complex_to_channels(self.kspace))).max())

    @cached_property
    def operator(self) -> CartesianMRI:
        """A, with the mask of y and estimated sensitivities."""
        return CartesianMRI(self._mask, self._maps)

    @cached_property
    def _maps(self) -> torch.Tensor | None:
        if len(self.kspace) == 1:
            return None
        try:
            return estimate_sensitivities(self.kspace, self._mask, **asdict(self.sensitivities))
        except NoCalibrationError as error:
            raise DataError(f"{self.path}: {error}") from error

    def measurement(self) -> torch.Tensor:
        """The scaled data y, ``(coils, 2, H, W)``."""
        return (complex_to_channels(self.kspace) / self.scale).to(self.dtype)

    def target(self) -> torch.Tensor:
        """The true image x for the scaled data, ``(2, H, W)``.

        Raises
        ------
        ValueError
            without ``acceleration``.
        """
        if self.undersampling.acceleration is None:
            raise ValueError("measured k-space has no true image; if it is fully sampled, set acceleration")
        full = CartesianMRI(torch.ones_like(self._mask), self._maps)
        return (full.adjoint(complex_to_channels(self.measured)[None])[0] / self.scale).to(self.dtype)

    def train_dataloader(self) -> DataLoader[Sample]:
        """One batch with one ``Sample``; so are those of validation and test, which are the same."""
        return DataLoader(StackedSamples(self.target()[None], self.measurement()[None]), batch_size=1)

    def val_dataloader(self) -> DataLoader[Sample]:
        return self.train_dataloader()

    def test_dataloader(self) -> DataLoader[Sample]:
        return self.train_dataloader()

    def predict_dataloader(self) -> DataLoader[Measurement]:
        """One batch with one ``Measurement``."""
        return DataLoader(MeasuredImages([self.measurement()], self.dtype), batch_size=1)

    def names(self, stage: Literal["val", "test", "predict"] = "predict") -> list[str]:
        """The file."""
        return [self.path]
