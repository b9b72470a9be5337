"""Atomic writes: every artifact is written to a staging path, fsynced and renamed; its manifest is
written last.

A folder with a `manifest.json` is a finished artifact. Readers trust the manifest, not the path:
its kind, format version, inputs, and the sha256 of every file.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from . import safe_parsing, safe_replace
from .console import json_bytes
from .errors import ArtifactError, PhisenseError
from .file_types import HEAD_BYTES, FileType, sniff
from .pipeline.json_fields import JsonObject
from .pipeline.records import Record, rest
from .safe_replace import MANIFEST, PARTIAL_MARKER
from .staging import fsync_folder, try_lock

__all__ = [
    "MANIFEST",
    "FileEntry",
    "Manifest",
    "check_is_model",
    "detect_file_type",
    "file_sha256",
    "is_inside",
    "read_json",
    "read_manifest",
    "replace_file",
    "staged_artifact",
    "translate_disk_errors",
    "try_lock",
    "verify_file",
    "write_bytes",
    "write_json",
    "write_manifest",
]

# bytes; the manifest of a feature store with a million images takes a few megabytes
MAX_ARTIFACT_JSON_BYTES = 256 * 2**20


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: a reader sees either the old content or all of the new content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with translate_disk_errors(path):
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
    except ArtifactError:
        aside.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically as `write_bytes` does."""
    write_bytes(path, json_bytes(value, indent=True))


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises ArtifactError if it is missing, too large, invalid or nested too
    deeply.
    """
    if not path.is_file():
        raise ArtifactError(f"there is no file {path}")
    return safe_parsing.read_bounded_json(path, ArtifactError, MAX_ARTIFACT_JSON_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry(Record):
    """Size in bytes and SHA-256 of a file that a manifest names."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest(Record):
    """The content of `manifest.json`: the kind of artifact, what its writer recorded about it, and
    its files by relative path.
    """

    kind: str
    format: int = 1
    about: JsonObject
    files: Mapping[str, FileEntry]
    extra: JsonObject = rest()

    def text(self, name: str) -> str | None:
        """A text of `about`; None if it is missing or of another type."""
        found = self.about.get(name)
        return found if isinstance(found, str) else None


@contextmanager
def translate_disk_errors(path: Path) -> Iterator[None]:
    """Context manager: turns any disk error that a library raises into an ArtifactError about
    `path`.
    """
    try:
        yield
    except PhisenseError:  # already explains itself; it may come from reading
        raise
    except Exception as error:
        refusal = _disk_error(error)
        if refusal is None:
            raise
        raise ArtifactError(
            f"cannot write {path}", got=refusal, do="Free some space or choose another folder"
        ) from error


