"""How anything is written to disk: aside, flushed to the disk, then renamed; what it is made of last, in a manifest.

A reader that finds `manifest.json` finds a finished artefact. It trusts the manifest, not the path: kind, format version,
what it was made from, and the sha256 of every file.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from .errors import ArtefactError, UsageError

MANIFEST = "manifest.json"


def write_bytes(path: Path, data: bytes) -> None:
    """Atomic: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with writing(path):
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
    except ArtefactError:
        aside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY))


def read_json(path: Path) -> Any:
    if not path.is_file():
        raise ArtefactError(f"there is no file {path}")
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise ArtefactError(f"{path} is not JSON", got=str(error)) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, whatever a library raises because the disk refuses becomes one sentence about `path`."""
    try:
        yield
    except Exception as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        raise ArtefactError(f"cannot write {path}", got=refusal, do="Free some space or choose another folder") from error


def _refusal(error: BaseException | None) -> str | None:
    """What the system said: torch raises an error of its own while it handles the system's, safetensors only tells its number."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.strerror
        told = re.search(r"\(os error (\d+)\)", str(error))
        if told:
            return os.strerror(int(told[1]))
        if "inline_container" in str(error):  # torch.save, which keeps what the system said to itself
            return "a file that could not be written to its end"
        error = error.__cause__ or error.__context__
    return None


def refuse_to_replace(folder: Path, *, kind: str) -> None:
    """Raises UsageError if what is at `folder` is no artefact of `kind`: to be asked before anything is computed that would replace it."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    manifest = folder / MANIFEST
    found = read_json(manifest).get("kind") if manifest.is_file() else "files of another making" if folder.is_dir() else "a file"
    if found != kind:
        raise UsageError(f"{folder} would be overwritten", got=f"{found}", wanted=f"nothing there, or a {kind}", do="Choose another --out")


@contextmanager
def staged(folder: Path, *, kind: str, about: dict[str, Any] | None = None) -> Iterator[Path]:
    """Gives an empty folder beside `folder`; when the block ends well it gets a manifest and replaces `folder`, else it is removed."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with writing(folder):
            aside.mkdir(parents=True)
            yield aside
            write_manifest(aside, kind=kind, about=about)
            old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
            if folder.exists():
                folder.rename(old)
            aside.rename(folder)
            _sync_folder(folder.parent)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_manifest(folder: Path, *, kind: str, about: dict[str, Any] | None = None) -> None:
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    write_json(folder / MANIFEST, {"kind": kind, "format": 1, "about": about or {}, "files": files})


def read_manifest(folder: Path, *, kind: str, verify: bool = True) -> dict[str, Any]:
    """The manifest's `about`. Raises ArtefactError if `folder` is no finished artefact of `kind` or a file was changed."""
    path = folder / MANIFEST
    if not path.is_file():
        found = "no manifest" if folder.is_dir() else "no such folder"
        raise ArtefactError(
            f"{folder} is not a finished {kind}", got=found, do=f"Make the {kind} again; it was never finished or is elsewhere"
        )
    manifest = read_json(path)
    if manifest.get("kind") != kind:
        raise ArtefactError(f"{folder} is something else", got=f"a {manifest.get('kind')}", wanted=f"a {kind}")
    for name, facts in manifest["files"].items() if verify else ():
        verify_file(folder / name, facts, do=f"Make the {kind} again")
    about: dict[str, Any] = manifest["about"]
    return about


def check_is_model(folder: Path) -> None:
    """Raises ArtefactError unless there is a model in `folder`: what can be said before anything heavy is imported to open it."""
    if not (folder / "config.json").is_file():
        got = "no config.json" if folder.is_dir() else "no such folder"
        raise ArtefactError(f"{folder} is not a model folder", got=got, wanted="what phisense merge writes", do="Run phisense merge RUN")


def verify_file(path: Path, facts: dict[str, Any] | None, *, do: str) -> None:
    """Raises ArtefactError unless the file is the one that `facts`, its entry in a manifest, names."""
    if facts is None or not path.is_file() or path.stat().st_size != facts["bytes"] or sha256(path) != facts["sha256"]:
        raise ArtefactError(f"{path} is damaged", got="other content than its manifest names", do=do)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(file: Any) -> bool:
    """Whether the lock was free; it is let go when the file is closed, also by a killed process. Without flock every lock is free."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
