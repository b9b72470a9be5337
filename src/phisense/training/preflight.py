"""Preflight checks: all of a run that can be checked before a weight is read or anything is
written.

A run of hours must not fail in its second stage because of a row, a file or a pattern that could
have been checked in the first minute. So the samples of all stages are built here, once, and
training uses them; the model is built on the meta device, where LoRA, the projector and the number
of trainable parameters are checked without memory. `compare` and `tune` check every variant in this
way before the first is trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.integrations import integration_utils

from ..conversations import ImageFinder, Question, read_questions
from ..errors import ArtifactError, ImageError, TrainingError
from ..model import Phi3WithProjector, count_image_tokens, trainable
from ..model.lora import check_targets, target_pattern
from ..model.merge_questions import merge_questions
from ..model.projectors.weights import check_projector
from ..parts import resolve_part
from ..recipe import Recipe, Stage
from ..vision.store import FeatureStore
from .data import Samples, scale_rows
from .objectives import OBJECTIVES

#: Rows and conversations of every stage, by its name, for data that was rendered already; the key
#: is all that the rendering depends on.
RowCounts = dict[str, dict[str, tuple[int, int]]]


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage's data and schedule: micro-batches of `rows`, `passes` of them per step in every
    process.
    """

    samples: Samples
    rows: int
    passes: int
    steps: int


def preflight(recipe: Recipe, *, processes: int = 1) -> dict[str, PlannedStage]:
    """Every stage's samples, by the stage's name. Reads the parts' configurations, the tokenizer
    and the data; writes nothing.

    Raises PartError for parts that do not fit, ConversationError for data that cannot be trained
    on, TrainingError for settings with which training must not begin.
    """
    _check_integrations(recipe.train.report_to)
    outline = Phi3WithProjector.meta_from_recipe(recipe)
    _check_trained(outline, recipe)
    _check_held_out(recipe)
    ahead = {
        name: _plan_stage(recipe, name, stage, outline, processes)
        for name, stage in recipe.train.stages.items()
    }
    _check_enough_steps(recipe, {name: one.steps for name, one in ahead.items()})
    return ahead


def check_pictures(
    recipe: Recipe,
    ahead: dict[str, PlannedStage],
    store: FeatureStore,
    questions: Iterable[Question],
) -> None:
    """Raises ArtifactError if the store lacks images of a stage, or if their files or those of
    `questions` have changed.
    """
    for name, stage in ahead.items():
        missing = sorted(picture for picture in stage.samples.pictures if picture not in store)
        if missing:
            raise ArtifactError(
                f"the feature store {store.folder} lacks pictures of stage {name}",
                got=f"{len(missing)}, the first {missing[0]}",
                do="Run phisense features again",
            )
    if recipe.start is None and not store.names:
        raise ArtifactError(
            f"the feature store {store.folder} is empty",
            got="no picture",
            wanted="some, to fit the projector to",
            do="Name data with pictures",
        )
    for stage in ahead.values():
        store.check(stage.samples.pictures)
    store.check(
        question.image
        for question in questions
        if question.image is not None and question.image in store
    )


def check_variant(recipe: Recipe, *, cache: RowCounts | None = None) -> None:
    """As `preflight`, for a recipe that is trained, merged and evaluated later: its images, and
    those of its held-out questions, must be in the image folders.

    Nothing that is built is kept. Data that is already in `cache` is not checked again; only the
    number of steps that this recipe makes of it is.

    Raises MergeError if there are no held-out questions to compare the merged model on, ImageError
    for a missing image.
    """
    key = _cache_key(recipe)
    if cache is not None and key in cache:
        _check_integrations(recipe.train.report_to)
        _check_trained(Phi3WithProjector.meta_from_recipe(recipe), recipe)
        stages = recipe.train.stages
        _check_enough_steps(
            recipe,
            {
                name: _count_steps(
                    stages[name], rows, scale_rows(stages[name].batch_size, rows, of)
                )
                for name, (rows, of) in cache[key].items()
            },
        )
        return
    ahead = preflight(recipe)
    pictures = ImageFinder(recipe.image_folders)
    for stage in ahead.values():
        for name in sorted(stage.samples.pictures):
            pictures.path(name)
    check_probes(recipe)
    if cache is not None:
        cache[key] = {
            name: (len(stage.samples), stage.samples.conversations) for name, stage in ahead.items()
        }


