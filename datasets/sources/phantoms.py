"""Phantoms that are computed: random ellipses to learn from, and the Shepp-Logan head to test with."""

from __future__ import annotations

import math

import numpy as np
import skimage.data
import skimage.transform
import torch

from datasets.errors import DataError
from datasets.noise import keyed_generator
from datasets.sources.images import ImageSource
from recon.errors import at_least, not_negative


class RandomEllipses(ImageSource):
    """Sums of random ellipses as in Adler and Öktem, Learned primal-dual reconstruction (IEEE TMI 37, 2018).

    On the square [-1, 1]^2, a picture has Poisson(50) ellipses. Each adds a constant, (U - 1/2) E_1 with U uniform on
    [0, 1] and E_1 exponential of mean 0.4; its semi-axes are exponential of mean 0.2, its centre is uniform on the
    square and its angle on [0, 2π]. So far this is the authors' code. Attenuation is not negative, so the sum is then
    clipped to [0, 1], and to 0 outside of the inscribed disc, which every view of a scan sees in full.

    Picture i depends on (seed, i, resolution) alone, so more pictures only append, and parts of an experiment with
    different seeds have no picture in common.

    Parameters
    ----------
    count
        number of pictures.
    resolution
        pixels at each side. Pixels are averages over ``oversampling``^2 points.
    seed
        at least 0.
    n_ellipses
        mean number of ellipses.
    interior
        whether pictures are cut to the inscribed disc.
    oversampling
        points for each side of a pixel.

    Raises
    ------
    ValueError
        an argument is out of its range.
    """

    def __init__(
        self,
        count: int,
        resolution: int = 128,
        seed: int = 0,
        n_ellipses: float = 50.0,
        interior: bool = True,
        oversampling: int = 2,
    ) -> None:
        at_least(1, count=count, resolution=resolution, oversampling=oversampling)
        not_negative(n_ellipses=n_ellipses)
        keyed_generator(seed)  # for its check
        self.resolution, self.seed, self.n_ellipses = resolution, seed, n_ellipses
        self.interior, self.oversampling = interior, oversampling
        super().__init__(f"ellipses_{seed}_{index:05d}" for index in range(count))

    def _load(self, name: str) -> torch.Tensor:
        draw = keyed_generator(self.seed, int(name.rpartition("_")[2]))
        side = self.resolution * self.oversampling
        axis = (2 * np.arange(side) + 1) / side - 1
        picture = np.zeros((side, side))
        for _ in range(draw.poisson(self.n_ellipses)):
            value = (draw.random() - 0.5) * draw.exponential(0.4)
            semi = 0.2 * draw.exponential(size=2)
            centre, angle = 2 * draw.random(2) - 1, 2 * math.pi * draw.random()
            _add_ellipse(picture, axis, value, semi, centre, angle)
        picture = picture.clip(0, 1)
        if self.interior:
            picture[axis[:, None] ** 2 + axis[None, :] ** 2 > 1] = 0
        blocks = picture.reshape(self.resolution, self.oversampling, self.resolution, self.oversampling)
        return torch.from_numpy(blocks.mean((1, 3)))[None]


def _add_ellipse(
    picture: np.ndarray, axis: np.ndarray, value: float, semi: np.ndarray, centre: np.ndarray, angle: float
) -> None:
    """Add ``value`` inside of an ellipse, in place; only the square around it is looked at."""
    reach = float(semi.max())
    rows, columns = (
        slice(*np.searchsorted(axis, [middle - reach, middle + reach])) for middle in (centre[0], centre[1])
    )
    x, y = axis[rows, None] - centre[0], axis[None, columns] - centre[1]
    along, across = x * math.cos(angle) + y * math.sin(angle), -x * math.sin(angle) + y * math.cos(angle)
    # multiplied out, as a semi-axis may be as good as zero
    inside = (along * semi[1]) ** 2 + (across * semi[0]) ** 2 <= (semi[0] * semi[1]) ** 2
    picture[rows, columns] += value * inside


class SheppLogan(ImageSource):
    """The Shepp-Logan head phantom with Toft's higher contrasts, on [0, 1], as it comes with scikit-image.

    Parameters
    ----------
    resolution
        pixels at each side, reduced from 400 with antialiasing.

    Raises
    ------
    DataError
        the resolution is not within 1 to 400.
    """

    def __init__(self, resolution: int = 400) -> None:
        if not 1 <= resolution <= 400:
            raise DataError(f"resolution is {resolution}; valid for the Shepp-Logan phantom are 1 to 400 pixels")
        super().__init__(["shepp_logan"], size=resolution)

    def _load(self, name: str) -> torch.Tensor:
        return torch.from_numpy(np.asarray(skimage.data.shepp_logan_phantom(), dtype=np.float64))[None]
