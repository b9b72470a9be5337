"""Training record of a model folder: `training.json`, which `merge` writes from the run.

{"name", "recipe": {...},
 "data": [{"stage", "name", "rows", "weight"}], "held_out": [names], "seconds", "hours",
 "stages": {stage: as in train.json},
 "curves": {stage: {"step", "loss", "learning_rate", "held_out": {"step", "accuracy", "blind"}}},
 "trainable", "modules", "projector_change", "looks": as in train.json}

The folder is meant to be shared, so the record holds no paths of the machine that trained it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import orjson

from .. import artifacts
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


def training_record(run: Path, recipe: Recipe) -> dict[str, Any]:
    """The record of `run`. Facts that older versions of phisense did not write, such as the rows of
    each file, are left out.
    """
    facts = artifacts.read_json(run / "train.json")
    rows = _metrics_rows(run / "metrics.jsonl")
    stages: dict[str, Any] = facts.get("stages", {})
    seconds = sum(
        _seconds([row["seconds"] for row in rows if row["stage"] == stage]) for stage in stages
    )
    return {
        "name": recipe.name,
        "recipe": strip_paths(recipe.model_dump(mode="json", exclude={"root"})),
        "data": [one for stage in stages for one in _data_files(recipe, stage, stages[stage])],
        "held_out": [file.name for file in recipe.data.held_out],
        "seconds": round(seconds, 1),
        "hours": seconds / 3600,
        "stages": {
            name: {key: value for key, value in stage.items() if key != "data"}
            for name, stage in stages.items()
        },
        "curves": {
            stage: _curve([row for row in rows if row["stage"] == stage]) for stage in stages
        },
        "modules": len(facts.get("modules", ())),
        **{key: facts[key] for key in _COPIED_FACTS if key in facts},
    }


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


def _data_files(recipe: Recipe, stage: str, facts: dict[str, Any]) -> list[dict[str, Any]]:
    told = facts.get("data") or [
        {"name": one.path.name, "weight": one.weight} for one in recipe.data_of(stage)
    ]
    return [{"stage": stage, **one} for one in told]


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


def _curve(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    logged = downsample([row for row in rows if "loss" in row])
    asked = [row for row in rows if "held_out" in row]
    curve: dict[str, Any] = {
        "step": [row["step"] for row in logged],
        "loss": [row["loss"] for row in logged],
        "learning_rate": [row.get("learning_rate") for row in logged],
    }
    if asked:
        curve["held_out"] = {
            "step": [row["step"] for row in asked],
            "accuracy": [row["held_out"] for row in asked],
        }
        if all(row.get("blind") is not None for row in asked):
            curve["held_out"]["blind"] = [row["blind"] for row in asked]
    return curve


def downsample(rows: Sequence[Any], max_rows: int = MAX_POINTS) -> list[Any]:
    """At most `max_rows` rows, evenly spaced, including the first and the last."""
    if len(rows) <= max_rows:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (max_rows - 1))] for i in range(max_rows)]
