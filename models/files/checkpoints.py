"""Checkpoints that survive a kill at any moment, hold plain data only, and know what they belong to."""

from __future__ import annotations

import copy
import enum
import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from models.files.checkpoint_file import CheckpointError, checkpoint_bytes, load_checkpoint
from models.files.setting import first_difference
from recon.files import write_files
from recon.names import current_name, public_name

__all__ = [
    "AtomicCheckpointIO",
    "BackgroundCheckpointIO",
    "CheckpointError",
    "checksum",
    "describe",
    "difference",
    "load_checkpoint",
]

#: a description of objects by plain values: numbers, strings, lists, dictionaries
Plain = object


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, but whole or refused: a kill while one is written leaves the previous one.

    Lightning writes to the folder for temporary files and then moves the file, which is a plain copy where that folder
    lies on another file system. Here the file is written beside its place, flushed to the disk and renamed.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        if storage_options is not None:
            raise TypeError("checkpoints go to local files, which take no storage_options")
        write_files({Path(path): checkpoint_bytes(checkpoint)})

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: object = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        return load_checkpoint(path)


class BackgroundCheckpointIO(AtomicCheckpointIO):
    """The same by a thread of its own, from a copy, while the training goes on; one checkpoint after the other.

    Errors of one are raised when the next is saved, or when the trainer is done: then all are on the disk.
    """

    def __init__(self) -> None:
        super().__init__()
        self._writer = ThreadPoolExecutor(1, "checkpoints")
        self._last: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        self.teardown()  # no more than one waits, whatever the disk does
        self._last = self._writer.submit(super().save_checkpoint, copy.deepcopy(checkpoint), path, storage_options)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: object = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        self.teardown()
        return super().load_checkpoint(path, map_location, weights_only)

    def remove_checkpoint(self, path: str | Path) -> None:
        self.teardown()
        super().remove_checkpoint(path)

    def teardown(self) -> None:
        """Wait for the last checkpoint, and raise its error if it has one."""
        last, self._last = self._last, None
        if last is not None:
            last.result()


# --- what a checkpoint belongs to ------------------------------------------------------------------------------------


def describe(thing: object) -> dict[str, Plain]:
    """The class and the settings of an object as plain values.

    Settings are the public attributes that hold numbers, strings, classes or lists of those; of modules also buffers
    (by checksum), the shapes of parameters, and submodules.
    """
    settings: dict[str, Plain] = {"class": public_name(thing)}
    for name, value in vars(thing).items():
        plain = _plain(value)
        if not name.startswith("_") and name != "training" and plain is not _NOT_PLAIN:
            settings[name] = plain
    if isinstance(thing, nn.Module):
        for name, parameter in thing.named_parameters(recurse=False):
            settings[name] = f"parameter of shape {tuple(parameter.shape)}"
        for name, buffer in thing.named_buffers(recurse=False):
            settings[name] = checksum(buffer)
        for name, child in thing.named_children():
            settings[name] = describe(child)
    return settings


def difference(saved: Plain, current: Plain, name: str = "") -> str | None:
    """The first entry in which two descriptions differ, in words; ``None`` if they are equal."""
    found = first_difference(saved, current, _same, name)
    if found is None:
        return None
    place, saved, current = found
    return f"{place.removesuffix('.class')} is {_brief(saved)} there, but {_brief(current)} here"


def _same(saved: object, current: object, name: str) -> bool:
    return saved == current or (isinstance(saved, str) and current_name(saved) == current)


def checksum(*tensors: Tensor) -> str:
    """SHA-256 of shapes, types and values."""
    digest = hashlib.sha256()
    for tensor in tensors:
        dense = tensor.detach().cpu()
        if dense.layout is torch.sparse_csr:
            digest.update(checksum(dense.crow_indices(), dense.col_indices(), dense.values()).encode())
            continue
        digest.update(f"{tuple(dense.shape)} {dense.dtype}".encode())
        for part in dense.reshape(-1, *dense.shape[1:]):  # image by image: no copy of everything
            digest.update(part.numpy().tobytes())
    return digest.hexdigest()


_NOT_PLAIN = object()


def _plain(value: object) -> Plain:
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, type):
        return public_name(value)
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return _NOT_PLAIN if any(item is _NOT_PLAIN for item in items) else items
    return _NOT_PLAIN


def _brief(value: Plain) -> str:
    if isinstance(value, dict):
        return str(value.get("class", value))
    return "nothing" if value is None else str(value)
