"""What the filters of a regularizer are before anything is learned."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from models.regularizers.filter_bank import make_filters


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
        of normal filters.
    """

    kind: str = "dct"
    seed: int = 0

    def make(self, filters: int, size: int) -> Tensor:
        """``filters`` filters, ``(filters, size, size)`` in float64, of mean zero.

        Raises
        ------
        ValueError
            for another kind, or more cosines than there are.
        """
        return make_filters(self.kind, filters, size, self.seed)
