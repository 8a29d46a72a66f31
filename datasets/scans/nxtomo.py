"""Raw frames of NXtomo files: projections, flat and dark fields told apart by their image key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datasets.errors import DataError
from datasets.readers.hdf5 import Bounded, attribute
from datasets.readers.optional import require
from datasets.scans.frames import Angles, Frames, Given, angles_in_unit, detector_row

if TYPE_CHECKING:
    import h5py

# NeXus, application definition NXtomo: image_key of a frame; others (3, invalid; -1, alignment) are left out.
_PROJECTION = 0
_KEYS = {"flat": 1, "dark": 2}

_MM = {"m": 1000.0, "cm": 10.0, "mm": 1.0, "um": 1e-3, "µm": 1e-3, "nm": 1e-6}
for _long, _short in (("meter", "m"), ("metre", "m"), ("millimeter", "mm"), ("micrometer", "um"), ("micron", "um")):
    _MM[_long] = _MM[_long + "s"] = _MM[_short]


def holds_nxtomo(file: h5py.File) -> bool:
    """Whether an open HDF5 file has an image key, and nothing of the DXchange format."""
    return "exchange" not in file and bool(_named(file, "image_key"))


def read_nxtomo(file: h5py.File, row: int, given: Given, path: Path) -> Frames:
    """The frames of an open file in the NeXus format NXtomo.

    Frames ``data`` (frames, rows, columns) with their ``image_key``, 0 for projections, 1 for flat and 2 for dark
    fields. ``image_key`` lies beside ``data``; ``rotation_angle``, in degrees (or radians, if its attribute ``units``
    says so), there, or elsewhere in the same entry (in ``sample``). It has one angle for every frame, or for every
    projection. ``x_pixel_size`` is the detector spacing where it has a unit of length.

    Raises
    ------
    DataError
        no image key or several, no data beside it, shapes that do not fit, no projection, NaN, no such row; fields or
        angles that are neither there nor given.
    """
    keys = _named(file, "image_key")
    if len(keys) != 1:
        raise DataError(
            f"{path}: has {len(keys)} datasets image_key ({', '.join(k.name for k in keys) or 'none'}); valid is one, "
            "that of one scan"
        )
    group = keys[0].parent
    # image_key_control tells frames for alignment (-1) apart, which image_key may call projections
    control = _found(file, group, "image_key_control", path)
    key = np.asarray(Bounded(keys[0], path) if control is None else control).ravel().astype(int)
    stored = Bounded(group["data"], path) if "data" in group else None
    if stored is None or stored.ndim != 3 or len(stored) != len(key):
        shape = "no data" if stored is None else f"data of shape {stored.shape}"
        raise DataError(f"{path}: {keys[0].name} has {len(key)} entries, but {group.name} {shape}")
    if not (key == _PROJECTION).any():
        raise DataError(f"{path}: no frame has the image key {_PROJECTION}, that of a projection")
    _, rows, columns = stored.shape
    data = detector_row(stored, row, group["data"].name, path)

    def mean(name: str) -> np.ndarray | None:
        chosen = key == _KEYS[name]
        return np.asarray(data[chosen].mean(0)) if chosen.any() else None

    return Frames(
        data[key == _PROJECTION],
        given.fields_or(mean, ("image_key", "image_key"), (row, rows, columns), path),
        given.angles_or(lambda: _angles(file, group, key, path)),
        _spacing(_found(file, group, "x_pixel_size", path)),
    )


def _named(file: h5py.File, name: str) -> list[h5py.Dataset]:
    """All datasets of this name, each once."""
    dataset = require("h5py", "reading HDF5").Dataset
    found: list[h5py.Dataset] = []

    def visit(key: str, item: object) -> None:
        if key.rpartition("/")[2] == name and isinstance(item, dataset):
            found.append(item)

    file.visititems(visit)
    return found


def _found(file: h5py.File, group: h5py.Group, name: str, path: Path) -> Bounded | None:
    """The dataset of this name in a group, or the only one in the same entry; None if there is none."""
    if name in group:
        return Bounded(group[name], path)
    entry = "/" + group.name.strip("/").partition("/")[0] + "/"
    others = [item for item in _named(file, name) if item.name.startswith(entry)]
    if len(others) > 1:
        raise DataError(f"{path}: has several datasets {name}, {', '.join(item.name for item in others)}")
    return Bounded(others[0], path) if others else None


def _angles(file: h5py.File, group: h5py.Group, key: np.ndarray, path: Path) -> Angles:
    stored = _found(file, group, "rotation_angle", path)
    if stored is None:
        raise DataError(f"{path}: has no rotation_angle; give the angles (--angles: a file, or the arc in degrees)")
    count, projections = int(np.prod(stored.shape)), key == _PROJECTION
    if count == len(key):
        return angles_in_unit(stored, path, projections)
    if count != int(projections.sum()):
        raise DataError(f"{path}: rotation_angle has {count} angles for {len(key)} frames")
    return angles_in_unit(stored, path)


def _spacing(stored: Bounded | None) -> float | None:
    if stored is None or np.prod(stored.shape) != 1:
        return None
    factor = _MM.get(attribute(stored, "units").strip().lower())
    return None if factor is None else factor * float(np.asarray(stored).item())
