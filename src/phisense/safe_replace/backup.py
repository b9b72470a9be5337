"""A run is written in place: the old one is kept as NAME~ until the new one is complete."""

from __future__ import annotations

from pathlib import Path

from .layouts import PARTIAL_MARKER
from .removal import remove
from .target import inspect_target


def back_up(folder: Path, *, kind: str) -> None:
    """Make room for an artifact that is written in place, over hours: the existing one, checked
    with `keep_backup`, is renamed to NAME~ until `drop_backup`.

    No recipe may have such a name, and a marker file identifies the backup. A finished backup is
    not replaced by an unfinished artifact.
    """
    waiting = backup_path(folder)
    found, before = inspect_target(folder, kind), inspect_target(waiting, kind)
    if found is None or not found.of_kind:
        return
    if before is not None and before.finished and not found.finished:
        remove(folder, kind=kind)
        return
    remove(waiting, kind=kind)
    folder.rename(waiting)
    (waiting / PARTIAL_MARKER).write_bytes(kind.encode())


def drop_backup(folder: Path, *, kind: str) -> None:
    """Delete the backup NAME~ after the new artifact is complete."""
    if (backup_path(folder) / PARTIAL_MARKER).is_file():
        remove(backup_path(folder), kind=kind)


def backup_path(folder: Path) -> Path:
    """Where the old run waits: NAME~, which no recipe may be called."""
    return folder.with_name(f"{folder.name}~")
