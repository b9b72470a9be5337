"""What dead processes left: removed if it is phisense's, restored if it was being replaced."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from ..staging import STAGING_NAME, is_abandoned, list_staging
from .layouts import PARTIAL_MARKER
from .removal import remove
from .target import read_head

_logger = logging.getLogger(__name__)


def remove_leftovers(parent: Path, *, files: bool = False) -> None:
    """Remove what dead processes left in `parent`, restore a half-replaced artifact, and log it.

    Only folders with phisense's marker or a manifest are removed; with `files`, partially written
    files, too, which is safe only in the folder of an artifact.
    """
    removed = 0
    for aside in list_staging(parent):
        with is_abandoned(aside) as is_dead:
            if is_dead and aside.is_dir():
                removed += _remove_leftover_folder(aside)
            elif is_dead and files:
                aside.unlink(missing_ok=True)
                removed += 1
    if removed:
        _logger.warning(
            "removed %s unfinished leftovers of processes that have ended from %s", removed, parent
        )


def _remove_leftover_folder(aside: Path) -> bool:
    """Returns whether the folder was removed. The caller holds its lock."""
    name = STAGING_NAME.fullmatch(aside.name)["name"]  # type: ignore[index]
    manifest = read_head(aside)
    if aside.suffix == ".old" and not (aside.parent / name).exists():
        if manifest is not None:
            _restore(aside, aside.parent / name)
        return False
    if (aside / PARTIAL_MARKER).is_file():
        shutil.rmtree(aside, ignore_errors=True)
    elif manifest is not None:  # the old one after the exchange, or a new one before it
        remove(aside, kind=manifest.kind)
    elif any(aside.iterdir()):
        _logger.warning(
            "%s may be a leftover of an earlier version: look into it, and remove it", aside
        )
        return False
    else:
        aside.rmdir()
    return True


def recover(folder: Path) -> bool:
    """Whether `folder` exists, after restoring the old one if a process died between its two
    renames.
    """
    if folder.exists():
        return True
    for old in list_staging(folder.parent, folder.name):
        with is_abandoned(old) as is_dead:
            if is_dead and old.suffix == ".old" and read_head(old) is not None:
                _restore(old, folder)
                return True
    return False


def _restore(old: Path, folder: Path) -> None:
    old.rename(folder)
    _logger.warning(
        "%s was being replaced when a process died: it is back, as it was before", folder
    )
