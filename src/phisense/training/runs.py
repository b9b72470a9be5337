"""The runs of a root and their states. A run is running while a process holds its lock, so a killed one never looks alive."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from .. import artefact
from ..errors import ArtefactError, TrainingError

KIND = "run"


@dataclass(frozen=True, slots=True)
class Run:
    """`state` is finished, running, or stopped. `step` of `steps` is `stage`'s last logged one; `resumable` from a whole checkpoint."""

    name: str
    state: str
    stage: str | None
    step: int | None
    steps: int | None
    loss: float | None
    resumable: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds the run's lock, which lies beside it. Raises TrainingError if another process does."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock_file(folder).open("w") as file:
        if not artefact.lock(file):
            raise TrainingError(f"another process is training in {folder}", do="Wait for it, or take another name with --set name=...")
        yield


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def runs(root: Path) -> list[Run]:
    """All runs in `root/runs`, by name. Raises ArtefactError if there is no such folder."""
    if not (root / "runs").is_dir():
        raise ArtefactError(f"there are no runs in {root}", do="Name the folder that holds runs/, or run phisense train")
    return [_look(folder) for folder in sorted((root / "runs").iterdir()) if (folder / "recipe.yaml").is_file()]


def _look(folder: Path) -> Run:
    log = folder / "metrics.jsonl"
    lines = log.read_bytes().splitlines() if log.is_file() else []
    last: dict[str, Any] = {}
    for line in lines[-4:]:  # the last may be half a line, and some are of answers or of steps left out
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        last = row if "loss" in row else last
    state = "finished" if _finished(folder) else "running" if _running(folder) else "stopped"
    whole = [path for path in (folder / "stages").glob("*/checkpoint-*") if (path / artefact.MANIFEST).is_file()]
    whole += list((folder / "stages").glob(f"*/{artefact.MANIFEST}"))
    return Run(
        folder.name, state, last.get("stage"), last.get("step"), last.get("steps"), last.get("loss"), state == "stopped" and bool(whole)
    )


def _finished(folder: Path) -> bool:
    try:
        artefact.read_manifest(folder, kind=KIND, verify=False)
    except ArtefactError:
        return False
    return True


def _running(folder: Path) -> bool:
    lock = _lock_file(folder)
    if not lock.is_file():
        return False
    with lock.open("r+") as file:
        return not artefact.lock(file)
