"""Training record of a model folder: `training.json`, which `merge` writes from the run.

{"name", "recipe": {...},
 "data": [{"stage", "name", "rows", "weight"}], "held_out": [names], "seconds", "hours",
 "stages": {stage: as in train.json},
 "curves": {stage: {"step", "loss", "learning_rate", "held_out": {"step", "accuracy", "blind"}}},
 "trainable", "modules", "projector_change", "looks": as in train.json,
 "common_answers": {"answers": {key: [[answer, number], ...]}, "text"}: see `AnswerTable`}

The folder is meant to be shared, so the record holds no paths of the machine that trained it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import orjson

from .. import artifacts
from ..conversations.common_answers import FILE, RECORD_KEY
from ..pipeline.json_fields import JsonObject
from ..pipeline.records import Record, omitted, rest
from ..recipe import Recipe

RECORD_FILE = "training.json"
MAX_POINTS = 300  # per curve
_PACKAGE = Path(__file__).resolve().parents[1]
_COPIED_FACTS = (
    "calibration",
    "trainable",
    "trainable_expected",
    "projector_change",
    "looks",
    "arithmetic",
    "four_bit_codes",
    "plain_weights",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedFile(Record):
    """A data set of a stage: its file name, its rows (None if not recorded), and its weight."""

    stage: str
    name: str
    rows: int | None = omitted()
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedAccuracy(Record):
    """Accuracy on held-out questions by optimizer step, with the image and, if asked, without."""

    step: tuple[int, ...]
    accuracy: tuple[float, ...]
    blind: tuple[float, ...] | None = omitted()


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCurve(Record):
    """Loss and learning rate of a stage by optimizer step, and its held-out evaluations."""

    step: tuple[int, ...]
    loss: tuple[float, ...]
    learning_rate: tuple[float | None, ...]
    held_out: RecordedAccuracy | None = omitted()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord(Record):
    """The content of `training.json`; `stages` are those of `train.json`, `copied` more of its
    keys.
    """

    name: str
    recipe: JsonObject
    data: tuple[RecordedFile, ...]
    held_out: tuple[str, ...]
    seconds: float
    hours: float
    stages: Mapping[str, JsonObject]
    curves: Mapping[str, RecordedCurve]
    modules: int
    copied: JsonObject = rest()


def training_record(run: Path, recipe: Recipe) -> TrainingRecord:
    """The record of `run`. Facts that older versions of phisense did not write, such as the rows of
    each file, are left out.
    """
    facts = artifacts.read_json(run / "train.json")
    answers = run / FILE
    rows = _metrics_rows(run / "metrics.jsonl")
    stages: dict[str, Any] = facts.get("stages", {})
    seconds = sum(
        _seconds([row["seconds"] for row in rows if row["stage"] == stage]) for stage in stages
    )
    return TrainingRecord(
        name=recipe.name,
        recipe=strip_paths(recipe.model_dump(mode="json", exclude={"root"})),
        data=tuple(one for stage in stages for one in _data_files(recipe, stage, stages[stage])),
        held_out=tuple(file.name for file in recipe.data.held_out),
        seconds=round(seconds, 1),
        hours=seconds / 3600,
        stages={
            name: {key: value for key, value in stage.items() if key != "data"}
            for name, stage in stages.items()
        },
        curves={stage: _curve([row for row in rows if row["stage"] == stage]) for stage in stages},
        modules=len(facts.get("modules", ())),
        copied={
            **{key: facts[key] for key in _COPIED_FACTS if key in facts},
            **({RECORD_KEY: artifacts.read_json(answers)} if answers.is_file() else {}),
        },
    )


def strip_paths(value: Any) -> Any:
    """A copy in which paths that are absolute, or contain `~` or `..`, are reduced to their last
    name.

    A path inside the package is reduced to its location there.
    """
    if isinstance(value, Mapping):
        return {key: strip_paths(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [strip_paths(one) for one in value]
    return _strip_path(value) if isinstance(value, str) else value


def _strip_path(text: str) -> str:
    kinds: tuple[PurePath, ...] = (PurePosixPath(text), PureWindowsPath(text))
    for path in kinds:
        if path.is_absolute() or ".." in path.parts or text.startswith("~"):
            here = Path(text)
            return (
                here.relative_to(_PACKAGE).as_posix()
                if here.is_relative_to(_PACKAGE)
                else path.name
            )
    return text


def _data_files(recipe: Recipe, stage: str, facts: dict[str, Any]) -> list[RecordedFile]:
    told = facts.get("data") or [
        {"name": one.path.name, "weight": one.weight} for one in recipe.data_of(stage)
    ]
    return [
        RecordedFile(stage=stage, name=one["name"], rows=one.get("rows"), weight=one["weight"])
        for one in told
    ]


def _metrics_rows(metrics: Path) -> list[dict[str, Any]]:
    return (
        [orjson.loads(line) for line in metrics.read_bytes().splitlines()]
        if metrics.is_file()
        else []
    )


def _seconds(clock: Sequence[float]) -> float:
    """Duration of a stage, whose clock restarts at each resume."""
    return sum(
        now if now < before else now - before
        for before, now in zip([0.0, *clock], clock, strict=False)
    )


def _curve(rows: Sequence[dict[str, Any]]) -> RecordedCurve:
    logged = downsample([row for row in rows if "loss" in row])
    asked = [row for row in rows if "held_out" in row]
    blind: list[Any] = [row.get("blind") for row in asked]
    return RecordedCurve(
        step=tuple(row["step"] for row in logged),
        loss=tuple(row["loss"] for row in logged),
        learning_rate=tuple(row.get("learning_rate") for row in logged),
        held_out=RecordedAccuracy(
            step=tuple(row["step"] for row in asked),
            accuracy=tuple(row["held_out"] for row in asked),
            blind=None if None in blind else tuple(blind),
        )
        if asked
        else None,
    )


def downsample(rows: Sequence[Any], max_rows: int = MAX_POINTS) -> list[Any]:
    """At most `max_rows` rows, evenly spaced, including the first and the last."""
    if len(rows) <= max_rows:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (max_rows - 1))] for i in range(max_rows)]
