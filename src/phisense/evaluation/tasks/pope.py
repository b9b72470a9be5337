"""POPE (Li et al., 2023): is there a THING in the picture? Half of the things are not; they are random, popular, or adversarial ones.

coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json of github.com/AoiDragon/POPE (a row a line), or lmms-lab/POPE.
Questions of several files are called CATEGORY/NUMBER, for each file counts from 1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...conversations import Question
from ...errors import DataError
from ..reading import Usual, kind_of, picture_name, read, rows_of, some, text_of, unpacking
from ..task import Array, Marked, Task
from ..yes_no import pope_official, yes_no_figures, yes_no_row, yes_or_no
from .wording import short

HUB = Usual("test")
CATEGORIES = ("random", "popular", "adversarial")
_CATEGORY = re.compile("|".join(CATEGORIES))


def load(sources: Sequence[str], pictures: Path | None) -> list[Question]:
    questions = []
    with unpacking(pictures, sources) as unpacked:
        for source in sources:
            named = _CATEGORY.search(Path(source).stem)
            for row in rows_of(read(source, HUB), source, "questions"):
                label = text_of(row, "label", "answer", of=source).strip().lower()
                if label not in ("yes", "no"):
                    raise DataError(f"{source}: a label is neither yes nor no", got=label)
                kind = named.group() if named and not row.get("category") else kind_of(row, "category", of=source)
                text = text_of(row, "text", "question", of=source).strip()
                number = text_of(row, "question_id", "id", of=source)
                questions.append(Question(number, picture_name(row, unpacked, source), text, (label,), kind))
    if len({q.id for q in questions}) < len(questions):
        questions = [replace(q, id=f"{q.kind}/{q.id}") for q in questions]
    return some(questions, sources)


def credit(question: Question, answer: str) -> float:
    return float(yes_or_no(answer) == question.answers[0])


def tally(marked: Sequence[Marked]) -> Array:
    """Columns: those of `yes_no_figures` over all; by POPE's own reading; of each category.

    POPE's reading takes all that is not no for yes; an answer that is not there ("") is neither by any reading.
    """
    rows = np.zeros((len(marked), 5 * (2 + len(CATEGORIES))))
    for row, one in zip(rows, marked, strict=True):
        true = one.question.answers[0]
        row[:5] = yes_no_row(yes_or_no(one.answer), true)
        row[5:10] = yes_no_row(pope_official(one.answer) if one.answer else "other", true)
        if one.question.kind in CATEGORIES:
            at = 10 + 5 * CATEGORIES.index(one.question.kind)
            row[at : at + 5] = row[:5]
    return rows


def figures(sums: Array) -> dict[str, Array]:
    """Over all; by POPE's own reading of answers, where that differs; accuracy and F1 of each category, where there are several."""
    found = yes_no_figures(sums[..., :5])
    if (sums[0, :5] != sums[0, 5:10]).any():
        found |= {f"official_{name}": figure for name, figure in yes_no_figures(sums[..., 5:10]).items()}
    by_kind = {kind: sums[..., 10 + 5 * i : 15 + 5 * i] for i, kind in enumerate(CATEGORIES) if sums[0, 14 + 5 * i]}
    if len(by_kind) > 1:
        for kind, part in by_kind.items():
            of_kind = yes_no_figures(part)
            found |= {f"{kind}_{name}": of_kind[name] for name in ("accuracy", "f1", "yes_share")}
    return found


POPE = Task("pope", "POPE", load, credit, tally, figures, put=short)
