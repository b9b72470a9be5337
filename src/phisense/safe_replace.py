"""The only module that replaces or deletes anything on disk, and the rules for it.

1. Only an artifact of the kind that is about to be written is replaced: its manifest says so; an
   unfinished run or store is recognized by its layout (`UNFINISHED_LAYOUTS`). Anything else at the
   path, or a symbolic link there, is rejected.
2. No foreign file is deleted: a folder is rejected if it contains a file that neither a manifest
   lists nor the layout knows.
3. An existing artifact, finished or not, is replaced only on request (`--overwrite`).
4. The new artifact is complete before the old one is removed: it is written to a staging folder,
   then exchanged atomically (`renameat2(RENAME_EXCHANGE)`), or, if the file system cannot, by two
   renames; `recover` restores the old one after a crash between them. A run is written in place, so
   that it can be resumed: the old one is renamed to NAME~ meanwhile.
5. Only listed files are deleted, one by one; a folder is removed when it is empty. Files that
   appeared in the meantime stay.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import orjson

from .errors import ArtifactError, UsageError
from .staging import (
    STAGING_FILE_NAME,
    STAGING_NAME,
    create_staging_folder,
    exchange_folders,
    fsync_folder,
    is_abandoned,
    list_staging,
    open_locked,
    try_lock,
)

_logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
#: In every staging folder from its creation until its manifest is written: identifies leftovers as
#: ours.
PARTIAL_MARKER = ".phisense-partial"
MAX_MANIFEST_BYTES = 256 * 2**20  # bytes; a million images need 150 MB
MAX_NAME_BYTES = 255  # bytes, on most file systems
#: Files that Trainer and phisense write into a checkpoint.
CHECKPOINT_FILES = (
    "trainable.safetensors",
    "guard.json",
    "manifest.json",
    "trainer_state.json",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
)
#: Files of an unfinished artifact, as patterns of relative paths, matched part by part.
UNFINISHED_LAYOUTS: dict[str, tuple[str, ...]] = {
    "run": (
        "recipe.yaml",
        "parts.json",
        "metrics.jsonl",
        "loss.png",
        "train.json",
        "weights/trainable.safetensors",
        *(
            f"adapter/{name}"
            for name in ("adapter_config.json", "adapter_model.safetensors", "README.md")
        ),
        "stages/*/trainable.safetensors",
        "stages/*/random.safetensors",
        "stages/*/runs/*/events.out.*",
        *(f"stages/*/checkpoint-*/{name}" for name in CHECKPOINT_FILES),
    ),
    "checkpoint": CHECKPOINT_FILES,
    "feature store": ("features-*.safetensors", "pictures.json", "pictures.next.json"),
}
#: Where an artifact of the kind contains other artifacts, and of which kind; any other nested
#: artifact is foreign.
NESTED_ARTIFACTS = {
    "run": {"stages/*": "stage", "stages/*/checkpoint-*": "checkpoint"},
    "space": {"model": "model folder", "model/gguf": "gguf folder"},
}
#: First line of the recipe in a run: distinguishes an unfinished run from a user's folder with a
#: recipe.
RESOLVED_RECIPE_HEADER = b"# The recipe as phisense train resolved it."


@dataclass(frozen=True, slots=True)
class ExistingTarget:
    """What exists at a path. `what` describes it; `own` and `foreign` are relative file paths,
    filled only for a folder of the wanted kind.
    """

    what: str
    of_kind: bool = False
    finished: bool = False
    empty: bool = False
    own: list[Path] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)


def inspect_target(folder: Path, kind: str) -> ExistingTarget | None:
    """Describe what exists at `folder`, as an artifact of `kind`; None if nothing. Read-only."""
    if folder.is_symlink():
        return ExistingTarget(f"a link to {os.readlink(folder)}")
    if not folder.exists():
        return None
    if not folder.is_dir():
        return ExistingTarget("a file" if folder.is_file() else "neither a file nor a folder")
    entries = list(_entries(folder))
    if not entries and not any(folder.iterdir()):
        return ExistingTarget("an empty folder", empty=True)
    manifest = _manifest(folder)
    if manifest is None:
        if kind not in UNFINISHED_LAYOUTS or (kind == "run" and not _is_run(folder)):
            return ExistingTarget("files of another making")
    elif manifest["kind"] != kind:
        return ExistingTarget(f"a {manifest['kind']}")
    known = _manifest_files(manifest)
    inside = {
        one.parent: found
        for one in entries
        if one.name == MANIFEST and (found := _manifest(folder / one.parent)) is not None
    }
    for at, found in inside.items():
        if any(
            _matches(at, place) and found["kind"] == held
            for place, held in NESTED_ARTIFACTS.get(kind, {}).items()
        ):
            known |= {at / name for name in _manifest_files(found)}
    known |= {one for one in entries if _is_compiled(one, known)}
    patterns = UNFINISHED_LAYOUTS.get(kind, ()) if manifest is None else ()
    own = [
        one
        for one in entries
        if one in known
        or one == Path(PARTIAL_MARKER)
        or STAGING_FILE_NAME.fullmatch(one.name)
        or (
            not any(one.is_relative_to(at) for at in inside)
            and any(_matches(one, pattern) for pattern in patterns)
        )
    ]
    foreign = sorted(set(entries) - set(own))
    finished = manifest is not None
    return ExistingTarget(
        f"a finished {kind}" if finished else f"an unfinished {kind}",
        True,
        finished,
        False,
        own,
        foreign,
    )


def _matches(path: Path, pattern: str) -> bool:
    parts = pattern.split("/")
    return len(parts) == len(path.parts) and all(map(fnmatchcase, path.parts, parts))


def _is_compiled(path: Path, known: set[Path]) -> bool:
    """Whether the file is Python's bytecode cache of a known module."""
    return (
        path.suffix == ".pyc"
        and path.parent.name == "__pycache__"
        and path.parents[1] / f"{path.name.split('.')[0]}.py" in known
    )


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
    waiting = _backup_path(folder)
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


