"""A report folder: the predictions, the scores, and a page to read. `report_writer.py` writes it.

predictions.jsonl   one line for each question and condition, see scores.py
scores.json         metrics and how they were measured: `EvaluationReport` in results.py
facts.json          facts about the model: `ModelFacts` in model_facts.py
gaze.json           attention maps of some images by question id, see `AttentionGrid`; absent if the
                    engine does not compute them
pictures/           thumbnails of the images in the gallery, so that the page can be rendered again
                    elsewhere
report.html         everything, in one file
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import orjson

from .. import artifacts
from ..errors import ArtifactError
from ..pipeline.json_fields import as_object, required
from .measurement import Measurement
from .model_facts import FACTS, ModelFacts
from .results import CONDITIONS, EvaluationReport
from .scores import Prediction

REPORT_KIND, GAZE = "report", "gaze.json"
PREDICTIONS = "predictions.jsonl"
PICTURES = "pictures"


@dataclass(frozen=True, slots=True)
class AttentionGrid:
    """Attention of an answer to each cell of its image: `weights` `(rows, columns)`, which sum to
    1.
    """

    weights: tuple[tuple[float, ...], ...]

    @property
    def rows(self) -> int:
        """The number of rows of cells."""
        return len(self.weights)

    @property
    def columns(self) -> int:
        """The number of columns of cells."""
        return len(self.weights[0]) if self.weights else 0

    def to_dict(self) -> dict[str, object]:
        """`{"rows", "columns", "weights"}`."""
        return {"rows": self.rows, "columns": self.columns, "weights": self.weights}

    @classmethod
    def from_dict(cls, document: object, source: str = GAZE) -> AttentionGrid:
        """Read `to_dict`'s JSON. Raises ArtifactError, naming `source`, for anything but a
        grid.
        """
        weights = required(as_object(document, source), "weights", list, source)
        if (
            not weights
            or not all(isinstance(row, list | tuple) for row in weights)
            or len({len(row) for row in weights}) > 1
        ):
            raise ArtifactError(
                f"{source} has no grid of weights",
                got=f"{weights!r}"[:80],
                wanted="rows of equal length",
                do="Evaluate again",
            )
        return cls(tuple(tuple(map(float, row)) for row in weights))


@dataclass(frozen=True)
class Report:
    """One evaluation of one model, as stored in its folder. `attention` maps question ids to
    attention maps.
    """

    title: str
    scores: EvaluationReport
    predictions: Sequence[Prediction]
    facts: ModelFacts = field(default_factory=ModelFacts)
    attention: Mapping[str, AttentionGrid] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def about(self) -> Measurement:
        """How the evaluation was measured."""
        return self.scores.about

    @property
    def model(self) -> str:
        """The name of the model."""
        name = (
            self.about.model or self.facts.name or (self.folder.name if self.folder else self.title)
        )
        return Path(str(name)).name

    def predictions_under(self, condition: str) -> list[Prediction]:
        return [p for p in self.predictions if p.condition == condition]

    @property
    def condition(self) -> str:
        """The condition that the report is about: the real image, or the only condition that was
        evaluated.
        """
        return next((name for name in CONDITIONS if name in self.scores.conditions), CONDITIONS[0])

    @cached_property
    def main_predictions(self) -> list[Prediction]:
        """The predictions under `condition`."""
        return self.predictions_under(self.condition)

    @cached_property
    def ending(self) -> str:
        """The last line of the prompts, if all questions end with the same one."""
        asked = [p.question for p in self.main_predictions]
        line = asked[0].rpartition("\n")[1:] if asked else ("", "")
        return (
            "".join(line) if line[0] and all(text.endswith("".join(line)) for text in asked) else ""
        )

    def picture(self, p: Prediction) -> Path | None:
        if p.image is None or self.folder is None:
            return None
        path = self.folder / PICTURES / thumbnail_name(p.image)
        return path if path.is_file() else None


def read_report(folder: Path) -> Report:
    """Read a report folder. Raises ArtifactError unless it is complete and in the current
    format.
    """
    if (folder / "config.json").is_file():
        raise ArtifactError(
            f"{folder} is a model folder",
            wanted="a report",
            do=f"Make one: phisense evaluate {folder}",
        )
    title = artifacts.read_manifest(folder, kind=REPORT_KIND).get("title") or folder.name
    scores = EvaluationReport.load(folder)
    lines = (folder / PREDICTIONS).read_bytes().splitlines()
    predictions = [
        Prediction.from_dict(orjson.loads(line), f"{folder / PREDICTIONS}, line {number}")
        for number, line in enumerate(lines, 1)
    ]
    facts, gaze = (
        artifacts.read_json(path) if path.is_file() else {}
        for path in (folder / FACTS, folder / GAZE)
    )
    grids = {
        name: AttentionGrid.from_dict(grid, f"{folder / GAZE}: {name}")
        for name, grid in as_object(gaze, str(folder / GAZE)).items()
    }
    return Report(
        title, scores, predictions, ModelFacts.from_dict(facts, str(folder / FACTS)), grids, folder
    )


def thumbnail_name(image: str) -> str:
    """The file name of an image's thumbnail."""
    return f"{hashlib.sha256(image.encode()).hexdigest()[:20]}.jpg"
