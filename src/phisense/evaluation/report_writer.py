"""Write a report folder (`report.py`): its files, the thumbnails of its gallery, its attention maps
and its page.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from .. import artifacts
from ..conversations import CAPTION_KINDS, IMAGE, ImageFinder, Message
from ..errors import ImageError
from ..vision.image_io import open_image
from .gallery import round_robin, select_gallery
from .measurement import SCORES
from .model_facts import FACTS, ModelFacts
from .page import render_page
from .report import (
    GAZE,
    PICTURES,
    PREDICTIONS,
    REPORT_KIND,
    AttentionGrid,
    Report,
    thumbnail_name,
)
from .results import PAGE, EvaluationReport
from .scores import Prediction

if TYPE_CHECKING:
    from ..model import Phi3WithProjector

MAX_ATTENTION_MAPS = 8  # images
THUMBNAIL_PIXELS = 320  # the longer side


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
            artifacts.write_bytes(folder / PICTURES / thumbnail_name(name), small)
    artifacts.write_bytes(folder / PAGE, render_page(title, [report]).encode())
    return report


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
        ids, answered = built.prompt.render_answered(said, [len(slots)])
        (grid,) = attention_map(built, ids, [slots], answered)
        found[p.id] = AttentionGrid(tuple(tuple(round(w, 6) for w in row) for row in grid.tolist()))
        progress(len(found), max_maps)
    return found


def _thumbnail(images: ImageFinder, name: str) -> bytes | None:
    try:
        picture = open_image(images.path(name), name=name)
    except ImageError:  # the page says that the image is missing
        return None
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=82)
    return data.getvalue()
