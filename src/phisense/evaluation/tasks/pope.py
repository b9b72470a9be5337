"""POPE (Li et al., 2023): is there a THING in the image? Half of the objects are absent; these are
chosen at random, popular, or adversarial.

coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json of
github.com/AoiDragon/POPE (JSON lines), or lmms-lab/POPE. With several files, ids are
CATEGORY/NUMBER, because each file counts from 1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...conversations import Question
from ...errors import DataError
from ..benchmark_images import picture_name, unpack_images
from ..benchmark_io import HubDefaults, check_questions, kind_of, read_source, rows_of, text_of
from ..task import Array, ScoredAnswer, Task
from ..yes_no import parse_yes_no, parse_yes_no_pope, yes_no_counts, yes_no_metrics
from .prompts import short_answer_prompt
from .yes_no_caveats import yes_no_caveats

HUB = HubDefaults("test")
POPE_CATEGORIES = ("random", "popular", "adversarial")
_CATEGORY = re.compile("|".join(POPE_CATEGORIES))


def load(sources: Sequence[str], pictures: Path | None) -> list[Question]:
    questions = []
    with unpack_images(pictures, sources) as unpacked:
        for source in sources:
            named = _CATEGORY.search(Path(source).stem)
            for row in rows_of(read_source(source, HUB), source, "questions"):
                label = text_of(row, "label", "answer", of=source).strip().lower()
                if label not in ("yes", "no"):
                    raise DataError(f"{source}: a label is neither yes nor no", got=label)
                kind = (
                    named.group()
                    if named and row.get("category") in (None, "")
                    else kind_of(row, "category", of=source)
                )
                text = text_of(row, "text", "question", of=source).strip()
                number = text_of(row, "question_id", "id", of=source)
                questions.append(
                    Question(number, picture_name(row, unpacked, source), text, (label,), kind)
                )
    if len({q.id for q in questions}) < len(questions):
        questions = [replace(q, id=f"{q.kind}/{q.id}") for q in questions]
    return check_questions(questions, sources)


def score(question: Question, answer: str) -> float:
    return float(parse_yes_no(answer, question.text) == question.answers[0])


def aggregate(marked: Sequence[ScoredAnswer]) -> Array:
    """Columns of `yes_no_metrics` over all questions; the same by POPE's own parsing; the same for
    each category.

    POPE's parsing takes anything that is not no for yes; a missing answer ("") is neither by any
    parsing.
    """
    rows = np.zeros((len(marked), 5 * (2 + len(POPE_CATEGORIES))))
    for row, one in zip(rows, marked, strict=True):
        true = one.question.answers[0]
        row[:5] = yes_no_counts(parse_yes_no(one.answer, one.question.text), true)
        row[5:10] = yes_no_counts(parse_yes_no_pope(one.answer) if one.answer else "other", true)
        if one.question.kind in POPE_CATEGORIES:
            at = 10 + 5 * POPE_CATEGORIES.index(one.question.kind)
            row[at : at + 5] = row[:5]
    return rows


def metrics(sums: Array) -> dict[str, Array]:
    """Metrics over all questions; by POPE's own parsing, if that differs; accuracy and F1 of each
    category, if there are several.
    """
    found = yes_no_metrics(sums[..., :5])
    if (sums[0, :5] != sums[0, 5:10]).any():
        found |= {
            f"official_{name}": figure for name, figure in yes_no_metrics(sums[..., 5:10]).items()
        }
    by_kind = {
        kind: sums[..., 10 + 5 * i : 15 + 5 * i]
        for i, kind in enumerate(POPE_CATEGORIES)
        if sums[0, 14 + 5 * i]
    }
    if len(by_kind) > 1:
        for kind, part in by_kind.items():
            of_kind = yes_no_metrics(part)
            found |= {f"{kind}_{name}": of_kind[name] for name in ("accuracy", "f1", "yes_share")}
    return found


TASK = Task(
    "pope",
    "POPE",
    load,
    score,
    aggregate,
    metrics,
    prompt=short_answer_prompt,
    caveats=yes_no_caveats,
)
