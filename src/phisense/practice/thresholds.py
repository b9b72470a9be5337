"""Thresholds of the demo: minimum or maximum for metrics of its summary, and where to look if one
is missed.

Accuracy thresholds apply from the default number of scenes on, for any seed and number format. That
the model uses the image, and that the merge lost nothing, is required for any number of scenes: a
demo whose model ignores the image has failed, however short it was meant to be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import DemoError
from .dataset import Sizes
from .summary import FloorResult

DEFAULT_SCENES = Sizes().train
_WORDS = {"≥": "at least", "≤": "at most", "=": "exactly"}
_RUN = "runs/practice/loss.png, runs/practice/train.json"


@dataclass(frozen=True, slots=True)
class Threshold:
    """A threshold for a metric.

    `figure` is its dotted key in the summary, `name` its label; `files` are files of the demo's
    folder with details.
    """

    figure: str
    name: str
    sign: Literal["≥", "≤", "="]
    wanted: float | str
    files: str
    any_scenes: bool = False

    def met(self, got: object) -> bool:
        """Whether `got` meets the threshold; false for a value that is missing or not a number."""
        if isinstance(self.wanted, str):
            return got == self.wanted
        if isinstance(got, bool) or not isinstance(got, (int, float)):
            return False
        return {"≥": got >= self.wanted, "≤": got <= self.wanted, "=": got == self.wanted}[
            self.sign
        ]


THRESHOLDS = (
    Threshold(
        "accuracy.real",
        "accuracy on held-out scenes",
        "≥",
        0.90,
        f"reports/heldout/report.html, {_RUN}",
    ),
    Threshold(
        "accuracy.unseen_combinations",
        "accuracy on unseen colour-shape pairs",
        "≥",
        0.78,
        f"reports/combinations/report.html, {_RUN}",
    ),
    Threshold(
        "accuracy.digits",
        "accuracy on unseen handwriting",
        "≥",
        0.83,
        f"reports/digits/report.html, {_RUN}",
    ),
    Threshold(
        "accuracy.blind", "accuracy without the picture", "≤", 0.50, "reports/heldout/report.html"
    ),
    Threshold("train.looks", "the training's verdict", "=", "looks", _RUN, any_scenes=True),
    Threshold(
        "looks",
        "the evaluation's verdict",
        "=",
        "looks",
        f"reports/heldout/report.html, {_RUN}",
        any_scenes=True,
    ),
    Threshold(
        "merge.delta_loss",
        "the loss lost in the merge",
        "≤",
        0.002,
        "models/practice/merge_report.json",
        any_scenes=True,
    ),
    Threshold(
        "merge.same_answers",
        "the same answers after the merge",
        "≥",
        0.995,
        "models/practice/merge_report.json",
        any_scenes=True,
    ),
    Threshold(
        "merge.projector_change",
        "the projector's change in the merge",
        "=",
        0.0,
        "models/practice/merge_report.json",
        any_scenes=True,
    ),
)


def evaluate_thresholds(summary: Mapping[str, Any]) -> dict[str, FloorResult]:
    """Result of every threshold by metric, for the JSON of a summary.

    `met` is None if there are too few scenes for the threshold to apply.
    """
    found: dict[str, FloorResult] = {}
    scenes = _lookup(summary, "scenes")
    for floor in THRESHOLDS:
        got = _lookup(summary, floor.figure)
        promised = floor.any_scenes or scenes >= DEFAULT_SCENES
        found[floor.figure] = FloorResult(
            got=got,
            wanted=f"{floor.sign} {floor.wanted}",
            met=floor.met(got) if promised else None,
        )
    return found


def require_thresholds(floors: Mapping[str, FloorResult], out: Path, scenes: int) -> None:
    """Raise DemoError if a threshold is missed.

    The message names every missed metric, its value, its threshold, and the files to look at.
    """
    missed = [floor for floor in THRESHOLDS if floors[floor.figure].met is False]
    if not missed:
        return
    look = dict.fromkeys(f for floor in missed for f in floor.files.split(", "))
    few = (
        ""
        if scenes >= DEFAULT_SCENES
        else f"; {scenes} scenes are few, and --scenes {DEFAULT_SCENES} is the default"
    )
    raise DemoError(
        "the demo walked the whole road and did not arrive:"
        f" {_listed([f'{floor.name} ({floor.figure})' for floor in missed])}",
        got=_listed([format_figure(floors[floor.figure].got) for floor in missed]),
        wanted=_listed([f"{_WORDS[floor.sign]} {floor.wanted}" for floor in missed]),
        do=f"Look at {_listed(list(look))} in {out}{few}",
    )


def format_figure(got: object) -> str:
    """Format a metric with enough digits to tell it from its threshold."""
    return "none" if got is None else f"{got:.4g}" if isinstance(got, float) else str(got)


def _lookup(summary: Mapping[str, Any], figure: str) -> Any:
    at: Any = summary
    for key in figure.split("."):
        at = at.get(key) if isinstance(at, Mapping) else None
    return at


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
