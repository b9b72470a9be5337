"""A report folder: the predictions, the scores, and a page to read.

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
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from .. import artifacts
from ..conversations import CAPTION_KINDS, IMAGE, ImageFinder, Message
from ..errors import ArtifactError, ImageError
from ..pipeline.json_fields import as_object, required
from ..vision.image_io import open_image
from .gallery import round_robin, select_gallery
from .measurement import SCORES, Measurement
from .model_facts import FACTS, ModelFacts
from .page import PAGE_SIGNATURE, render_page
from .results import CONDITIONS, PAGE, EvaluationReport
from .scores import Prediction

if TYPE_CHECKING:
    from ..model import Phi3WithProjector

__all__ = [
    "PAGE",
    "PAGE_SIGNATURE",
    "REPORT_KIND",
    "AttentionGrid",
    "Report",
    "attention_maps",
    "read_report",
    "render_page",
    "replace_page",
    "select_gallery",
    "write_report",
]

REPORT_KIND, GAZE = "report", "gaze.json"
PREDICTIONS = "predictions.jsonl"
MAX_ATTENTION_MAPS = 8  # images
THUMBNAIL_PIXELS = 320  # the longer side


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
        path = self.folder / "pictures" / _thumbnail_name(p.image)
        return path if path.is_file() else None


def write_report(
    folder: Path,
    *,
    title: str,
    scores: EvaluationReport,
    predictions: Sequence[Prediction],
    facts: ModelFacts,
    images: ImageFinder,
    attention: Mapping[str, AttentionGrid] | None = None,
) -> Report:
    """Write every file of a report into `folder`, which the caller stages as an artifact of kind
    `REPORT_KIND` about {"title": title}.
    """
    lines = (orjson.dumps(one.to_dict()) + b"\n" for one in predictions)
    artifacts.write_bytes(folder / PREDICTIONS, b"".join(lines))
    artifacts.write_json(folder / SCORES, scores.to_dict())
    artifacts.write_json(folder / FACTS, facts.to_dict())
    if attention:
        artifacts.write_json(
            folder / GAZE, {name: grid.to_dict() for name, grid in attention.items()}
        )
    report = Report(title, scores, predictions, facts, attention or {}, folder)
    shown = [
        *select_gallery(report.main_predictions),
        *(p for p in report.main_predictions if p.id in report.attention),
    ]
    for name in sorted({p.image for p in shown if p.image}):
        if small := _thumbnail(images, name):
            artifacts.write_bytes(folder / "pictures" / _thumbnail_name(name), small)
    artifacts.write_bytes(folder / PAGE, render_page(title, [report]).encode())
    return report


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


def replace_page(folder: Path, page: bytes) -> Path:
    """Replace the page of a report folder and update its manifest. Returns the page's path."""
    artifacts.replace_file(folder, PAGE, page, kind=REPORT_KIND)
    return folder / PAGE


def attention_maps(
    built: Phi3WithProjector,
    predictions: Sequence[Prediction],
    images: ImageFinder,
    max_maps: int = MAX_ATTENTION_MAPS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, AttentionGrid]:
    """Attention maps of some of the gallery's short answers, by question id. Each costs a forward
    pass.
    """
    from ..model.attention_map import attention_map

    real = [
        p
        for p in select_gallery([p for p in predictions if p.condition == "real"])
        if p.image and p.kind not in CAPTION_KINDS
    ]
    found: dict[str, AttentionGrid] = {}
    for p in round_robin([[p for p in real if p.right], [p for p in real if not p.right]]):
        # only a square grid of image tokens can be laid over the image
        if len(found) == max_maps or round(built.image_tokens**0.5) ** 2 != built.image_tokens:
            break
        slots = built.project([open_image(images.path(str(p.image)), name=p.image)])[0]
        said = (
            Message("user", f"{IMAGE}\n{built.prompt.escape_special_tokens(p.question)}"),
            Message("assistant", built.prompt.escape_special_tokens(p.answer)),
        )
        before = built.prompt.render_for_completion(said[:1], [len(slots)])
        whole = built.prompt.render_conversation(said, [len(slots)]).ids[
            :-1
        ]  # without the end-of-sequence token
        grid = attention_map(built, whole, slots, len(whole) - len(before))
        found[p.id] = AttentionGrid(tuple(tuple(round(w, 6) for w in row) for row in grid.tolist()))
        progress(len(found), max_maps)
    return found


def _thumbnail_name(image: str) -> str:
    return f"{hashlib.sha256(image.encode()).hexdigest()[:20]}.jpg"


def _thumbnail(images: ImageFinder, name: str) -> bytes | None:
    try:
        picture = open_image(images.path(name), name=name)
    except ImageError:  # the page says that the image is missing
        return None
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=82)
    return data.getvalue()
