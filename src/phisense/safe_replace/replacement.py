"""The new artifact is written to a staging folder, then takes the place of the old one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UsageError
from ..staging import create_staging_folder, exchange_folders, fsync_folder, open_locked
from .layouts import PARTIAL_MARKER
from .removal import remove
from .target import inspect_target


@contextmanager
def staging_folder(folder: Path, *, kind: str) -> Iterator[Path]:
    """Context manager: yields an empty staging folder beside `folder`, locked while the block runs
    and removed afterwards.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside, descriptor = create_staging_folder(folder)
    try:
        (aside / PARTIAL_MARKER).write_bytes(kind.encode())
        yield aside
    finally:
        if aside.exists():
            # safe: it was empty when created and has been locked since
            shutil.rmtree(aside, ignore_errors=True)
        os.close(descriptor)


def commit(aside: Path, folder: Path, *, kind: str, overwrite: bool) -> None:
    """Move the finished staging folder to `folder`. An existing target is checked again, and
    deleted once the new one is in its place.
    """
    (aside / PARTIAL_MARKER).unlink(missing_ok=True)
    found = inspect_target(folder, kind)
    if (
        found is not None
        and not found.empty
        and (not found.of_kind or found.foreign or not overwrite)
    ):
        raise UsageError(
            f"{folder} appeared while it was being made",
            got=found.what,
            do="Choose another, and make it again",
        )
    if found is None or found.empty:
        aside.rename(folder)
        fsync_folder(folder.parent)
        return
    held = open_locked(
        folder
    )  # else the cleanup of another process could take the old one for a leftover
    try:
        remove(swap_folders(aside, folder), kind=kind, replaced_by=folder)
    finally:
        if held is not None:
            os.close(held)


def swap_folders(aside: Path, folder: Path) -> Path:
    """Put `aside` in the place of `folder`, atomically if the system can; returns the old folder's
    new path.
    """
    old = aside
    if not exchange_folders(aside, folder):
        old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        folder.rename(old)
        aside.rename(folder)
    fsync_folder(folder.parent)
    return old