def check_probes(recipe: Recipe) -> None:
    """Raises MergeError, ConversationError or ImageError unless the merge finds the held-out
    questions and images that it compares on.
    """
    questions = merge_questions(recipe)
    pictures = ImageFinder(recipe.image_folders)
    lost = sorted(
        {
            str(question.image)
            for question in questions
            if question.image is not None and pictures.find(question.image) is None
        }
    )
    if lost:
        raise ImageError(
            "held-out questions are about pictures that are not there",
            got=f"{len(lost):,}, the first {lost[0]}",
            wanted=f"each in {', '.join(map(str, recipe.image_folders))}",
            do="Name its folder in data.images, or take the questions out of data.held_out",
        )


def _check_held_out(recipe: Recipe) -> None:
    """Read every held-out file that exists: a bad row would end the run at its first evaluation.

    A missing file is reported by EvalCallback before the first step.
    """
    for file in recipe.data.held_out:
        if recipe.path(file).exists():
            read_questions(recipe.path(file))


def _check_trained(outline: Phi3WithProjector, recipe: Recipe) -> None:
    """Check the projector, LoRA targets and trainable parameters on the meta device."""
    if recipe.start is not None:
        check_projector(outline.projector, resolve_part(recipe.start), outline.model.config)
    if recipe.train.lora is not None:
        check_targets(outline.model, target_pattern(outline.model, recipe.train.lora))
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        trainable.freeze_all_but_projector(outline)
        trainable.count_trainable(trainable.unfreeze_language(outline, recipe), recipe)


def _plan_stage(
    recipe: Recipe, name: str, stage: Stage, outline: Phi3WithProjector, processes: int
) -> PlannedStage:
    samples = Samples(
        [(recipe.path(one.path), one.weight) for one in recipe.data_of(name)],
        outline.prompt,
        {
            side: count_image_tokens(outline.model.config, side)
            for side in recipe.projector.nested or (1,)
        },
        stage.max_length,
        objective=OBJECTIVES[stage.objective],
        share=recipe.train.share_pictures,
        seed=recipe.seed,
    )
    rows = samples.micro_batch_rows(stage.batch_size, stage.micro_batch_size, processes)
    passes = samples.rows_for(stage.batch_size) // rows // processes
    return PlannedStage(
        samples, rows, passes, _count_steps(stage, len(samples), rows * passes * processes)
    )


def _count_steps(stage: Stage, rows: int, rows_per_step: int) -> int:
    """Number of steps of a stage with `rows` rows, `rows_per_step` of them in a step."""
    return (
        stage.max_steps
        if stage.max_steps > 0
        else math.ceil(max(1, math.ceil(rows / rows_per_step)) * stage.epochs)
    )


def _check_enough_steps(recipe: Recipe, steps: dict[str, int]) -> None:
    """The learning rate of a warm-up's first step is 0: a run whose stages all have only that step
    trains nothing.
    """
    if all(
        count < 2 and recipe.train.stages[name].warmup_ratio > 0 for name, count in steps.items()
    ):
        raise TrainingError(
            "training would not move the projector",
            got=(
                f"{', '.join(f'{count} step in {name}' for name, count in steps.items())}, at a"
                " rate of 0, with which a warm-up begins"
            ),
            wanted="a step behind the warm-up",
            do="Take more steps, or warmup_ratio: 0",
        )


def _check_integrations(wanted: Sequence[str]) -> None:
    """Raises TrainingError for a package in train.report_to that is not installed."""
    installed = set(integration_utils.get_available_reporting_integrations())
    installed |= {"flyte"} if integration_utils.is_flytekit_available() else set()
    lacking = [name for name in wanted if name not in installed]
    if lacking:
        raise TrainingError(
            f"train.report_to names what is not installed, {lacking[0]}",
            got=f"installed: {', '.join(sorted(installed)) or 'none'}",
            do=f"pip install the package of {lacking[0]}, or leave it out of train.report_to",
        )


def _cache_key(recipe: Recipe) -> str:
    """All that the rendered data of a recipe and its checks depend on; not the batch size or the
    number of steps.
    """
    told: dict[str, Any] = recipe.model_dump(
        mode="json", include={"seed", "root", "start", "language", "vision", "projector", "data"}
    )
    stages = {
        name: (
            stage.objective,
            stage.max_length,
            [(str(one.path), one.weight) for one in recipe.data_of(name)],
        )
        for name, stage in recipe.train.stages.items()
    }
    return repr((told, stages, recipe.train.share_pictures))
