"""Atomic checkpoints: the trainable weights and the Trainer's state, with a manifest written last.

A checkpoint counts only if its manifest and every file's sha256 are correct, so a run killed while
saving, or a bit flipped on disk, costs only the steps since the previous checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors.torch import load_file, save_file

from .. import artifacts, safe_replace
from ..errors import ArtifactError
from ..model.trainable import TRAINABLE_FILE as TRAINABLE
from ..model.trainable import load_trainable, save_trainable
from ..recipe import AFTER_TRAINING, Train, with_current_keys

CHECKPOINT_KIND, STAGE_KIND = "checkpoint", "stage"
RNG_FILE = "random.safetensors"
#: Without `train.checkpoint_every`: checkpoints in a stage, and fewest and most steps between two.
PER_STAGE, MIN_INTERVAL, MAX_INTERVAL = 4, 20, 500
#: Keys that runs of earlier versions did not record: a missing one does not count as changed.
_RECORDED_LATER = ("computes_in", "parts.", "base.", "recipe.train.eval.final_questions")
#: Keys that they recorded: the parts' locations, which say nothing about their content, and what is
#: done after training.
_NO_LONGER_COMPARED = (
    *(f"recipe.{section}." for section in AFTER_TRAINING),
    "language.",
    "recipe.language.part",
    "recipe.vision.part",
    "recipe.speech",
    "recipe.start",
)


def finish_stage(model: Any, folder: Path, *, about: dict[str, Any], write: bool = True) -> None:
    """Save what the next stage starts from: the weights, and the RNG state, which initializes its
    LoRA.

    The files are written in place, the manifest last; then the stage's checkpoints are deleted.
    Other files in the folder are left alone. A collective for a sharded model, of which one process
    has to `write`.
    """
    with artifacts.translate_disk_errors(folder):
        save_trainable(model, folder, write=write)
        if not write:
            return
        save_file({"torch": torch.get_rng_state()}, folder / RNG_FILE)
        artifacts.write_manifest(
            folder, kind=STAGE_KIND, about=about, files=[Path(TRAINABLE), Path(RNG_FILE)]
        )
    for checkpoint in _by_step(folder):
        safe_replace.remove(checkpoint, kind=CHECKPOINT_KIND)


def load_stage(model: Any, folder: Path) -> None:
    """Load a finished stage's weights into `model`, and restore its RNG state."""
    load_trainable(model, folder)
    torch.set_rng_state(load_file(folder / RNG_FILE)["torch"])


def latest_verified(folder: Path, *, about: dict[str, Any] | None) -> Path | None:
    """The newest complete checkpoint, or None; unfinished and damaged ones are skipped.

    Raises ArtifactError if it was made of something other than `about`, unless that is None.
    """
    for path in _by_step(folder):
        try:
            made = artifacts.read_manifest(path, kind=CHECKPOINT_KIND)
        except ArtifactError:
            continue
        if about is not None:
            check_unchanged(path, made, about)
        return path
    return None


def check_unchanged(path: Path, made: dict[str, Any], about: dict[str, Any]) -> None:
    """Raises ArtifactError, listing every difference, if `about` differs from what `path` was
    `made` from.
    """
    recorded = {**made, "recipe": with_current_keys(made.get("recipe", {}))}
    old, new = _flatten(recorded), _flatten(orjson.loads(orjson.dumps(about)))
    old = {key: value for key, value in old.items() if not key.startswith(_NO_LONGER_COMPARED)}
    new = {key: value for key, value in new.items() if key in old or not _was_implied(key, value)}
    changed = [
        f"{key} was {old.get(key)}, is {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if changed:
        raise ArtifactError(
            f"{path} was made with another recipe, other data or other features",
            got="; ".join(changed),
            do=(
                "Undo the change, go on with it by --accept-changes, or begin anew under another"
                " name, --set name=..., or with --overwrite"
            ),
        )


def _was_implied(key: str, value: object) -> bool:
    """Whether a run of an earlier version, which did not record `key`, need not differ in it."""
    if key.startswith("recipe.train.") and key.endswith(".objective"):
        return value == "supervised"
    return key.startswith(_RECORDED_LATER)


def _flatten(tree: object, prefix: str = "") -> dict[str, object]:
    """Every leaf that is not a mapping, by its dotted key."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        key: value
        for name, below in tree.items()
        for key, value in _flatten(below, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def save_interval(train: Train, steps: int) -> int:
    """Steps between two checkpoints of a stage of so many steps."""
    if train.checkpoint_every is not None:
        return train.checkpoint_every
    return max(MIN_INTERVAL, min(MAX_INTERVAL, steps // PER_STAGE))


def finish_checkpoint(path: Path, *, about: dict[str, Any], keep: int) -> None:
    """Write the manifest that makes `path` a checkpoint, then keep only the newest `keep`
    checkpoints up to it.

    Later checkpoints are damaged, or this run would have resumed from them, and do not count toward
    the limit.
    """
    artifacts.write_manifest(path, kind=CHECKPOINT_KIND, about=about)
    by_step = _by_step(path.parent)
    for old in by_step[by_step.index(path) + keep :]:
        safe_replace.remove(old, kind=CHECKPOINT_KIND)


def step_of(checkpoint: Path) -> int:
    """Optimizer step of a `checkpoint-N` folder."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _by_step(folder: Path) -> list[Path]:
    found = [
        path
        for path in folder.glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdigit()
    ]
    return sorted(found, key=step_of, reverse=True)
