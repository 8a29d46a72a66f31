"""Raw frames of NXtomo files: projections, flat and dark fields told apart by their image key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.readers.hdf5 import Bounded, check_finite
from datasets.readers.optional import require
from datasets.readers.pictures import DataError

# NeXus, application definition NXtomo: image_key of a frame; others (3, invalid; -1, alignment) are left out.
_PROJECTION, _FLAT, _DARK = 0, 1, 2

_MM = {"m": 1000.0, "cm": 10.0, "mm": 1.0, "um": 1e-3, "µm": 1e-3, "nm": 1e-6}
for _long, _short in (("meter", "m"), ("metre", "m"), ("millimeter", "mm"), ("micrometer", "um"), ("micron", "um")):
    _MM[_long] = _MM[_long + "s"] = _MM[_short]


@dataclass(frozen=True)
class Frames:
    """One detector row of the frames of a file."""

    data: np.ndarray
    """Projections, (views, columns) float64."""
    flat: np.ndarray | None
    """Mean over the flat fields, (columns,); None if the file has none."""
    dark: np.ndarray | None
    angles: np.ndarray | None
    """(views,), degrees unless ``angle_units`` says otherwise; None if the file has none."""
    angle_units: str
    detector_spacing: float | None
    """In mm, where the file gives it with its unit."""
    rows: int


def read_frames(file: Any, row: int, path: Path) -> Frames:
    """The frames of an open NXtomo file.

    ``image_key`` lies beside ``data``; ``rotation_angle`` there, or elsewhere in the same entry (in ``sample``). It has
    one angle for every frame, or for every projection.

    Raises
    ------
    DataError
        no image key or several, no data beside it, shapes that do not fit, no projection, NaN, no such row.
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
    if not 0 <= row < stored.shape[1]:
        raise DataError(f"{path}: there is no detector row {row}; valid are 0 to {stored.shape[1] - 1}")
    if not (key == _PROJECTION).any():
        raise DataError(f"{path}: no frame has the image key {_PROJECTION}, that of a projection")
    data = np.asarray(stored[:, row], dtype=np.float64)
    check_finite(data, group["data"].name, path)
    angles, units = _angles(file, group, key, path)
    return Frames(
        data=data[key == _PROJECTION],
        flat=data[key == _FLAT].mean(0) if (key == _FLAT).any() else None,
        dark=data[key == _DARK].mean(0) if (key == _DARK).any() else None,
        angles=angles,
        angle_units=units,
        detector_spacing=_spacing(_found(file, group, "x_pixel_size", path)),
        rows=int(stored.shape[1]),
    )


def _named(file: Any, name: str) -> list[Any]:
    """All datasets of this name, each once."""
    h5py = require("h5py", "reading HDF5")
    found: list[Any] = []

    def visit(key: str, item: Any) -> None:
        if key.rpartition("/")[2] == name and isinstance(item, h5py.Dataset):
            found.append(item)

    file.visititems(visit)
    return found


def _found(file: Any, group: Any, name: str, path: Path) -> Any:
    """The dataset of this name in a group, or the only one in the same entry; None if there is none."""
    if name in group:
        return Bounded(group[name], path)
    entry = "/" + group.name.strip("/").partition("/")[0] + "/"
    others = [item for item in _named(file, name) if item.name.startswith(entry)]
    if len(others) > 1:
        raise DataError(f"{path}: has several datasets {name}, {', '.join(item.name for item in others)}")
    return Bounded(others[0], path) if others else None


def _angles(file: Any, group: Any, key: np.ndarray, path: Path) -> tuple[np.ndarray | None, str]:
    stored = _found(file, group, "rotation_angle", path)
    if stored is None:
        return None, ""
    values, projections = np.asarray(stored, dtype=np.float64).ravel(), key == _PROJECTION
    if len(values) == len(key):
        values = values[projections]
    if len(values) != int(projections.sum()):
        raise DataError(f"{path}: rotation_angle has {len(values)} angles for {len(key)} frames")
    return values, attribute(stored, "units")


def attribute(item: Any, name: str) -> str:
    """An attribute of an HDF5 object as text, empty if there is none; some programs write it as an array of one."""
    value = item.attrs.get(name, "")
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _spacing(stored: Any) -> float | None:
    if stored is None or np.size(stored) != 1:
        return None
    factor = _MM.get(attribute(stored, "units").strip().lower())
    return None if factor is None else factor * float(np.asarray(stored).item())
