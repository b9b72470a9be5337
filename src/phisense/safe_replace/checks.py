"""May an artifact or a file be written to a path? Asked before any computation."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ..errors import ArtifactError, UsageError
from ..staging import is_abandoned, list_staging
from .backup import backup_path
from .layouts import PARTIAL_MARKER
from .target import inspect_target

MAX_NAME_BYTES = 255  # bytes, on most file systems


def check_can_write(
    folder: Path,
    *,
    kind: str,
    overwrite: bool = False,
    keep_backup: bool = False,
    hint: str = "Choose another --out, or replace it with --overwrite",
) -> None:
    """Raise UsageError unless an artifact of `kind` may be written to `folder`: to be called before
    any computation.

    `hint` is the advice if one already exists; with `keep_backup` it will be renamed to NAME~
    meanwhile.
    """
    _require_replaceable(folder)
    found = inspect_target(folder, kind)
    if found is not None and not found.empty:
        if not found.of_kind:
            raise UsageError(
                f"{folder} would be overwritten",
                got=found.what,
                wanted=f"nothing there, or a {kind}",
                do="Choose another",
            )
        if found.foreign:
            raise UsageError(
                f"{folder} would be overwritten",
                got=(
                    f"{found.what} with {len(found.foreign):,} files in it that are not its own:"
                    f" {', '.join(map(str, found.foreign[:3]))}"
                ),
                wanted="nothing in it but what phisense wrote",
                do="Move them elsewhere, or choose another",
            )
        if not overwrite:
            raise UsageError(f"{folder} is there already", got=found.what, do=hint)
    if keep_backup and overwrite:
        _check_backup(folder, kind)
    for aside in list_staging(folder.parent, folder.name):
        with is_abandoned(aside) as is_dead:
            if aside.is_dir() and not is_dead:
                raise UsageError(
                    f"another process is writing {folder}",
                    got=f"its {aside.name}",
                    do="Wait for it, or choose another",
                )
    _require_writable(folder)


def _require_replaceable(folder: Path) -> None:
    """Raise UsageError if `folder` cannot be exchanged for another: the current folder, a mount
    point, or a name that is too long.
    """
    if folder.exists() and Path.cwd().is_relative_to(folder.resolve()):
        raise UsageError(
            f"{folder} is where you are, and would be replaced", do="Name a folder in it"
        )
    if folder.name in ("", "..") or folder.is_mount():
        raise UsageError(
            f"{folder} cannot be replaced",
            got="no name of its own, or a mounted disk",
            do="Name a folder in it",
        )
    if len(os.fsencode(f".{folder.name}.{2**22}-99.partial")) > MAX_NAME_BYTES:
        raise UsageError(
            f"the name {folder.name[:60]}... is too long",
            wanted="at most 230 bytes",
            do="Choose another",
        )


def _check_backup(folder: Path, kind: str) -> None:
    waiting = backup_path(folder)
    found = inspect_target(waiting, kind)
    if found is not None and (not (waiting / PARTIAL_MARKER).is_file() or found.foreign):
        got = found.what if not found.foreign else f"{found.what} with {found.foreign[0]} in it"
        raise UsageError(
            f"{waiting} would be overwritten",
            got=got,
            wanted="nothing there",
            do="Move it away, or choose another name",
        )


def check_can_write_file(
    path: Path, *, overwrite: bool, header: str, option: str, inputs: tuple[Path, ...] = ()
) -> None:
    """Raise UsageError unless a file may be written to `path`, which must not be one of `inputs`.
    `header`: the first bytes of a file of this kind.
    """
    if any(path.exists() and one.exists() and path.samefile(one) for one in inputs):
        raise UsageError(
            f"{path} would be overwritten",
            got="what is to be read",
            do=f"Name another file with {option}",
        )
    if path.is_symlink() or (path.exists() and not path.is_file()):
        what = f"a link to {os.readlink(path)}" if path.is_symlink() else "no file"
        raise UsageError(
            f"{path} would be overwritten", got=what, do=f"Name another file with {option}"
        )
    if path.exists():
        with path.open("rb") as file:
            begins = file.read(len(header.encode()))
        if begins and begins != header.encode():
            raise UsageError(
                f"{path} would be overwritten",
                got="a file of another making",
                do=f"Name another file with {option}",
            )
        if not overwrite:
            raise UsageError(
                f"{path} is there already",
                do=f"Name another file with {option}, or replace it with --overwrite",
            )
    _require_writable(path)


def unused_path(path: Path) -> Path:
    """`path`, or the first free numbered variant: rejects.jsonl, rejects-2.jsonl, ..."""
    found, number = path, 1
    while found.exists() or found.is_symlink():
        number += 1
        found = path.with_stem(f"{path.stem}-{number}")
    return found


def _require_writable(path: Path) -> None:
    at = path.absolute().parent
    while not at.exists() and at != at.parent:
        at = at.parent
    if not at.is_dir() or not os.access(at, os.W_OK | os.X_OK):
        got = os.strerror(errno.EACCES if at.is_dir() else errno.ENOTDIR)
        raise ArtifactError(
            f"cannot write {path}", got=got, do="Free some space or choose another folder"
        )
