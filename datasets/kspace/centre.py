"""Where the zero frequency of measured k-space is, by its energy."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from datasets.errors import DataError

# The neighbourhood of the zero frequency, relative to the sides of k-space.
_SHARE = 8
# How many times the energy around the middle another place must have to be taken for the zero frequency.
_EVIDENT = 4.0


def centred(kspace: Tensor, path: Path | str) -> tuple[Tensor, tuple[str, ...]]:
    """k-space with its zero frequency at ``(height // 2, width // 2)``, and what was done.

    The energies of images are concentrated around the zero frequency: its place is where the energy of all coils in a
    square of an eighth of each side is largest, if it is at least four times that around the middle (squares go on at
    the opposite edge). Within an eighth of the middle nothing is moved. Within an eighth of the corner (along one axis
    or both), index 0 goes to n // 2, as by ``fftshift``.

    Parameters
    ----------
    kspace
        complex (coils, height, width).
    path
        for the messages.

    Raises
    ------
    DataError
        the energy is concentrated somewhere else.
    """
    energy = kspace.abs().square().sum(0).double()
    for axis, n in enumerate(energy.shape):
        reach = n // (2 * _SHARE)
        energy = sum((energy.roll(k, axis) for k in range(-reach, reach + 1)), start=torch.zeros_like(energy))
    middle = tuple(n // 2 for n in energy.shape)
    place = tuple(int(i) for i in torch.unravel_index(energy.argmax(), energy.shape))
    if float(energy[place]) < _EVIDENT * float(energy[middle]):
        return kspace, ()
    shifted = []
    for axis, n in enumerate(energy.shape):
        near = n / _SHARE
        if abs(place[axis] - middle[axis]) <= near:
            continue
        if min(place[axis], n - place[axis]) > near:
            raise DataError(
                f"{path}: its energy is concentrated around {place}, so that is where the zero frequency seems to be, "
                f"but it must be in the middle, {middle}, or in the corner, (0, 0); shift it, and fill with zeros what "
                "was not sampled"
            )
        shifted.append(axis)
    if not shifted:
        return kspace, ()
    text = (
        f"{path}: the zero frequency is in the corner of k-space (around {place}), not in the middle, {middle}; it was "
        "shifted there, as by numpy.fft.fftshift"
    )
    return torch.fft.fftshift(kspace, dim=[1 + axis for axis in shifted]), (text,)
