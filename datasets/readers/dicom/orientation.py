"""Orientation of slices: from the pixels as a scanner stored them to the view that everyone expects, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Slices whose normal is closer than this to the patient's long axis (cosine of 45 degrees) count as transverse.
_TRANSVERSE = 0.7071


@dataclass(frozen=True)
class Display:
    """Transposition, then reversal of rows and of columns, that turn stored pixels into the usual view."""

    transposed: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False

    def apply(self, stored: np.ndarray) -> np.ndarray:
        """Stored pixels (rows, columns) to the usual view."""
        picture = stored.T if self.transposed else stored
        picture = picture[::-1] if self.rows_reversed else picture
        return picture[:, ::-1] if self.columns_reversed else picture

    def undo(self, picture: np.ndarray) -> np.ndarray:
        """The usual view back to pixels as they are stored; ``undo(apply(x)) = x``."""
        picture = picture[:, ::-1] if self.columns_reversed else picture
        picture = picture[::-1] if self.rows_reversed else picture
        return picture.T if self.transposed else picture


#: Pixels as they are stored.
AS_STORED = Display()


def directions(orientation: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """ImageOrientationPatient: where column and row numbers of the stored pixels grow, unit vectors (3,)."""
    along_columns, along_rows = np.array([float(v) for v in orientation]).reshape(2, 3)
    return along_columns, along_rows


def display_of(orientation: Sequence[float] | None) -> Display:
    """How to turn a slice so that columns run to the patient's left and rows to the back, as radiologists look at it.

    Parameters
    ----------
    orientation
        ImageOrientationPatient, the directions in which column and row numbers of the stored pixels grow, on axes to
        the patient's left, back and head (DICOM PS3.3, C.7.6.2.1.1). Slices that are tilted are turned to the nearest
        axes. Slices that are not transverse, and None, stay as stored.
    """
    if orientation is None or len(orientation) != 6:
        return AS_STORED
    along_columns, along_rows = directions(orientation)
    if abs(np.cross(along_columns, along_rows)[2]) < _TRANSVERSE:
        return AS_STORED
    transposed = bool(abs(along_columns[1]) > abs(along_columns[0]))
    to_left, to_back = (along_rows, along_columns) if transposed else (along_columns, along_rows)
    return Display(transposed, rows_reversed=bool(to_back[1] < 0), columns_reversed=bool(to_left[0] < 0))
