"""Checkpoints that are either whole or not there: the trainable weights and the Trainer's state, with a manifest written last.

A checkpoint is looked at only if its manifest and every file's sha256 are right, so a run killed while saving, or a disk that
flipped a bit, costs the steps since the checkpoint before.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors.torch import load_file, save_file

from .. import artefact
from ..errors import ArtefactError
from ..model.trained import load_trainable, save_trainable

KIND = "checkpoint"
RANDOM = "random.safetensors"
KEPT = 2
#: What runs of earlier versions did not record: not known is not changed.
_LATER = ("computes_in", "language.", "recipe.train.watch.final_questions")


def save_stage(model: Any, folder: Path) -> None:
    """What the next stage goes on from: the weights, and where the random numbers are, for its LoRA begins with some."""
    save_trainable(model, folder)
    save_file({"torch": torch.get_rng_state()}, folder / RANDOM)


def load_stage(model: Any, folder: Path) -> None:
    load_trainable(model, folder)
    torch.set_rng_state(load_file(folder / RANDOM)["torch"])


def newest_verified(folder: Path, *, about: dict[str, Any] | None) -> Path | None:
    """The newest whole checkpoint; unfinished and damaged ones are skipped. Raises ArtefactError if it was made of something else
    than `about`, unless that is None."""
    for path in _by_step(folder):
        try:
            made = artefact.read_manifest(path, kind=KIND)
        except ArtefactError:
            continue
        if about is not None:
            refuse_changes(path, made, about)
        return path
    return None


def refuse_changes(path: Path, made: dict[str, Any], about: dict[str, Any]) -> None:
    """Raises ArtefactError, with every difference, unless what the run is made of is what it was."""
    old, new = _leaves(made), _leaves(orjson.loads(orjson.dumps(about)))
    new = {key: value for key, value in new.items() if key in old or not key.startswith(_LATER)}
    changed = [f"{key} was {old.get(key)}, is {new.get(key)}" for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if changed:
        raise ArtefactError(
            f"{path} was made with another recipe, other data or other features",
            got="; ".join(changed),
            do="Train without --resume to begin anew, undo the change, or go on with it by --accept-changes",
        )


def _leaves(tree: Any, at: str = "") -> dict[str, Any]:
    """Every value that is no mapping, by its dotted key."""
    if not isinstance(tree, dict):
        return {at: tree}
    return {key: value for name, below in tree.items() for key, value in _leaves(below, f"{at}.{name}" if at else str(name)).items()}


def finish(path: Path, *, about: dict[str, Any]) -> None:
    """Writes the manifest that makes `path` a checkpoint, then drops all but the newest `KEPT` up to it.

    Later ones are damaged, or this run would have gone on from them, and must not count as kept.
    """
    artefact.write_manifest(path, kind=KIND, about=about)
    by_step = _by_step(path.parent)
    for old in by_step[by_step.index(path) + KEPT :]:
        shutil.rmtree(old, ignore_errors=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _by_step(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=step_of, reverse=True)
