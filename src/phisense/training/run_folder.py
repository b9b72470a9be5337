"""The runs of a root, their states, and how a run folder is begun and finished.

A run counts as running while a process holds its lock, so a killed run is never listed as running.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from .. import artifacts, safe_replace
from ..errors import ArtifactError, TrainingError, UsageError
from ..pipeline.records import Record
from ..pipeline.results import RUN_KIND
from ..recipe import Recipe


@dataclass(frozen=True, slots=True)
class RunStatus(Record):
    """A run, as `runs --json` prints it. `state` is finished, running, or stopped. `step` of
    `steps` is the last logged one of `stage`.

    `resumable` means that a stopped run has a complete stage or checkpoint.
    """

    name: str
    state: str
    stage: str | None
    step: int | None
    steps: int | None
    loss: float | None
    resumable: bool


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Hold the run's lock file, which lies beside its folder. Raises TrainingError if another
    process holds it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock_file(folder).open("a") as file:
        if not artifacts.try_lock(file):
            raise _locked_error(folder)
        yield


def _locked_error(folder: Path) -> TrainingError:
    return TrainingError(
        f"another process is training in {folder}",
        do="Wait for it, or take another name with --set name=...",
    )


def check_run_folder(folder: Path, *, resume: bool, overwrite: bool, mine: bool = False) -> None:
    """Raises PhisenseError unless a run may begin, or be resumed, in `folder`. Writes nothing.

    `mine` means that the caller holds the run's lock.
    """
    if resume and overwrite:
        raise UsageError(
            "--resume goes on with a run and --overwrite begins anew", do="Leave one of the two out"
        )
    found = safe_replace.inspect_target(folder.resolve(), RUN_KIND) if resume else None
    if resume and (found is None or not found.of_kind):
        raise ArtifactError(
            f"there is no run {folder} to resume",
            got=found.what if found else None,
            do="Train without --resume",
        )
    if not mine and _is_running(folder):
        raise _locked_error(folder)
    if not resume:
        on = (
            "Go on with it by --resume, replace"
            if is_resumable(folder) and not is_finished(folder)
            else "Replace"
        )
        instead = f"{on} it by --overwrite, or take another name with --set name=..."
        safe_replace.check_can_write(
            folder, kind=RUN_KIND, overwrite=overwrite, keep_backup=True, hint=instead
        )


def begin_run(recipe: Recipe, *, resume: bool) -> None:
    """Create the folder of a run after `check_run_folder`.

    A finished run that is replaced is kept as NAME~ until the new one is complete.
    """
    folder = recipe.run.resolve()  # the folder of a resumed run may be a symlink
    if not resume:
        safe_replace.back_up(folder, kind=RUN_KIND)
    folder.mkdir(parents=True, exist_ok=True)
    for inside in (
        folder,
        *(folder / "stages").glob("*"),
        *(folder / "stages").glob("*/checkpoint-*"),
    ):
        safe_replace.remove_leftovers(inside, files=True)
    safe_replace.mark_unfinished(folder)
    resolved = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False).encode()
    artifacts.write_bytes(
        folder / "recipe.yaml", safe_replace.RESOLVED_RECIPE_HEADER + b"\n" + resolved
    )


def finish_run(folder: Path, about: dict[str, Any]) -> None:
    """Write the manifest, which lists only the files that the run wrote, then delete the backup of
    the replaced run.
    """
    folder = folder.resolve()
    found = safe_replace.inspect_target(folder, RUN_KIND)
    if found is None or Path("train.json") not in found.own:
        raise ArtifactError(
            f"{folder} is not what was trained",
            got=found.what if found else "nothing",
            do="Something else wrote there",
        )
    artifacts.write_manifest(folder, kind=RUN_KIND, about=about, files=found.own)
    safe_replace.drop_backup(folder, kind=RUN_KIND)


def is_resumable(folder: Path) -> bool:
    """Whether there is a complete stage or checkpoint to resume from."""
    stages = folder / "stages"
    return any(stages.glob(f"*/{artifacts.MANIFEST}")) or any(
        stages.glob(f"*/checkpoint-*/{artifacts.MANIFEST}")
    )


def manifest_times(folder: Path) -> list[tuple[str, int]]:
    """Paths and modification times of all manifests in the run, to detect that another process has
    trained in it meanwhile.
    """
    found = folder.rglob(artifacts.MANIFEST)
    return sorted((path.relative_to(folder).as_posix(), path.stat().st_mtime_ns) for path in found)


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a finished run."""
    try:
        artifacts.read_manifest(folder, kind=RUN_KIND, verify=False)
    except ArtifactError:
        return False
    return True


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def list_runs(root: Path) -> list[RunStatus]:
    """All runs in `root/runs`, by name. Raises ArtifactError if there is no such folder."""
    if not (root / "runs").is_dir():
        raise ArtifactError(
            f"there are no runs in {root}",
            do="Name the folder that holds runs/, or run phisense train",
        )
    return [
        _read_status(folder)
        for folder in sorted((root / "runs").iterdir())
        if (folder / "recipe.yaml").is_file()
    ]


def _read_status(folder: Path) -> RunStatus:
    log = folder / "metrics.jsonl"
    lines = log.read_bytes().splitlines() if log.is_file() else []
    last: dict[str, Any] = {}
    # the last line may be incomplete, and some rows are evaluations or skipped steps
    for line in lines[-4:]:
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        last = row if "loss" in row else last
    state = "finished" if is_finished(folder) else "running" if _is_running(folder) else "stopped"
    return RunStatus(
        folder.name,
        state,
        last.get("stage"),
        last.get("step"),
        last.get("steps"),
        last.get("loss"),
        state == "stopped" and is_resumable(folder),
    )


def _is_running(folder: Path) -> bool:
    lock = _lock_file(folder)
    if not lock.is_file():
        return False
    with lock.open("rb") as file:
        return not artifacts.try_lock(file)
