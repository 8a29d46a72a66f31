"""Files of PyTorch that know whether they are whole: plain data, and a checksum of every byte.

``torch.save`` writes a zip archive, and ``torch.load`` does not look at its checksums. Here the comment of the archive,
its last bytes, holds the SHA-256 of everything before it. It finds damage by disks and networks; it is no signature.
"""

from __future__ import annotations

import hashlib
import io
import logging
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from recon.limits import archive_excess

log = logging.getLogger(__name__)

_MARK = b"recon sha256 "
_DIGEST = 64  # hexadecimal digits
# the record that ends a zip archive without comment
_END, _END_SIZE = b"PK\x05\x06", 22


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names it and says why."""


def checkpoint_bytes(content: Mapping[str, object]) -> bytes:
    """What ``torch.save`` writes, and the checksum; ``torch.load`` and zip programs read it, too."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    archive = buffer.getvalue()
    # the last two bytes of an archive without comment are the length of the comment
    sealed = archive[:-2] + (len(_MARK) + _DIGEST).to_bytes(2, "little") + _MARK
    return sealed + _digest(sealed)


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The content of a file that :func:`checkpoint_bytes` made, on ``device``; tensors and plain containers only.

    Files without checksum, of earlier versions, are read with a warning: only what the archive itself has is verified.

    Raises
    ------
    FileNotFoundError
        there is no such file.
    CheckpointError
        it is damaged, truncated, no checkpoint, or holds other things than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    with _refused(path):
        wrong = archive_excess(path)
    if wrong:
        raise CheckpointError(f"{path}: unpacked, it {wrong}")
    archive = path.read_bytes()
    sealed = archive[-_DIGEST - len(_MARK) : -_DIGEST] == _MARK
    if sealed and archive[-_DIGEST:] != _digest(archive[:-_DIGEST]):
        raise CheckpointError(f"{path}: is damaged, its checksum is not that of what it holds")
    if not sealed:
        _check_old(path, archive)
    with _refused(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickles that are refused below
        content = torch.load(io.BytesIO(archive), map_location=device, weights_only=True)
    if not isinstance(content, dict):
        raise CheckpointError(_useless(path, f"holds a {type(content).__name__}"))
    if not sealed:
        log.warning("%s: has no checksum, as those of earlier versions; whether it is whole cannot be known", path)
    return content


def _check_old(path: Path, archive: bytes) -> None:
    """Refuse what is no archive without comment, and records whose own checksums (CRC-32) are wrong."""
    end = archive[-_END_SIZE:]
    if not (end.startswith(_END) and end.endswith(b"\0\0")):
        raise CheckpointError(_useless(path, "it does not end as such a file"))
    with _refused(path), zipfile.ZipFile(io.BytesIO(archive)) as records:
        wrong = records.testzip()
    if wrong is not None:
        raise CheckpointError(f"{path}: is damaged, the checksum of {wrong} is wrong")


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _useless(path: Path, reason: str) -> str:
    return f"{path}: not a checkpoint of this program, or truncated; valid are files that `recon` wrote ({reason})"


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Make a :class:`CheckpointError` of any: torch, zipfile and pickle raise their own, and hostile files others."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise CheckpointError(_useless(path, reason)) from error
