"""Which files of a folder belong to a store, an exclusive writer lock, and atomic replacement of a
store by a new one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from ... import artifacts, safe_replace
from ...distributed import ProcessGroup
from ...errors import ArtifactError, UsageError
from ...staging import STAGING_FILE_NAME, is_process_alive, try_lock
from .contents import INDEX_FILES, STORE_KIND
from .shards import shard_number


@contextmanager
def replace_store(
    folder: Path, processes: ProcessGroup, judge: Callable[[Path], Any]
) -> Iterator[Path]:
    """Yield the staging folder for a new store, which replaces `folder` when the block succeeds.

    An interrupted replacement resumes unless `judge` raises ArtifactError for it. Raises UsageError
    if `folder` holds any file that is not a store's.
    """
    if processes.is_main:
        safe_replace.recover(folder)
    processes.barrier()
    there = folder.exists()
    processes.barrier()  # all ranks must test before one creates it
    if not there:
        yield folder
        return
    folder = folder.resolve()  # keep a link to another disk
    aside = folder.with_name(f".{folder.name}.partial")
    if foreign := _foreign(folder):
        raise UsageError(
            f"{folder} would be replaced",
            got=f"{foreign}, which is no part of a feature store",
            do="Move it elsewhere",
        )
    with exclusive_writer(folder, processes):
        if processes.is_main:
            try:
                judge(aside)
            except ArtifactError:
                safe_replace.remove_files(aside, is_store_file, and_folder=True)
        processes.barrier()
        yield aside
        if processes.is_main:
            with artifacts.translate_disk_errors(folder):
                safe_replace.remove_files(
                    safe_replace.swap_folders(aside, folder),
                    is_store_file,
                    and_folder=True,
                    replaced_by=folder,
                )


def _foreign(folder: Path) -> str | None:
    """The first file that is not a feature store's, or None.

    An unreadable manifest may be a damaged store's.
    """
    if not folder.is_dir():
        return folder.name
    for path in sorted(folder.iterdir()):
        if not is_store_file(path.name) or (path.is_dir() and not path.is_symlink()):
            return path.name
    try:
        manifest = orjson.loads((folder / artifacts.MANIFEST).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    kind = manifest.get("kind", STORE_KIND) if isinstance(manifest, dict) else STORE_KIND
    return None if kind == STORE_KIND else f"the manifest of a {kind}"


@contextmanager
def exclusive_writer(folder: Path, processes: ProcessGroup) -> Iterator[None]:
    """Create the folder and hold its lock, which the system releases if the process is killed.

    Raises ArtifactError if another process writes there. The folder itself is locked, as a lock
    file would be an extra file in it. Where the system or file system has no locks, none is held.
    """
    if not processes.is_main:
        yield
        return
    with artifacts.translate_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not try_lock(descriptor):
            raise ArtifactError(
                f"another process writes the feature store {folder}", do="Wait for it, or end it"
            )
        yield
    finally:
        os.close(descriptor)


def remove_partial_files(folder: Path) -> list[str]:
    """Remove partial files of killed writers, and nothing else.

    These have a store's file names and the process id of a dead process, or of this one, which
    holds the lock and has written nothing yet.
    """

    def dead(name: str) -> bool:
        matched = STAGING_FILE_NAME.fullmatch(name)
        return (
            matched is not None
            and is_store_file(name)
            and (int(matched[2]) == os.getpid() or not is_process_alive(int(matched[2])))
        )

    return safe_replace.remove_files(folder, dead)


def is_store_file(name: str) -> bool:
    """Whether a store writes files of this name."""
    matched = STAGING_FILE_NAME.fullmatch(name)
    name = matched[1] if matched else name
    return name == artifacts.MANIFEST or name in INDEX_FILES or shard_number(name) is not None


__all__ = ["exclusive_writer", "is_store_file", "remove_partial_files", "replace_store"]
