"""What the filters of a regularizer are before anything is learned, and of which factors they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.regularizers.filter_bank import make_filters
from recon.errors import at_least

#: numbers of channels between factors, at most: so many would make filters of 17x17 pixels of factors of 2x2
DEEPEST = 15


@dataclass(frozen=True)
class InitialFilters:
    """Filters that learning starts from. All kinds have about the same norm.

    Parameters
    ----------
    kind
        ``dct``: the lowest frequencies of the discrete cosine transform without the constant one, fewer than pixels;
        ``multiscale``: all cosines of 2x2 pixels, then of 3x3, ..., in the middle of the filters, which learn
        fastest: local differences matter most; ``normal``: of variance 2 / (s^2 (K + 1)) for K filters of s x s pixels
        (Xavier), as published.
    seed
        of all that are random.
    channels
        if there are any, the filters are compositions of small convolutions 1 -> channels_1 -> ... -> K (Goujon et al.
        2023), and what is learned are these factors: for n numbers, of side 1 + (s - 1)/(n + 1) for filters of s x s
        pixels, the first ones of mean zero and of this ``kind``, the others random. The factors share what they learn;
        energies, bounds and costs are those of the composed filters.
    in_channels
        C, of the images: more than one couples them, c_k * x = sum_a c_ka * x_a. Images of C channels are then the
        only ones; with 1, those of any images are regularized one by one. Cosines begin as those of one channel, times
        the discrete cosines of length C: one half times the constant one (of colours: gray), the others times
        differences of channels (of red, green and blue: R - B and R - 2 G + B), which are smoother in photographs.

    Raises
    ------
    ValueError
        a number of channels is less than 1, or there are more than ``DEEPEST``.
    """

    kind: str = "dct"
    seed: int = 0
    channels: tuple[int, ...] = ()
    in_channels: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))  # a list in files
        if min(self.channels, default=1) < 1:
            raise ValueError(f"channels has {min(self.channels)}, but each number must be at least 1")
        if len(self.channels) > DEEPEST:
            raise ValueError(f"channels has {len(self.channels)} numbers, but at most {DEEPEST} make sense")
        at_least(1, in_channels=self.in_channels)

    def make(self, filters: int, size: int) -> Tensor:
        """Filters ``(filters, size, size)``, or ``(filters, in_channels, size, size)``, of mean zero; float64.

        Raises
        ------
        ValueError
            for another kind, or more cosines than there are.
        """
        if self.in_channels == 1:
            return make_filters(self.kind, filters, size, self.seed)
        return self._of_channels(filters, size)

    def _of_channels(self, filters: int, size: int) -> Tensor:
        """``(filters, in_channels, size, size)``, in the scale of Xavier's variance 2 / (s^2 (K + C))."""
        channels = self.in_channels
        if self.kind == "normal" or channels == 1:
            found = make_filters(self.kind, filters * channels, size, self.seed)
            found = found.unflatten(0, (filters, channels))
            return found * ((filters * channels + 1) / (filters + channels)) ** 0.5
        points = math.pi * (torch.arange(channels, dtype=torch.float64) + 0.5) / channels
        colours = torch.cos(torch.arange(channels)[:, None] * points)
        colours = colours / colours.norm(dim=1, keepdim=True)
        first, others = (filters + 1) // 2, filters // 2
        counts = [first, *((others + channels - 1 - a) // (channels - 1) for a in range(1, channels))]
        parts = [
            make_filters(self.kind, n, size, self.seed)[:, None] * colour[:, None, None] * (n + 1) ** 0.5
            for n, colour in zip(counts, colours, strict=True)
            if n
        ]
        return torch.cat(parts) * (channels / (filters + channels)) ** 0.5

    def factors(self, filters: int, size: int) -> list[Tensor]:
        """``(channels_1, in_channels, a, a)``, ``(channels_2, channels_1, a, a)``, ...: float64, of norm 1 each.

        Raises
        ------
        ValueError
            for sizes of filters that have no factors of one size, another kind, or more cosines than there are.
        """
        count = len(self.channels) + 1
        side, rest = divmod(size - 1, count)
        if rest or side < 1:
            raise ValueError(
                f"filters of {size}x{size} pixels are no compositions of {count} convolutions of one size: with "
                f"{count - 1} numbers of channels, size must be 1 plus a multiple of {count}"
            )
        generator = torch.Generator().manual_seed(self.seed)
        found = [self._of_channels(self.channels[0], side + 1)]
        for entering, leaving in zip(self.channels, (*self.channels[1:], filters), strict=True):
            shape = (leaving, entering, side + 1, side + 1)
            found.append(torch.randn(shape, dtype=torch.float64, generator=generator))
        return [f / f.flatten(1).norm(dim=1)[:, None, None, None] for f in found]


def composed(factors: list[Tensor]) -> Tensor:
    """The filters ``(K, s, s)`` whose correlation with an image is that with all factors, one after another.

    ``(K, C, s, s)`` where the first factor has C > 1 channels.
    """
    found = (factors[0] - factors[0].mean((2, 3), keepdim=True)).transpose(0, 1)
    for factor in factors[1:]:
        found = F.conv2d(found, factor.flip(2, 3), padding=factor.shape[-1] - 1)
    return found[0] if len(found) == 1 else found.transpose(0, 1)
