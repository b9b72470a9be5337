"""What exists at a path, as an artifact of a kind: its own files, and foreign ones. Read-only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import orjson

from ..staging import STAGING_FILE_NAME
from .layouts import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    NESTED_ARTIFACTS,
    PARTIAL_MARKER,
    RESOLVED_RECIPE_HEADER,
    UNFINISHED_LAYOUTS,
)


@dataclass(frozen=True, slots=True)
class ManifestHead:
    """What a manifest says an artifact is: its kind, and its files as relative paths."""

    kind: str
    files: frozenset[Path]


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
    manifest = read_head(folder)
    if manifest is None:
        if kind not in UNFINISHED_LAYOUTS or (kind == "run" and not _is_run(folder)):
            return ExistingTarget("files of another making")
    elif manifest.kind != kind:
        return ExistingTarget(f"a {manifest.kind}")
    known = _listed_files(manifest)
    inside = {
        one.parent: found
        for one in entries
        if one.name == MANIFEST and (found := read_head(folder / one.parent)) is not None
    }
    for at, found in inside.items():
        if any(
            _matches(at, place) and found.kind == held
            for place, held in NESTED_ARTIFACTS.get(kind, {}).items()
        ):
            known |= {at / name for name in _listed_files(found)}
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


def read_head(folder: Path) -> ManifestHead | None:
    """The head of a folder's manifest; None if it is missing or malformed."""
    path = folder / MANIFEST
    try:
        found = (
            orjson.loads(path.read_bytes())
            if path.is_file() and path.stat().st_size <= MAX_MANIFEST_BYTES
            else None
        )
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict):
        return None
    kind, files = found.get("kind"), found.get("files")
    if not isinstance(kind, str) or not isinstance(files, dict):
        return None
    return ManifestHead(kind, frozenset(map(Path, files)))


def _is_run(folder: Path) -> bool:
    path = folder / "recipe.yaml"
    if not path.is_file():
        return False
    with path.open("rb") as file:
        begins = file.read(len(RESOLVED_RECIPE_HEADER))
    # the latter: a run of an earlier version
    return begins == RESOLVED_RECIPE_HEADER or (folder / "metrics.jsonl").is_file()


def _listed_files(manifest: ManifestHead | None) -> set[Path]:
    """The files that a manifest lists, and the manifest itself."""
    return set() if manifest is None else {Path(MANIFEST), Path(PARTIAL_MARKER), *manifest.files}


def _entries(folder: Path) -> Iterator[Path]:
    """All files, links and other non-folders, as relative paths. Does not follow
    links to folders.
    """
    for path, folders, files in os.walk(folder):
        at = Path(path)
        links = [name for name in folders if (at / name).is_symlink()]
        yield from ((at / name).relative_to(folder) for name in (*files, *links))
