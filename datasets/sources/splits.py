"""Splits of data sets that keep all pictures of a patient together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from datasets.errors import DataError
from datasets.noise import keyed_generator


def split_by_patient(
    patients: Sequence[str], fractions: Sequence[float] = (0.8, 0.1, 0.1), seed: int = 0
) -> list[list[int]]:
    """Split pictures into parts of which no two share a patient.

    Neighbouring slices of one patient are nearly the same picture, so a split by slices would test on training data.
    Patients are put into an order that the seed draws, and cut into parts by ``fractions`` of the number of patients,
    each part with at least one of them.

    Parameters
    ----------
    patients
        the patient of each picture.
    fractions
        of the parts, positive, with a sum of at most 1; what is left over is in none of them.
    seed
        at least 0.

    Returns
    -------
    list[list[int]]
        For each part, the numbers of its pictures in increasing order.

    Raises
    ------
    ValueError
        fractions or seed out of range.
    DataError
        fewer patients than parts.
    """
    if not fractions or any(not 0 < part <= 1 for part in fractions) or sum(fractions) > 1 + 1e-9:
        raise ValueError(f"fractions are {list(fractions)}; they must be positive with a sum of at most 1")
    different = sorted(set(patients))
    if len(different) < len(fractions):
        raise DataError(
            f"{len(different)} patients cannot be split into {len(fractions)} parts; each needs at least one"
        )
    order = [different[number] for number in keyed_generator(seed).permutation(len(different))]
    ends = _ends(len(different), fractions)
    parts = [set(order[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return [[number for number, patient in enumerate(patients) if patient in part] for part in parts]


def _ends(count: int, fractions: Sequence[float]) -> list[int]:
    """Where the parts end: rounded cumulative fractions, moved so that no part is empty."""
    ends: list[int] = []
    for number in range(len(fractions)):
        rounded = math.floor(count * sum(fractions[: number + 1]) + 0.5)
        first = (ends[-1] if ends else 0) + 1
        last = count - (len(fractions) - 1 - number)
        ends.append(min(max(rounded, first), last))
    return ends
