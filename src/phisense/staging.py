"""Staging folders and files: `.NAME.PID.partial`, where an artifact is written before it is
renamed; and the exchange of two folders.

A process holds a lock on its staging folder, so leftovers of dead processes can be recognized even
if the process id belongs to another machine or container. Staging files exist only briefly and have
no lock.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import ArtifactError

STAGING_NAME = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)(-\d+)?\.(partial|old)")
STAGING_FILE_NAME = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.partial")


def create_staging_folder(folder: Path) -> tuple[Path, int]:
    """Create an empty staging folder; returns it with a file descriptor that holds its lock."""
    for number in range(100):
        aside = folder.with_name(
            f".{folder.name}.{os.getpid()}{f'-{number}' if number else ''}.partial"
        )
        try:
            aside.mkdir()
        # of another thread, or of a process with the same id in another container, alive or dead
        except FileExistsError:
            continue
        descriptor = open_locked(aside)
        if descriptor is not None:
            return aside, descriptor
        with suppress(OSError):  # another process's cleanup holds it or has removed it
            aside.rmdir()
    raise ArtifactError(
        f"cannot write {folder}",
        got="a hundred unfinished folders beside it",
        do="Remove what is left over",
    )


def list_staging(parent: Path, name: str | None = None) -> list[Path]:
    """Staging folders and files in `parent`, of the artifact `name` or of all."""
    if not parent.is_dir():
        return []
    found = []
    with os.scandir(parent) as entries:
        for entry in entries:
            match = STAGING_NAME.fullmatch(entry.name)
            if not match or entry.is_symlink() or (name is not None and match["name"] != name):
                continue
            if entry.is_dir() or (entry.is_file() and STAGING_FILE_NAME.fullmatch(entry.name)):
                found.append(Path(entry.path))
    return sorted(found)


@contextmanager
def is_abandoned(aside: Path) -> Iterator[bool]:
    """Context manager: whether no process writes it anymore, that is, nobody holds its lock; for
    files, and where locks are unsupported, no process has its id. The lock is held for the block.
    """
    try:
        descriptor = os.open(aside, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        yield False
        return
    try:
        free = _try_flock(descriptor)
        match = STAGING_NAME.fullmatch(aside.name)
        yield (free is True and aside.is_dir()) or (
            free is not False and match is not None and not is_process_alive(int(match["pid"]))
        )
    finally:
        os.close(descriptor)


def is_process_alive(pid: int) -> bool:
    """Whether a process with this id exists; True if the system does not tell."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


def open_locked(aside: Path) -> int | None:
    """A file descriptor that holds the lock of a new folder; None if another process's cleanup was
    faster.
    """
    try:
        descriptor = os.open(aside, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with suppress(FileNotFoundError):
        if try_lock(descriptor) and os.fstat(descriptor).st_ino == aside.stat().st_ino:
            return descriptor
    os.close(descriptor)
    return None


def try_lock(file: Any) -> bool:
    """Try to lock a file; True if it was free, or if locks are unsupported. Closing the file, also
    by process death, releases the lock.
    """
    return _try_flock(file) is not False


def _try_flock(file: Any) -> bool | None:
    """Whether the lock was free; None if the system or the file system does not support locks."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def exchange_folders(one: Path, other: Path) -> bool:
    """Exchange two folders atomically; False if unsupported. Only Linux can, and not on every file
    system.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    at_cwd, swap = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of linux/fs.h
    if renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), swap) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), str(other))


def fsync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
