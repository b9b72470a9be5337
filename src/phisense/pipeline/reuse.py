"""Steps of the pipeline that are not walked twice: an existing output of the same recipe is
returned, an interrupted step is resumed, and what belongs to another recipe is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from .. import artifacts, safe_parsing, safe_replace
from ..errors import ArtifactError, RecipeError, UsageError
from ..parts import fingerprint, split_revision
from ..recipe import AFTER_TRAINING, CHECKPOINT_KEYS, Recipe, parse_recipe, with_current_keys
from ..training.run_folder import is_resumable
from .evaluate import EvaluationReport, evaluate
from .merge import merge
from .progress import Finished, OnEvent
from .results import MergeResult, TrainResult
from .train import train


def is_complete(folder: Path, kind: str) -> bool:
    """Whether `folder` is a finished artifact of `kind`."""
    found = safe_replace.inspect_target(folder, kind)
    return found is not None and found.of_kind and found.finished


def check_unclaimed(recipe: Recipe) -> None:
    """Raise UsageError if the recipe's run or model folder exists and belongs to another recipe, or
    is something else.
    """
    do = "Take another name with --set name=..., or move it away"
    run, model = (
        safe_replace.inspect_target(recipe.run, "run"),
        safe_replace.inspect_target(recipe.model, "model folder"),
    )
    if run is not None and not run.empty and (not run.of_kind or not is_same_recipe(recipe)):
        raise UsageError(
            f"{recipe.run} would be overwritten",
            got=f"{run.what} of another recipe" if run.of_kind else run.what,
            do=do,
        )
    if (
        model is not None
        and not model.empty
        and not (is_complete(recipe.run, "run") and model.of_kind)
    ):
        raise UsageError(
            f"{recipe.model} would be overwritten", got=f"{model.what} of another run", do=do
        )
    if is_complete(recipe.model, "model folder"):
        dtype = MergeResult.load(recipe.model).dtype
        if dtype != recipe.merge.dtype:
            raise UsageError(
                f"{recipe.model} would be overwritten",
                got=f"a model merged in {dtype}",
                wanted=f"merge.dtype {recipe.merge.dtype}",
                do=do,
            )


def ensure_trained(recipe: Recipe, device: str, on_event: OnEvent) -> TrainResult:
    """Return the recipe's run if it is complete; else resume or start training."""
    if is_complete(recipe.run, "run"):
        return TrainResult.load(recipe.run)
    begun = safe_replace.inspect_target(recipe.run, "run") is not None
    resume = begun and is_resumable(recipe.run)
    trained = train(
        recipe, resume=resume, overwrite=begun and not resume, device=device, on_event=on_event
    )
    on_event(Finished(trained))
    return trained


def ensure_merged(recipe: Recipe, device: str, on_event: OnEvent) -> MergeResult:
    """Return the recipe's merged model; merge it if that was not done yet."""
    if is_complete(recipe.model, "model folder"):
        return MergeResult.load(recipe.model)
    # as this recipe merges, not the one that the run was begun with
    merged = merge(recipe.run, changes=_after_training(recipe), device=device, on_event=on_event)
    on_event(Finished(merged))
    return merged


def _after_training(recipe: Recipe) -> list[str]:
    """The recipe's settings of what comes after training, as changes of the run's."""
    return [
        f"{section}.{name}={orjson.dumps(value).decode()}"
        for section in AFTER_TRAINING
        for name, value in getattr(recipe, section).model_dump(mode="json").items()
    ]


def ensure_evaluated(
    model: Path,
    data: Sequence[Path],
    images: Sequence[Path],
    *,
    out: Path,
    conditions: Sequence[str],
    on_event: OnEvent,
    device: str = "auto",
    limit: int | None = None,
    picture_tokens: int | None = None,
) -> EvaluationReport:
    """Return the report in `out` if it is of this model and `data`, else evaluate. Raises
    UsageError if `out` is a report of another model or of other questions.
    """
    if not is_complete(out, "report"):
        report = evaluate(
            model,
            data=data,
            images=images,
            conditions=conditions,
            out=out,
            device=device,
            limit=limit,
            picture_tokens=picture_tokens,
            on_event=on_event,
        )
        on_event(Finished(report))
        return report
    report = EvaluationReport.load(out)
    about = report.about
    if about.fingerprint != fingerprint(model) or [one.sha256 for one in about.data] != [
        artifacts.file_sha256(one) for one in data
    ]:
        raise UsageError(
            f"{out} is there already",
            got="a report of another model or of other questions",
            do="Move it away",
        )
    return report


def is_same_recipe(recipe: Recipe) -> bool:
    """Whether the existing run was made with this recipe, apart from what comes after training."""
    path = recipe.run / "recipe.yaml"
    ran: Any = safe_parsing.read_yaml(path, ArtifactError) if path.is_file() else None
    try:  # keys that are newer than the run have their defaults
        ran = parse_recipe(with_current_keys(ran)).model_dump(mode="json")
    except RecipeError:
        return False
    for section in AFTER_TRAINING:
        ran.pop(section)
    return bool(
        _settings(ran) == _settings(recipe.model_dump(mode="json", exclude=set(AFTER_TRAINING)))
    )


def _settings(value: Any) -> Any:
    """Recipe settings for comparison: without `root` and the keys of checkpoints, and hub ids
    without the commits that a run pins.
    """
    if isinstance(value, dict):
        return {
            key: _settings(value)
            for key, value in value.items()
            if key not in ("root", *CHECKPOINT_KEYS)
        }
    if isinstance(value, list):
        return [_settings(value) for value in value]
    return split_revision(value)[0] if isinstance(value, str) else value
