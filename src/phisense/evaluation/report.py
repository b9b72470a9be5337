"""A report folder: what was asked and answered, what came of it, and a page to read it on.

predictions.jsonl   one line for each question and condition; what belongs together has a group
scores.json         the figures: see scores.py; under `about`, how it was measured
facts.json          what was trained: see facts.py
gaze.json           where the model looked in some of the pictures: {id: {"rows", "columns", "weights"}}, if the engine can tell
pictures/           small ones of the pictures in the gallery, so that the page can be made again elsewhere
report.html         all of it, in one file
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from .. import artefact
from ..conversations import CAPTION_KINDS, IMAGE, Message, Pictures, Question
from ..errors import ArtefactError, PictureError
from ..vision.pictures import open_picture
from .page import render
from .scores import CONDITIONS, Prediction
from .shown import gallery, in_turn

if TYPE_CHECKING:
    from ..model import Phi3WithProjector

__all__ = ["KIND", "PAGE", "Report", "gallery", "gazes", "read", "render", "replace_page", "write"]

KIND, PAGE = "report", "report.html"
GAZED = 8  # pictures
THUMB = 320  # pixels
_FIELDS = {one.name for one in fields(Prediction)}


@dataclass(frozen=True)
class Report:
    """One evaluation of one model. `told` are the predictions' lines as they were written, in their order."""

    title: str
    scores: dict[str, Any]
    predictions: Sequence[Prediction]
    facts: dict[str, Any] = field(default_factory=dict)
    gaze: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    told: Sequence[dict[str, Any]] = ()

    @property
    def about(self) -> dict[str, Any]:
        """How it was measured."""
        found: dict[str, Any] = self.scores.get("about") or {}
        return found

    @property
    def model(self) -> str:
        """What the model is called."""
        name = self.about.get("model") or self.facts.get("name") or (self.folder.name if self.folder else self.title)
        return Path(str(name)).name

    def under(self, condition: str) -> list[Prediction]:
        return [p for p in self.predictions if p.condition == condition]

    @property
    def condition(self) -> str:
        """The one that the report is about: the real picture, or the only other that was asked."""
        return next((name for name in CONDITIONS if name in self.scores), CONDITIONS[0])

    @cached_property
    def main(self) -> list[Prediction]:
        """The predictions under `condition`."""
        return self.under(self.condition)

    @cached_property
    def ending(self) -> str:
        """The last line, if all questions end with the same one."""
        asked = [p.question for p in self.main]
        line = asked[0].rpartition("\n")[1:] if asked else ("", "")
        return "".join(line) if line[0] and all(text.endswith("".join(line)) for text in asked) else ""

    def picture(self, p: Prediction) -> Path | None:
        if p.image is None or self.folder is None:
            return None
        path = self.folder / "pictures" / _thumb_name(p.image)
        return path if path.is_file() else None


def write(
    folder: Path,
    *,
    title: str,
    scores: dict[str, Any],
    predictions: Sequence[Prediction],
    facts: dict[str, Any],
    images: Pictures,
    gaze: dict[str, Any] | None = None,
    questions: Sequence[Question] = (),
) -> Report:
    """Writes every file of a report into `folder`, which the caller stages as an artefact of `KIND` about {"title": title}.

    Of `questions` the predictions' lines get what a task needs to know which belong together: group and choices.
    """
    more = {q.id: {"group": q.group, "choices": q.choices} for q in questions if q.group or q.choices}
    told = [{**p.as_dict(), **more.get(p.id, {})} for p in predictions]
    artefact.write_bytes(folder / "predictions.jsonl", b"".join(orjson.dumps(one) + b"\n" for one in told))
    artefact.write_json(folder / "scores.json", scores)
    artefact.write_json(folder / "facts.json", facts)
    if gaze:
        artefact.write_json(folder / "gaze.json", gaze)
    report = Report(title, scores, predictions, facts, gaze or {}, folder, told)
    shown = [*gallery(report.main), *(p for p in report.main if p.id in report.gaze)]
    for name in sorted({p.image for p in shown if p.image}):
        if small := _thumb(images, name):
            artefact.write_bytes(folder / "pictures" / _thumb_name(name), small)
    artefact.write_bytes(folder / PAGE, render(title, [report]).encode())
    return report


def read(folder: Path) -> Report:
    """Raises ArtefactError unless `folder` is a whole report, as `evaluate` writes it now."""
    if (folder / "config.json").is_file():
        raise ArtefactError(f"{folder} is a model folder", wanted="a report", do=f"Make one: phisense evaluate {folder}")
    title = artefact.read_manifest(folder, kind=KIND).get("title") or folder.name
    scores = artefact.read_json(folder / "scores.json")
    if "headline" not in scores:
        raise ArtefactError(f"{folder} was written by an earlier phisense", got="figures without intervals", do="Evaluate again")
    told = [orjson.loads(line) for line in (folder / "predictions.jsonl").read_bytes().splitlines()]
    facts, gaze = (artefact.read_json(path) if path.is_file() else {} for path in (folder / "facts.json", folder / "gaze.json"))
    return Report(title, scores, [_prediction(one) for one in told], facts, gaze, folder, told)


def replace_page(folder: Path, page: bytes) -> Path:
    """Puts another page into a report folder, whose manifest then names it. Returns the page's path."""
    about = artefact.read_manifest(folder, kind=KIND, verify=False)
    artefact.write_bytes(folder / PAGE, page)
    artefact.write_manifest(folder, kind=KIND, about=about)
    return folder / PAGE


def _prediction(line: dict[str, Any]) -> Prediction:
    known = {key: value for key, value in line.items() if key in _FIELDS}
    return Prediction(**{**known, "answers": tuple(known["answers"])})


def gazes(
    built: Phi3WithProjector,
    predictions: Sequence[Prediction],
    images: Pictures,
    most: int = GAZED,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Where the model looked while it said some of the gallery's short answers, by id. Each costs a forward pass."""
    from ..model.gaze import gaze_at

    real = [p for p in gallery([p for p in predictions if p.condition == "real"]) if p.image and p.kind not in CAPTION_KINDS]
    found: dict[str, Any] = {}
    for p in in_turn([[p for p in real if p.right], [p for p in real if not p.right]]):
        if len(found) == most or round(built.slots**0.5) ** 2 != built.slots:  # a grid that is no square has no place on a picture
            break
        slots = built.project([open_picture(images.path(str(p.image)), name=p.image)])[0]
        said = (Message("user", f"{IMAGE}\n{built.prompt.defuse(p.question)}"), Message("assistant", built.prompt.defuse(p.answer)))
        before = built.prompt.ask(said[:1], [len(slots)])
        whole = built.prompt.render(said, [len(slots)]).ids[:-1]  # without the end of the text
        grid = gaze_at(built, whole, slots, len(whole) - len(before))
        found[p.id] = {"rows": grid.shape[0], "columns": grid.shape[1], "weights": [[round(w, 6) for w in row] for row in grid.tolist()]}
        progress(len(found), most)
    return found


def _thumb_name(image: str) -> str:
    return f"{hashlib.sha256(image.encode()).hexdigest()[:20]}.jpg"


def _thumb(images: Pictures, name: str) -> bytes | None:
    try:
        picture = open_picture(images.path(name), name=name)
    except PictureError:  # the page says that it is not there
        return None
    picture.thumbnail((THUMB, THUMB))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=82)
    return data.getvalue()
