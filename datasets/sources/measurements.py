"""Pictures together with simulated measurements of them, and measurements alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.utils.data import Dataset

from datasets.noise import check_levels, gaussian_noise, keyed_generator
from datasets.sources.images import Images


class Sample(NamedTuple):
    """A picture and its measurement; with a batch axis in front when it comes out of a data loader."""

    x: torch.Tensor
    """Clean picture, (C, H, W)."""
    y: torch.Tensor
    """Measurement A x + noise, of the operator's range shape."""
    index: int | torch.Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    """Number of the picture in its data set."""


class LevelSample(NamedTuple):
    """A :class:`Sample` with a noise level of its own; with a batch axis in front when it comes out of a loader."""

    x: torch.Tensor
    y: torch.Tensor
    index: int | torch.Tensor  # type: ignore[assignment]
    sigma: float | torch.Tensor
    """Standard deviation of the noise."""


class LevelMeasurement(NamedTuple):
    """A :class:`Measurement` with a noise level of its own; with a batch axis in front out of a data loader."""

    y: torch.Tensor
    index: int | torch.Tensor  # type: ignore[assignment]
    sigma: float | torch.Tensor


class Measurement(NamedTuple):
    """A measurement whose picture is not known; with a batch axis in front when it comes out of a data loader."""

    y: torch.Tensor
    index: int | torch.Tensor  # type: ignore[assignment]


class WeightedMeasurement(NamedTuple):
    """A measurement of which not everything was measured; with a batch axis in front out of a data loader."""

    y: torch.Tensor
    weights: torch.Tensor
    """Of the shape of y: 1, or 0 where nothing was measured and y holds what stands in for it."""
    index: int | torch.Tensor  # type: ignore[assignment]


class MeasurementDataset(Dataset[Sample]):
    """Pictures x with measurements y = A x + σ n, n ~ N(0, I) fixed by (seed, index).

    Parameters
    ----------
    images
        pictures of shape (C, H, W).
    sigma
        standard deviation σ of the noise on the scale of A x; or the ends of a range, from which that of every picture
        is drawn uniformly, by (seed, index) alone. Samples then say theirs.
    seed
        of the noise, at least 0.
    operator
        A, a module that maps (batch, C, H, W) to (batch, *range_shape), in the type ``dtype`` and on the CPU; None is
        the identity.
    dtype
        of x and y. The noise is drawn in float64 and rounded, see ``gaussian_noise``.

    Raises
    ------
    ValueError
        sigma is negative or not finite, or no range.
    """

    def __init__(
        self,
        images: Images,
        sigma: float | tuple[float, float],
        seed: int,
        operator: torch.nn.Module | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.images, self.sigma, self.seed = images, check_levels(sigma), seed
        self.operator, self.dtype = operator, dtype

    def __len__(self) -> int:
        return len(self.images)

    @torch.no_grad()
    def __getitem__(self, index: int) -> Sample | LevelSample:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside of 0 to {len(self) - 1}")
        x, exact = self._exact(index)
        y = self._measured(exact, index)
        return LevelSample(x, y, index, self.level(index)) if isinstance(self.sigma, tuple) else Sample(x, y, index)

    def level(self, index: int) -> float:
        """The standard deviation of the noise of picture ``index``."""
        if not isinstance(self.sigma, tuple):
            return self.sigma
        first, last = self.sigma
        return first + (last - first) * keyed_generator(self.seed, index, 1).random()

    def _exact(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """x and A x of picture ``index``."""
        x = self.images[index].to(self.dtype)
        return x, x if self.operator is None else self.operator(x[None])[0]

    def _measured(self, exact: torch.Tensor, index: int) -> torch.Tensor:
        """y, out of A x of picture ``index``."""
        return exact + gaussian_noise(exact.shape, self.level(index), self.seed, index, self.dtype)


class StackedSamples(Dataset[Sample]):
    """Pictures and measurements with a batch axis in front, one by one, and their noise levels if these differ."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, sigma: torch.Tensor | None = None) -> None:
        self.x, self.y, self.sigma = x, y, sigma

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Sample | LevelSample:  # type: ignore[override]
        if self.sigma is not None:
            return LevelSample(self.x[index], self.y[index], index, self.sigma[index])
        return Sample(self.x[index], self.y[index], index)


def stack_samples(samples: MeasurementDataset) -> tuple[torch.Tensor, torch.Tensor]:
    """All pictures and all measurements, of one shape each, as two tensors with a batch axis in front."""
    pairs = [samples[index] for index in range(len(samples))]
    return torch.stack([pair.x for pair in pairs]), torch.stack([pair.y for pair in pairs])


class SimulatedMeasurements(Dataset[Measurement]):
    """The measurements of a ``MeasurementDataset`` without the pictures they were made from."""

    def __init__(self, samples: MeasurementDataset) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Measurement | LevelMeasurement:  # type: ignore[override]
        sample = self.samples[index]
        if isinstance(sample, LevelSample):
            return LevelMeasurement(sample.y, index, sample.sigma)
        return Measurement(sample.y, index)


class MeasuredImages(Dataset[Measurement]):
    """Pictures that are measurements already: nothing is added to them."""

    def __init__(self, images: Images, dtype: torch.dtype = torch.float64) -> None:
        self.images = images
        self.dtype = dtype

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Measurement:
        return Measurement(self.images[index].to(self.dtype), index)
