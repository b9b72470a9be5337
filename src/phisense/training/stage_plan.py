"""The plan of a stage: its data and arguments, what its checkpoints are made of, and what of it is
done already if the run is resumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from .. import artifacts
from ..recipe import AFTER_TRAINING, CHECKPOINT_KEYS, Recipe, Stage
from . import checkpoints
from .preflight import PlannedStage
from .run_context import FrozenWeights, RunContext
from .trainer import arguments

#: Recipe keys that a resume does not compare: the location of a part says nothing about its content
#: (`parts` does), nor does a size that is asked for about the effective one (`features.encoder`
#: does), nor the requested dtype about the one used (`computes_in` does); how often checkpoints are
#: written, how the model is merged and how it is evaluated changes nothing that is trained.
_NOT_COMPARED: Any = {
    **dict.fromkeys(("root", "compute_dtype", "start", "speech", *AFTER_TRAINING), True),
    "language": {"part"},
    "vision": {"part", "size"},
    "train": set(CHECKPOINT_KEYS),
}


@dataclass(frozen=True)
class StagePlan:
    """A stage before anything is written. `about` says what it is made of: checkpoints and finished
    weights of anything else are rejected.

    In a resumed run `finished` is the recorded outcome of a stage that had finished, `checkpoint`
    the newest checkpoint of one that had not.
    """

    name: str
    folder: Path
    stage: Stage
    ahead: PlannedStage
    args: TrainingArguments
    about: dict[str, object]
    finished: Mapping[str, Any] | None = None
    checkpoint: Path | None = None


def stage_folder(recipe: Recipe, stage: str) -> Path:
    """The folder of a stage's checkpoints and finished weights."""
    return recipe.run / "stages" / stage


def is_made(recipe: Recipe, stage: str) -> bool:
    """Whether the run's folder holds a finished `stage`."""
    return (stage_folder(recipe, stage) / artifacts.MANIFEST).is_file()


def plan_stage(
    run: RunContext,
    name: str,
    ahead: PlannedStage,
    frozen: FrozenWeights,
    *,
    resume: bool,
    accept_changes: bool,
) -> StagePlan:
    """Plan a stage, with its finished weights or newest checkpoint if the run is resumed. Writes
    nothing.

    Raises ArtifactError if these were made from another recipe, other data or other parts.
    """
    folder, stage = stage_folder(run.recipe, name), run.recipe.train.stages[name]
    args = _arguments(run, stage, ahead, folder)
    about = _describe(run, name, ahead, frozen)
    if not resume:
        return StagePlan(name, folder, stage, ahead, args, about)
    if is_made(run.recipe, name):
        made = artifacts.read_manifest(folder, kind="stage")
        if not accept_changes:
            checkpoints.check_unchanged(folder, made["about"], about)
        return StagePlan(name, folder, stage, ahead, args, about, finished=made["facts"])
    last = checkpoints.latest_verified(folder, about=None if accept_changes else about)
    return StagePlan(name, folder, stage, ahead, args, about, checkpoint=last)


def _describe(
    run: RunContext, name: str, ahead: PlannedStage, frozen: FrozenWeights
) -> dict[str, object]:
    samples, store = ahead.samples, run.store
    return {
        "recipe": run.recipe.model_dump(mode="json", exclude=_NOT_COMPARED),
        "stage": name,
        "data": {"conversations": samples.conversations, "sha256": samples.digest},
        "features": {"encoder": store.encoder, "sha256": store.digest(samples.pictures)},
        "computes_in": run.arithmetic.format,
        "parts": {name: told.sha256 for name, told in run.parts.items() if name != "speech"},
        "base": {"four_bit_codes": frozen.codes, "plain_weights": frozen.plain},
    }


def _arguments(
    run: RunContext, stage: Stage, ahead: PlannedStage, folder: Path
) -> TrainingArguments:
    recipe = run.recipe
    steps = (
        stage.max_steps
        if stage.max_steps > 0
        else round(stage.epochs * ahead.samples.conversations / stage.batch_size)
    )
    return arguments(
        stage,
        folder,
        seed=recipe.seed,
        rows=ahead.rows,
        passes=ahead.passes,
        log_every=recipe.train.log_every,
        save_every=checkpoints.save_interval(recipe.train, steps),
        bf16=run.arithmetic.dtype is torch.bfloat16,
        cpu=run.arithmetic.device.type == "cpu",
        checkpointing=recipe.train.gradient_checkpointing,
        report_to=recipe.train.report_to,
        skip_bad_steps=recipe.train.bad_step == "skip",
    )