def _disk_error(error: BaseException | None) -> str | None:
    """The operating system's message. It may be in a chained exception (torch) or only an error
    number in the text (safetensors).
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.strerror
        told = re.search(r"\(os error (\d+)\)", str(error))
        if told:
            return os.strerror(int(told[1]))
        # torch.save does not pass the system's message on
        if "inline_container" in str(error):
            return "a file that could not be written to its end"
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def staged_artifact(
    folder: Path, *, kind: str, about: dict[str, Any] | None = None, overwrite: bool = False
) -> Iterator[Path]:
    """Context manager: yields an empty staging folder; on success it gets a manifest and becomes
    `folder`, on an exception it is removed.

    `about` is written at the end, so the block may fill it. Raises UsageError if `folder` exists
    and may not be replaced (safe_replace/); an artifact of the same kind is replaced only with
    `overwrite`.
    """
    safe_replace.check_can_write(folder, kind=kind, overwrite=overwrite)
    with translate_disk_errors(folder):
        safe_replace.remove_leftovers(folder.parent)
        with safe_replace.staging_folder(folder, kind=kind) as aside:
            yield aside
            write_manifest(aside, kind=kind, about=about)
            safe_replace.commit(aside, folder, kind=kind, overwrite=overwrite)


def write_manifest(
    folder: Path,
    *,
    kind: str,
    about: dict[str, Any] | None = None,
    files: Iterable[Path] | None = None,
) -> None:
    """Write the manifest that makes a folder an artifact. It lists all files in the folder, or only
    `files` (relative paths) if the folder may contain others.
    """
    named = {}
    listed = folder.rglob("*") if files is None else (folder / one for one in files)
    for path in sorted(
        p for p in listed if p.is_file() and p.name not in (MANIFEST, PARTIAL_MARKER)
    ):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        named[path.relative_to(folder).as_posix()] = {
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
    write_json(folder / MANIFEST, {"kind": kind, "format": 1, "about": about or {}, "files": named})


def replace_file(folder: Path, name: str, data: bytes, *, kind: str) -> None:
    """Replace one file of an artifact. The manifest lists the file only while its content is
    complete; a file that the manifest did not list is added to it.
    """
    read_manifest(folder, kind=kind, verify=False)
    manifest = read_json(folder / MANIFEST)
    files = {one: facts for one, facts in manifest["files"].items() if one != name}
    write_json(folder / MANIFEST, {**manifest, "files": files})
    write_bytes(folder / name, data)
    files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_json(folder / MANIFEST, {**manifest, "files": files})


def read_manifest(folder: Path, *, kind: str, verify: bool = True) -> dict[str, Any]:
    """Return the manifest's `about`. Raises ArtifactError if `folder` is not a finished artifact of
    `kind` or, with `verify`, if a file was changed.
    """
    path = folder / MANIFEST
    if not safe_replace.recover(folder) or not path.is_file():
        found = "no manifest" if folder.is_dir() else "no such folder"
        raise ArtifactError(
            f"{folder} is not a finished {kind}",
            got=found,
            do=f"Make the {kind} again; it was never finished or is elsewhere",
        )
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("kind"), str):
        raise ArtifactError(
            f"{path} is damaged",
            got="no manifest as phisense writes it",
            do=f"Make the {kind} again",
        )
    if manifest["kind"] != kind:
        raise ArtifactError(
            f"{folder} is something else", got=f"a {manifest['kind']}", wanted=f"a {kind}"
        )
    files, about = manifest.get("files"), manifest.get("about")
    if not isinstance(files, dict) or not isinstance(about, dict) or not all(map(is_inside, files)):
        raise ArtifactError(
            f"{path} is damaged",
            got="no list of files inside the folder",
            do=f"Make the {kind} again",
        )
    for name, facts in files.items() if verify else ():
        verify_file(folder / name, facts, do=f"Make the {kind} again")
    return about


def is_inside(name: str) -> bool:
    """Whether a file name in a manifest is a relative path that stays inside the folder."""
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and "\\" not in name
        and "\0" not in name
    )


def check_is_model(folder: Path) -> None:
    """Raise ArtifactError unless `folder` looks like a model folder: a cheap check, before any
    heavy import.
    """
    if folder.is_file():
        kind = detect_file_type(folder)
        got, do = ("a file", None) if kind is None else (f"a file, which is {kind.name}", kind.do)
        raise ArtifactError(
            f"{folder} is not a model folder",
            got=got,
            wanted="the folder that phisense merge writes",
            do=do,
        )
    if not safe_replace.recover(folder) or not (folder / "config.json").is_file():
        got = "no config.json" if folder.is_dir() else "no such folder"
        raise ArtifactError(
            f"{folder} is not a model folder",
            got=got,
            wanted="what phisense merge writes",
            do="Run phisense merge RUN",
        )


def detect_file_type(path: Path) -> FileType | None:
    """The type of a file by its first bytes; None if it cannot be read or the type is unknown."""
    try:
        with path.open("rb") as file:
            return sniff(file.read(HEAD_BYTES))
    except OSError:
        return None


def verify_file(path: Path, facts: Any, *, do: str) -> None:
    """Raise ArtifactError unless the file has the size and sha256 of `facts`, its entry in the
    manifest.
    """
    named = isinstance(facts, dict) and path.is_file()
    if (
        not named
        or path.stat().st_size != facts.get("bytes")
        or file_sha256(path) != facts.get("sha256")
    ):
        raise ArtifactError(
            f"{path} is damaged", got="other content than its manifest names", do=do
        )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
