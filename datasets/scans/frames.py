"""Counts of a detector as files of synchrotrons hold them: frames of the DXchange format, or of another reader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datasets.errors import DataError, check_finite
from datasets.readers.hdf5 import Bounded, attribute, find_dataset
from datasets.scans.counts import Field, field_row

if TYPE_CHECKING:
    import h5py

#: (radians, None), or (None, degrees), see ``datasets.scans.angles.view_angles``
Angles = tuple[np.ndarray | None, np.ndarray | float | None]


@dataclass(frozen=True)
class Given:
    """What stands in for what a file says; None: nothing."""

    flat: Field | None = None
    dark: Field | None = None
    angles: np.ndarray | None = None
    """Radians."""
    angles_degrees: np.ndarray | float | None = None
    """Degrees, or one number, the arc of the scan."""

    def angles_or(self, own: Callable[[], Angles]) -> Angles:
        """The angles; those of the file, which are read only then, where none are given."""
        if self.angles is None and self.angles_degrees is None:
            return own()
        return self.angles, self.angles_degrees

    def fields_or(
        self, own: Callable[[str], np.ndarray | None], places: tuple[str, str], shape: tuple[int, int, int], path: Path
    ) -> tuple[np.ndarray, np.ndarray]:
        """Flat and dark field of one detector row, (columns,); those of the file, by name, where none are given.

        Parameters
        ----------
        own : callable
            The field of a name, ``"flat"`` or ``"dark"``; None where the file has none.
        places : tuple of str
            Where the file should have the two.
        shape : tuple of int
            Row, rows and columns.
        path : Path
            For messages.

        Raises
        ------
        DataError
            There is none, or it does not fit.
        """
        made = []
        for name, given, place in (("flat", self.flat, places[0]), ("dark", self.dark, places[1])):
            found = own(name) if given is None else field_row(given, name, shape, path)
            if found is None:
                raise DataError(
                    f"{path}: has no {name} fields ({place}), without which counts are no line integrals; give the "
                    f"{name} count, an array or a file as `{name}` (--{name})"
                )
            made.append(found)
        return made[0], made[1]


@dataclass(frozen=True)
class Frames:
    """One detector row of the frames of a file."""

    data: np.ndarray
    """Projections, (views, columns) float64."""
    fields: tuple[np.ndarray, np.ndarray]
    """Means over the flat and over the dark fields, (columns,)."""
    angles: Angles
    detector_spacing: float | None = None
    """In mm, where the file gives it with its unit."""


def read_dxchange(file: h5py.File, row: int, given: Given, path: Path) -> Frames:
    """The frames of an open file in the DXchange format (De Carlo et al., J. Synchrotron Rad. 21, 2014).

    Datasets: ``exchange/data`` (angles, rows, columns), ``exchange/data_white`` and ``exchange/data_dark`` (frames,
    rows, columns), all raw counts in a common unit, and ``exchange/theta`` in degrees (or radians, if its attribute
    ``units`` says so).

    Raises
    ------
    DataError
        a dataset that is missing and not given, shapes that do not fit, NaN, no such row.
    """
    stored = find_dataset(file, "exchange/data", path)
    if stored.ndim != 3:
        raise DataError(f"{path}: exchange/data has the shape {stored.shape}; valid is (angles, rows, columns)")
    data = detector_row(stored, row, "exchange/data", path)
    _, rows, columns = stored.shape
    keys = {"flat": "exchange/data_white", "dark": "exchange/data_dark"}

    def mean(name: str) -> np.ndarray | None:
        key = keys[name]
        if key not in file:
            return None
        frames = find_dataset(file, key, path)
        if frames.ndim != 3 or frames.shape[1:] != (rows, columns) or frames.shape[0] == 0:
            raise DataError(f"{path}: {key} has the shape {frames.shape}; valid is (frames, {rows}, {columns})")
        return np.asarray(detector_row(frames, row, key, path).mean(0))

    def theta() -> Angles:
        try:
            found = find_dataset(file, "exchange/theta", path)
        except DataError as error:
            raise DataError(f"{error}; give the angles (--angles: a file, or the arc in degrees)") from error
        return angles_in_unit(found, path)

    fields = given.fields_or(mean, (keys["flat"], keys["dark"]), (row, rows, columns), path)
    return Frames(data, fields, given.angles_or(theta))


def detector_row(stored: Bounded, row: int, name: str, path: Path) -> np.ndarray:
    """One detector row of frames (frames, rows, columns), float64.

    Raises
    ------
    DataError
        no such row, values that are not finite.
    """
    if not 0 <= row < stored.shape[1]:
        raise DataError(f"{path}: there is no detector row {row}; valid are 0 to {stored.shape[1] - 1}")
    values = np.asarray(stored[:, row], dtype=np.float64)
    check_finite(values, path, name)
    return values


def angles_in_unit(stored: Bounded, path: Path, chosen: np.ndarray | None = None) -> Angles:
    """Angles of a file in their unit, without one in degrees; those that are ``chosen``, or all.

    Raises
    ------
    DataError
        another unit.
    """
    values = np.asarray(stored, dtype=np.float64).ravel()
    values = values if chosen is None else values[chosen]
    unit = attribute(stored, "units")
    name = unit.strip().lower()
    if name.startswith("rad"):
        return values, None
    if name and not name.startswith(("deg", "°")):
        raise DataError(f"{path}: its angles have the unit {unit!r}; valid are degrees and radians; give --angles")
    return None, values
