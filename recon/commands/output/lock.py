"""One program at a time writes into a folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from recon.files import prepare_folder

#: the file in a folder that a program writes into
LOCK = ".recon.lock"
# what write_files calls its files until they are whole
_PART = re.compile(r"\..+\.[0-9a-f]{8}\.part")
# of file systems, and of systems, that have no locks
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)


class LockedError(OSError):
    """Another program writes into the folder; the message says which."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder if it is missing, and keep other programs of this project from writing into it.

    The file ``.recon.lock`` in it says which program that is, and is removed at the end. The operating system holds the
    lock (``flock``), so that it ends with the program, whatever ends that. On file systems without such locks the file
    itself is the lock; then one whose program has died on this machine is recognized by number and start of the
    process, and one of another machine has to be deleted by hand.

    A folder that was made and has nothing in it at the end is removed. So are temporary files that killed programs left
    in the folder, and in those inside it that nobody has locked.

    Raises
    ------
    LockedError
        (an OSError) another program holds the folder.
    OSError
        the folder cannot be made or written to, or is a file.
    """
    made = not folder.exists()
    prepare_folder(folder)
    path = folder / LOCK
    descriptor = _acquire(path)
    try:
        _remove_parts(folder)
        yield
    finally:
        # before the lock is given up, so that nobody holds a lock on a file that is gone
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)
        if made:
            with contextlib.suppress(OSError):  # where something was written
                folder.rmdir()


def _acquire(path: Path) -> int:
    """Descriptor of the lock file that is ours now."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _flock(descriptor):
                os.close(descriptor)
                return _acquire_by_name(path)
            if _is(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(_self()).encode(), 0)
                return descriptor
            os.close(descriptor)  # the one before us has removed the file meanwhile
        except BlockingIOError:
            holder = _read(path)
            os.close(descriptor)
            raise _refusal(path, holder) from None


def _flock(descriptor: int) -> bool:
    """Lock; whether the file system can.

    Raises
    ------
    BlockingIOError
        if another program has locked.
    """
    try:
        import fcntl
    except ImportError:  # no Unix
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def _is(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        named, opened = os.stat(path), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


# --- where the name is the lock --------------------------------------------------------------------------------------


def _acquire_by_name(path: Path) -> int:
    """Create the lock file, which fails if it exists; one of a program that has died is taken away first.

    What it is to say is written under another name: nobody sees an empty lock.
    """
    mine = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    mine.write_text(json.dumps(_self()))
    try:
        while True:
            try:
                os.link(mine, path)
                return os.open(path, os.O_RDONLY)
            except FileExistsError:
                holder = _read(path)
                if holder is not None and _lives(holder):
                    raise _refusal(path, holder) from None
                _take_away(path, holder)
    finally:
        mine.unlink(missing_ok=True)


def _take_away(path: Path, stale: dict[str, object] | None) -> None:
    """Remove a stale lock: under another name first, as another program may have replaced it meanwhile."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if _read(aside) != stale:
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)


def _lives(holder: dict[str, object]) -> bool:
    """Whether the program of a lock runs; those on other machines, of which nothing is known, are taken to."""
    if holder.get("host") != socket.gethostname() or sys.platform == "win32":
        return True
    number = holder.get("process")
    if not isinstance(number, int):
        return False
    try:
        os.kill(number, 0)
    except PermissionError:
        pass  # of another user
    except (ProcessLookupError, OverflowError):
        return False
    return holder.get("started") == _start(number)


# --- what a lock says ------------------------------------------------------------------------------------------------


def _self() -> dict[str, object]:
    return {
        "process": os.getpid(),
        "started": _start(os.getpid()),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _start(number: int) -> str:
    """When a process started, in ticks since the boot, as Linux tells it; numbers of processes are used again."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError, ValueError):
        return ""


def _read(path: Path) -> dict[str, object] | None:
    """What a lock says; nothing if it is gone, or no lock of ours."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _refusal(path: Path, holder: dict[str, object] | None) -> LockedError:
    who = "another program"
    if holder is not None:
        who = f"another program (process {holder.get('process')} on {holder.get('host')}, since {holder.get('since')})"
    return LockedError(
        f"{path.parent}: {who} writes into this folder; wait until it ends, or choose another folder. If it does not "
        f"run any more, delete {path}"
    )


def _remove_parts(folder: Path) -> None:
    """Temporary files in the folder and in those right inside it, unless another program has locked these."""
    inside = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink()]
    for part in (folder, *(entry for entry in inside if not (entry / LOCK).exists())):
        with contextlib.suppress(OSError):
            for path in part.iterdir():
                if _PART.fullmatch(path.name):
                    path.unlink(missing_ok=True)
