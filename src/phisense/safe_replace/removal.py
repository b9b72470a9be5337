"""Deletes what phisense wrote, file by file; foreign files stay."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..staging import try_lock
from .layouts import MANIFEST
from .target import inspect_target

_logger = logging.getLogger(__name__)


def remove_files(
    folder: Path,
    own: Callable[[str], bool],
    *,
    and_folder: bool = False,
    replaced_by: Path | None = None,
) -> list[str]:
    """Delete the files directly in `folder` whose names satisfy `own`, and with `and_folder` the
    folder; returns the names. Logs a warning if other files remain.
    """
    gone = (
        sorted(path.name for path in folder.iterdir() if own(path.name)) if folder.is_dir() else []
    )
    for name in gone:
        (folder / name).unlink()
    if and_folder:
        with suppress(FileNotFoundError, NotADirectoryError):
            try:
                folder.rmdir()
            except OSError:  # not empty
                _keep_rest(folder, replaced_by or folder)
    return gone


def remove(folder: Path, *, kind: str, replaced_by: Path | None = None) -> None:
    """Delete an artifact of `kind`, finished or not, file by file. Foreign files stay, with a
    warning.
    """
    found = inspect_target(folder, kind)
    if found is None or not found.of_kind:
        return
    for one in found.own:
        (folder / one).unlink(missing_ok=True)
    for path, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):  # not empty: it contains a foreign file
            os.rmdir(path)
    if folder.exists():
        _keep_rest(folder, replaced_by or folder)


def remove_file(path: Path) -> None:
    """Delete a file that phisense wrote and is about to write again."""
    path.unlink(missing_ok=True)


def remove_journal(path: Path) -> None:
    """Delete a file that is appended to under a lock, unless another process holds the lock."""
    with suppress(OSError), path.open("rb") as file:
        if try_lock(file):
            path.unlink(missing_ok=True)


def mark_unfinished(folder: Path) -> None:
    """Remove the manifest, because the artifact is being extended; all other files stay."""
    (folder / MANIFEST).unlink(missing_ok=True)


def discard(folder: Path) -> None:
    """Delete a folder that phisense created for internal use, such as a damaged conversion in the
    cache.
    """
    shutil.rmtree(folder, ignore_errors=True)


def _keep_rest(folder: Path, replaced_by: Path) -> None:
    """Keep what is left of a folder under a visible name, and log a warning."""
    kept = folder if replaced_by == folder else _unused_backup_path(replaced_by)
    if kept != folder:
        folder.rename(kept)
    _logger.warning("%s is kept: there are files in it that phisense did not write", kept)


def _unused_backup_path(folder: Path) -> Path:
    number = 1
    while (kept := folder.with_name(f"{folder.name}~{number}")).exists():
        number += 1
    return kept
