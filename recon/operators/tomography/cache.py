"""Projector matrices on disk: written whole or not at all, checked when read, the least recently used removed first.

Folder: the environment variable RECON_CACHE, or else ``recon`` in the user's cache folder. Limit of its size in GB:
RECON_CACHE_GB, 10 unless set. One file for each key::

    magic (8 bytes) | length of the header (8) | header, JSON | arrays | BLAKE2b of all before (32)

A file that is truncated, altered or of another format is taken as absent and removed. Several processes may read, write
and remove at once: files are written under temporary names and renamed, so a name always stands for a whole file, and
the last of several writers of one key wins with the same content.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypedDict

import numpy as np

_MAGIC = b"RECONCT1"
_SUFFIX = ".matrix"
_DIGEST = 32
_KINDS = tuple(f"{order}{kind}" for order in "<>|" for kind in ("i1", "u1", "i4", "i8", "f4", "f8"))  # of arrays
_STALE_SECONDS = 24 * 3600.0  # older temporary files belong to processes that were killed
_log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]


class Header(TypedDict, total=False):
    """What a file says of its matrix."""

    norm_bound: float
    description: str
    key: str
    arrays: dict[str, list[str | int]]


@dataclass(frozen=True)
class Entry:
    """One file of the cache."""

    path: Path
    size: int  # bytes
    used: float  # seconds since the epoch of the last use
    description: str


def cache_folder() -> Path:
    """Return the folder of the cache, which need not exist."""
    if named := os.environ.get("RECON_CACHE"):
        return Path(named).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "recon" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "recon"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recon"


def size_limit() -> int:
    """Return the limit in bytes.

    Raises
    ------
    ValueError
        RECON_CACHE_GB is no number, or negative.
    """
    text = os.environ.get("RECON_CACHE_GB") or "10"
    try:
        limit = float(text) * 1e9
    except ValueError:
        limit = -1.0
    if not 0 <= limit < float("inf"):
        raise ValueError(f"RECON_CACHE_GB must be a number of gigabytes, got {text!r}")
    return int(limit)


def load(key: str) -> tuple[Header, Arrays] | None:
    """Return header and arrays stored under the key, or None. A damaged file is removed."""
    path = cache_folder() / (key + _SUFFIX)
    try:
        with path.open("rb") as file:
            header, arrays = _read(file, key)
    except FileNotFoundError:
        return None
    except OSError as error:
        _log.warning("%s: cannot be read (%s); the matrix is built again", path, error.strerror or error)
        return None
    except ValueError as error:
        _log.warning("%s: damaged (%s); the matrix is built again", path, error)
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # the time of the last use decides what is removed first
    return header, arrays


def store(key: str, header: Header, arrays: Arrays) -> bool:
    """Store under the key, after making room; return whether it was stored.

    A cache that cannot be written (no room, no permission) costs time later, and is no error: a warning is logged.
    """
    size, limit = sum(a.nbytes for a in arrays.values()), size_limit()
    if size > limit:
        _log.warning("matrix of %.1f GB not cached: the limit (RECON_CACHE_GB) is %.1f GB", size / 1e9, limit / 1e9)
        return False
    folder = cache_folder()
    temporary = folder / f".{key}.{secrets.token_hex(4)}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        evict(limit - size)
        with temporary.open("xb") as file:
            _write(file, {**header, "key": key}, arrays)
        temporary.replace(folder / (key + _SUFFIX))
    except OSError as error:
        _log.warning("%s: cannot be written (%s); matrices are not cached", folder, error.strerror or error)
        return False
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return True


def entries() -> list[Entry]:
    """Return what is in the cache, the last used first."""
    found = []
    for path in _files(_SUFFIX):
        with contextlib.suppress(FileNotFoundError):  # removed by another process meanwhile
            status = path.stat()
            found.append(Entry(path, status.st_size, status.st_mtime, _description(path)))
    return sorted(found, key=lambda entry: -entry.used)


def evict(limit: int) -> None:
    """Remove the least recently used files until at most ``limit`` bytes are left, and what killed writers left."""
    for path in _files(".part"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()
    kept = entries()
    total = sum(entry.size for entry in kept)
    while kept and total > limit:
        oldest = kept.pop()
        with contextlib.suppress(FileNotFoundError):
            oldest.path.unlink()
        total -= oldest.size


def clear() -> int:
    """Remove all matrices, also half-written ones; return how many bytes that freed.

    Raises
    ------
    OSError
        a file cannot be removed.
    """
    freed = 0
    for path in (*_files(_SUFFIX), *_files(".part")):
        with contextlib.suppress(FileNotFoundError):
            size = path.stat().st_size
            path.unlink()
            freed += size
    return freed


def _files(suffix: str) -> list[Path]:
    """Files of ours only: the folder may be shared."""
    folder = cache_folder()
    pattern = f"*{suffix}" if suffix == _SUFFIX else f".*{suffix}"
    return sorted(folder.glob(pattern)) if folder.is_dir() else []


def _description(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return str(_header(file, hashlib.blake2b()).get("description", ""))
    except (OSError, ValueError):
        return "damaged"


def _write(file: BinaryIO, header: Header, arrays: Arrays) -> None:
    layout = {name: [array.dtype.str, len(array)] for name, array in arrays.items()}
    text = json.dumps({**header, "arrays": layout}).encode()
    digest = hashlib.blake2b(digest_size=_DIGEST)
    parts: list[bytes | memoryview] = [_MAGIC, len(text).to_bytes(8, "little"), text]
    parts += [np.ascontiguousarray(array).data.cast("B") for array in arrays.values()]
    for part in parts:
        digest.update(part)
        file.write(part)
    file.write(digest.digest())
    file.flush()
    os.fsync(file.fileno())


def _read(file: BinaryIO, key: str) -> tuple[Header, Arrays]:
    digest = hashlib.blake2b(digest_size=_DIGEST)
    header = _header(file, digest)
    if header.get("key") != key:
        raise ValueError("it belongs to another key")
    layout = _layout(header.get("arrays"))
    # The size first: a damaged count must not make us allocate anything.
    expected = file.tell() + sum(kind.itemsize * count for kind, count in layout.values()) + _DIGEST
    if os.fstat(file.fileno()).st_size != expected:
        raise ValueError("its size is wrong")
    arrays = {}
    for name, (kind, count) in layout.items():
        arrays[name] = np.fromfile(file, dtype=kind, count=count)
        digest.update(arrays[name].data.cast("B"))
    if file.read(_DIGEST) != digest.digest():
        raise ValueError("its checksum is wrong")
    return header, arrays


def _layout(values: object) -> dict[str, tuple[np.dtype, int]]:
    """Types and lengths of the arrays. Not yet covered by the checksum, so that anything may stand there."""
    layout = {}
    for name, value in values.items() if isinstance(values, dict) else ():
        kind, count = value if isinstance(value, list) and len(value) == 2 else (None, None)
        if kind not in _KINDS or not isinstance(count, int) or count < 0:
            raise ValueError("it has an array of no known kind")
        layout[name] = (np.dtype(kind), count)
    return layout


def _header(file: BinaryIO, digest: hashlib.blake2b) -> Header:
    magic, length = file.read(8), file.read(8)
    size = int.from_bytes(length, "little")
    if magic != _MAGIC or len(length) < 8 or size > 2**20:
        raise ValueError("no matrix of this format")
    text = file.read(size)
    for part in (magic, length, text):
        digest.update(part)
    try:
        header: Header = json.loads(text)
    except RecursionError as error:
        raise ValueError("no header") from error
    if not isinstance(header, dict):
        raise ValueError("no header")
    return header
