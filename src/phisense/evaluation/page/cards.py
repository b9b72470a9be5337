"""Answer cards with images: wrong answers, correct ones, texts; attention maps; disagreements of
several models.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...conversations import CAPTION_KINDS
from ...vision.image_io import open_image
from ..comparison import disagreements
from ..gallery import interleave_kinds, split_by_outcome
from ..scores import Prediction
from .markup import data_url, escape_text, format_number

if TYPE_CHECKING:
    from ..comparison import ComparisonGroup
    from ..report import Report


def answer_gallery(report: Report, max_shown: int) -> str:
    """The gallery of one report, `max_shown` answers of each outcome."""
    main = report.main_predictions
    others = {(p.id, p.condition): _answer(p) for p in report.predictions if p.condition != "real"}
    wrong, right, texts = split_by_outcome(main, max_shown)
    asked = [p for p in main if p.kind not in CAPTION_KINDS]
    missed = sum(not p.right for p in asked)
    return "".join(
        [
            _gallery(
                f"Wrong answers: {missed:,} of {len(asked):,}",
                [_card(report, p, others) for p in wrong],
            ),
            _gallery(
                f"Right answers: {len(asked) - missed:,} of {len(asked):,}",
                [_card(report, p, others) for p in right],
            ),
            _gallery(
                f"Descriptions: {len(main) - len(asked):,}",
                [_card(report, p, others) for p in texts],
            ),
        ]
    )


def attention_gallery(report: Report) -> str:
    """Images beside the same images with the attention of the answer's tokens as an overlay."""
    by = {p.id: p for p in report.main_predictions}
    cards = []
    for name, grid in report.attention.items():
        p = by.get(name)
        picture = report.picture(p) if p else None
        if p is None or picture is None:
            continue
        pair = (
            f"<div class='pair'>{_image(picture, p.image)}<img alt='where it looked'"
            f" src='{_overlaid(picture, grid.weights)}'></div>"
        )
        cards.append(
            f"<div class='card'>{pair}{_asked(p, report.ending)}{_said(p)}{_unless_right(p)}</div>"
        )
    told = (
        "<p class='small'>How much attention the answer's words paid to each part of the picture,"
        " the mean over heads and the upper half of the layers; brightest where most. It says where"
        " the model looked, not why it said what it said.</p>"
    )
    return (
        f"<h3>Where it looked</h3>{told}<div class='gallery wide'>{''.join(cards)}</div>"
        if cards
        else ""
    )


def disagreement_gallery(group: ComparisonGroup, max_shown: int) -> str:
    """Questions that some of the models answered correctly and some wrongly, those whose image is
    in a report first.
    """
    rows = disagreements(group.reports)
    if not rows:
        return "<p>There is no question that one got right and another wrong.</p>"
    by_id = {(row[0].id, row[0].image): row for row in rows}
    order = [by_id[(p.id, p.image)] for p in interleave_kinds([row[0] for row in rows])]
    order.sort(key=lambda row: _picture(group.reports, row[0]) is None and row[0].image is not None)
    cards = [_disagreement_card(group, row) for row in order[:max_shown]]
    return _gallery(f"Where they differ: {len(rows):,} of {group.questions:,} questions", cards)


def _disagreement_card(group: ComparisonGroup, row: Sequence[Prediction]) -> str:
    p, picture = row[0], _picture(group.reports, row[0])
    said = "".join(_said(one, f"{name}: ") for name, one in zip(group.names, row, strict=True))
    wanted = f"<p class='small'>wanted: {escape_text(_wanted(p))}</p>"
    asked = f"{_shown(p, picture)}{_asked(p, group.reports[0].ending)}"
    return f"<div class='card'>{asked}{said}{wanted}{_foot(p)}</div>"


def _picture(reports: Sequence[Report], p: Prediction) -> Path | None:
    return next((path for report in reports if (path := report.picture(p))), None)


def _gallery(heading: str, cards: Sequence[str]) -> str:
    return (
        f"<h3>{escape_text(heading)}</h3><div class='gallery'>{''.join(cards)}</div>"
        if cards
        else ""
    )


_OTHERS = {
    "blind": "without the picture",
    "shuffled": "with another's",
}


def _answer(p: Prediction) -> str:
    """The answer, with the one that was scored where it fell out of form."""
    return p.answer if p.chosen is None else f"{p.answer} (by content: {p.chosen})"


def _card(report: Report, p: Prediction, others: dict[tuple[str, str], str]) -> str:
    other = "".join(
        f"<p class='small'>{words}: {escape_text(answer)}</p>"
        for condition, words in _OTHERS.items()
        if (answer := others.get((p.id, condition))) is not None
    )
    asked = f"{_shown(p, report.picture(p))}{_asked(p, report.ending)}"
    return f"<div class='card'>{asked}{_said(p)}{_unless_right(p)}{other}{_foot(p)}</div>"


def _asked(p: Prediction, ending: str) -> str:
    """The question without the ending that the task appends to every prompt: the methodology shows
    it once.
    """
    return f"<p class='q'>{escape_text(p.question.removesuffix(ending).strip())}</p>"


def _said(p: Prediction, who: str = "") -> str:
    answer = escape_text(p.answer) or "<i>nothing</i>"
    if p.kind in CAPTION_KINDS:
        return (
            f"<p>{escape_text(who)}{answer} <span class='small'>credit"
            f" {format_number(p.credit)}</span></p>"
        )
    part = (
        f" <span class='small'>credit {format_number(p.credit)}</span>" if 0 < p.credit < 1 else ""
    )
    mark, kind, word = ("✓", "right", "right") if p.right else ("✗", "wrong", "wrong")
    return (
        f"<p>{escape_text(who)}<span class='{kind}' aria-label='{word}'>{mark}</span>"
        f" {answer}{part}</p>"
    )


def _unless_right(p: Prediction) -> str:
    return (
        ""
        if p.right and p.kind not in CAPTION_KINDS
        else f"<p class='small'>wanted: {escape_text(_wanted(p))}</p>"
    )


def _wanted(p: Prediction) -> str:
    """Each accepted answer once: annotators often agree."""
    return " / ".join(dict.fromkeys(p.answers))


def _foot(p: Prediction) -> str:
    return f"<p class='small'>{escape_text(p.kind)} · {escape_text(p.id)}</p>"


def _shown(p: Prediction, picture: Path | None) -> str:
    if picture is not None:
        return _image(picture, p.image)
    return "" if p.image is None else "<div class='none'>picture not kept</div>"


def _image(path: Path, name: str | None) -> str:
    return f"<img alt='{escape_text(name or '')}' src='{data_url(path.read_bytes(), 'jpeg')}'>"


def _overlaid(path: Path, weights: Sequence[Sequence[float]]) -> str:
    from ...vision.overlay import overlay

    data = io.BytesIO()
    overlay(open_image(path), weights).save(data, "JPEG", quality=80)
    return data_url(data.getvalue(), "jpeg")