def back_up(folder: Path, *, kind: str) -> None:
    """Make room for an artifact that is written in place, over hours: the existing one, checked
    with `keep_backup`, is renamed to NAME~ until `drop_backup`.

    No recipe may have such a name, and a marker file identifies the backup. A finished backup is
    not replaced by an unfinished artifact.
    """
    waiting = _backup_path(folder)
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
    if (_backup_path(folder) / PARTIAL_MARKER).is_file():
        remove(_backup_path(folder), kind=kind)


def _backup_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}~")


def mark_unfinished(folder: Path) -> None:
    """Remove the manifest, because the artifact is being extended; all other files stay."""
    (folder / MANIFEST).unlink(missing_ok=True)


def _keep_rest(folder: Path, replaced_by: Path) -> None:
    """Keep what is left of a folder under a visible name, and log a warning."""
    kept = folder if replaced_by == folder else _unused_backup_path(replaced_by)
    if kept != folder:
        folder.rename(kept)
    _print_note(f"{kept} is kept: there are files in it that phisense did not write")


def discard(folder: Path) -> None:
    """Delete a folder that phisense created for internal use, such as a damaged conversion in the
    cache.
    """
    shutil.rmtree(folder, ignore_errors=True)


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
        _print_note(
            f"removed {removed} unfinished leftovers of processes that have ended from {parent}"
        )


def _remove_leftover_folder(aside: Path) -> bool:
    """Returns whether the folder was removed. The caller holds its lock."""
    name = STAGING_NAME.fullmatch(aside.name)["name"]  # type: ignore[index]
    manifest = _manifest(aside)
    if aside.suffix == ".old" and not (aside.parent / name).exists():
        if manifest is not None:
            _restore(aside, aside.parent / name)
        return False
    if (aside / PARTIAL_MARKER).is_file():
        shutil.rmtree(aside, ignore_errors=True)
    elif manifest is not None:  # the old one after the exchange, or a new one before it
        remove(aside, kind=manifest["kind"])
    elif any(aside.iterdir()):
        _print_note(f"{aside} may be a leftover of an earlier version: look into it, and remove it")
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
            if is_dead and old.suffix == ".old" and _manifest(old) is not None:
                _restore(old, folder)
                return True
    return False


def _restore(old: Path, folder: Path) -> None:
    old.rename(folder)
    _print_note(f"{folder} was being replaced when a process died: it is back, as it was before")


def _manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder; None if it is missing or malformed."""
    path = folder / MANIFEST
    try:
        found = (
            orjson.loads(path.read_bytes())
            if path.is_file() and path.stat().st_size <= MAX_MANIFEST_BYTES
            else None
        )
    except (OSError, ValueError):
        return None
    return (
        found
        if isinstance(found, dict)
        and isinstance(found.get("kind"), str)
        and isinstance(found.get("files"), dict)
        else None
    )


def _is_run(folder: Path) -> bool:
    path = folder / "recipe.yaml"
    if not path.is_file():
        return False
    with path.open("rb") as file:
        begins = file.read(len(RESOLVED_RECIPE_HEADER))
    # the latter: a run of an earlier version
    return begins == RESOLVED_RECIPE_HEADER or (folder / "metrics.jsonl").is_file()


def _manifest_files(manifest: dict[str, Any] | None) -> set[Path]:
    """The files that a manifest lists, and the manifest itself."""
    return (
        set()
        if manifest is None
        else {Path(MANIFEST), Path(PARTIAL_MARKER), *(Path(name) for name in manifest["files"])}
    )


def _entries(folder: Path) -> Iterator[Path]:
    """All files, links and other non-folders, as relative paths. Does not follow
    links to folders.
    """
    for path, folders, files in os.walk(folder):
        at = Path(path)
        links = [name for name in folders if (at / name).is_symlink()]
        yield from ((at / name).relative_to(folder) for name in (*files, *links))


def _unused_backup_path(folder: Path) -> Path:
    number = 1
    while (kept := folder.with_name(f"{folder.name}~{number}")).exists():
        number += 1
    return kept


def _print_note(words: str) -> None:
    _logger.warning("%s", words)
