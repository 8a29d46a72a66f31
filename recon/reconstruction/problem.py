"""One inverse problem: data with their operator, noise and scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from recon.lower_level import DataFidelity, SquaredL2, first_guess
from recon.operators import Identity, LinearOperator
from recon.reconstruction.boundary import mirrored


@dataclass(frozen=True)
class DicomTarget:
    """What a result needs to become a slice derived from another one.

    Parameters
    ----------
    source : Path
        The file of the other one.
    pixel_size : tuple of float, optional
        Distances between rows and between columns in mm, of the result; None: as in ``source``.
    """

    source: Path
    pixel_size: tuple[float, float] | None = None


@dataclass(frozen=True)
class Origin:
    """Which slice of which file data are, and what is said of them.

    Parameters
    ----------
    data : Path
        The file.
    name : str
        Of the files that are written.
    unit : str
        Of the result.
    simulated : str, optional
        How y was simulated from the picture ``data``; None: y was measured.
    details : Mapping[str, object]
        Geometry, sampling and what else the report says.
    dicom : DicomTarget, optional
        The slice that the result belongs to, if it can be written as DICOM.
    warnings : tuple of str
        What was noticed in the data and may make the result wrong, for the screen and the report.
    """

    data: Path
    name: str
    unit: str
    simulated: str | None = None
    details: Mapping[str, object] = field(default_factory=dict)
    dicom: DicomTarget | None = None
    warnings: tuple[str, ...] = ()

    @classmethod
    def of_slice(cls, data: Path, index: int, unit: str) -> Self:
        """A slice of a file with several; the first one has the name of the file."""
        return cls(data, data.stem if index == 0 else f"{data.stem}_{index}", unit)


@dataclass(frozen=True)
class NoiseLevel:
    """What is known of the noise of data y.

    Parameters
    ----------
    deviation : float
        Standard deviation where the weight is 1 (real parts and imaginary parts alike), given or estimated.
    rule : str
        How it is known, in words.
    measured : int
        How many numbers of y were measured, and so have noise.
    """

    deviation: float
    rule: str
    measured: int


@dataclass(frozen=True, kw_only=True)
class Data:
    """Data y of a batch of images, ``y = A x + noise``: what a method of reconstruction needs.

    Parameters
    ----------
    y : Tensor
        (batch, ...), on the device and of the type to be computed with.
    operator : LinearOperator
        A.
    weights : Tensor, optional
        How much each datum counts, >= 0, e.g. inverse variances of the noise relative to their mean over what was
        measured; of the shape of y, or of y without the batch. None: all alike.
    term : DataFidelity
        D without the weights.
    start : Tensor, optional
        First guess for x, (batch, channels, H, W); None: :func:`recon.lower_level.first_guess`.
    scale : float
        Values of x times ``scale`` are in the unit of the result.
    sigma : Tensor or float, optional
        Standard deviation of the noise, of every image ``(batch,)`` or of all, for regularizers that depend on it.
    """

    y: Tensor
    operator: LinearOperator = field(default_factory=Identity)
    weights: Tensor | None = None
    term: DataFidelity = field(default_factory=SquaredL2)
    start: Tensor | None = None
    scale: float = 1.0
    sigma: Tensor | float | None = None

    @property
    def noise_level(self) -> Tensor | float | None:
        """Standard deviation of the noise of y, as far as it is known: of every image, or of all."""
        return self.sigma

    @property
    def source(self) -> str:
        """What messages call the data."""
        return "the data"

    @property
    def denoises(self) -> bool:
        """Whether the data are images themselves."""
        return isinstance(self.operator, Identity)

    def guess(self) -> Tensor:
        """Where to start without a better idea."""
        return first_guess(self.operator, self.y) if self.start is None else self.start

    def fidelity(self) -> DataFidelity:
        """D, weighted.

        Raises
        ------
        ValueError
            D knows no weights.
        """
        return self.term if self.weights is None else self.term.weighted(self.weights.to(self.y))

    def mirrored(self, margin: int) -> Self:
        """The same of images that go on behind their boundary; itself if ``margin`` is 0 or an operator measured it."""
        if not margin or not self.denoises:
            return self
        weights = self.weights
        if weights is not None:
            weights = mirrored(weights if weights.ndim == 4 else weights[None], margin)
        start = None if self.start is None else mirrored(self.start, margin)
        return replace(self, y=mirrored(self.y, margin), weights=weights, start=start)


@dataclass(frozen=True, kw_only=True)
class Problem(Data):
    """Data of one slice in a file, and all that is needed to choose a weight, to show and to report the result.

    x is on the scale that models are trained on; ``scale * operator.display(x)`` is in the unit of the result.

    Parameters
    ----------
    origin : Origin
        The slice.
    noise : NoiseLevel
        Of y.
    start : Tensor
        As of ``Data``.
    baseline : Tensor
        What the plain method gives, of the shape and in the unit of the result: filtered back-projection, zero-filled,
        the data themselves.
    reference : Tensor, optional
        The true image, as ``baseline``.
    """

    origin: Origin
    noise: NoiseLevel
    start: Tensor
    baseline: Tensor
    reference: Tensor | None = None

    @property
    def source(self) -> str:
        return str(self.origin.data)

    @property
    def noise_level(self) -> float:
        return self.noise.deviation

    def mirrored(self, margin: int) -> Self:
        made = super().mirrored(margin)
        return made if made is self else replace(made, noise=replace(self.noise, measured=made.y.numel()))

    def picture(self, x: Tensor) -> Tensor:
        """x (1, channels, H, W) as people look at it: (H, W), float64, in the unit of the result."""
        return self.scale * self.operator.display(x)[0, 0].detach().cpu().double()

    def residual(self, x: Tensor) -> float:
        """Root mean square of A x - y over what was measured, weighted as the fidelity."""
        with torch.no_grad():
            return self.root_mean_square(self.operator(x) - self.y)

    def root_mean_square(self, z: Tensor) -> float:
        """(sum_j w_j z_j^2 / m)^(1/2) over the m data that were measured, for z like y."""
        z = self._white(z)
        return float(z.double().norm()) / math.sqrt(self.noise.measured)

    def noise_gain(self, seed: int = 0) -> float:
        """Root mean square over the pixels of the fidelity's gradient at the truth, for noise of level 1.

        It is A^T W n with noise n of covariance W^-1, so A^T W^(1/2) n for white noise n of variance 1.
        """
        noise = torch.randn(self.y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        with torch.no_grad():
            back = self.operator.adjoint(self._white(noise.to(self.y)))
        return float(back.double().square().mean().sqrt())

    def _white(self, z: Tensor) -> Tensor:
        return z if self.weights is None else self.weights.sqrt().to(z) * z
