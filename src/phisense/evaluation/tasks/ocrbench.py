"""OCRBench (Liu et al., 2024): 1,000 questions about text in images, of ten types in five groups.

OCRBench.json of github.com/Yuliang-Liu/MultimodalOCR, or echo840/OCRBench. The official file
numbers its rows within each of its data sets, so ids are DATASET/NUMBER; rows without an id are
numbered from 0.

An answer is correct if it contains one of the references: without regard to case, full-width ASCII
being ASCII; of mathematical expressions (HME100k, the last type) in exact case, but without regard
to spaces. So "not red" is correct where "red" is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...conversations import Question
from ..benchmark_images import picture_name, unpack_images
from ..benchmark_io import (
    HubDefaults,
    Row,
    check_questions,
    field,
    read_source,
    rows_of,
    text_of,
    texts_of,
)
from ..task import Array, ScoredAnswer, Task, mean

HUB = HubDefaults("test")
EXPRESSIONS = "Handwritten Mathematical Expression Recognition"
#: Each metric with the types of questions that it covers.
GROUPS = {
    "text_recognition": (
        "Regular Text Recognition",
        "Irregular Text Recognition",
        "Artistic Text Recognition",
        "Handwriting Recognition",
        "Digit String Recognition",
        "Non-Semantic Text Recognition",
    ),
    "scene_text": ("Scene Text-centric VQA",),
    "documents": ("Doc-oriented VQA",),
    "key_information": ("Key Information Extraction",),
    "expressions": (EXPRESSIONS,),
}
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: " "}


def load(sources: Sequence[str], pictures: Path | None) -> list[Question]:
    questions: list[Question] = []
    with unpack_images(pictures, sources) as unpacked:
        for source in sources:
            times: Counter[str] = Counter()
            for row in rows_of(read_source(source, HUB), source):
                number = _number(row, source, str(len(questions)))
                times[number] += 1
                number += "" if times[number] == 1 else f"#{times[number]}"
                image = picture_name(row, unpacked, source, names=("image", "image_path"))
                questions.append(_question(row, number, image, source))
    return check_questions(questions, sources)


def _number(row: Row, source: str, otherwise: str) -> str:
    return otherwise if row.get("id") is None else row_id(row) or text_of(row, "id", of=source)


def row_id(row: Mapping[str, Any]) -> str | None:
    """The id of a row of the official file, to which OCRBench's own results add a column."""
    within, number = row.get("dataset_name"), row.get("id")
    if not isinstance(within, str) or not isinstance(number, int | str) or "/" in str(number):
        return None
    return f"{within}/{number}"


def _question(row: Row, number: str, image: str | None, source: str) -> Question:
    of = f"{source}, question {number}"
    told = field(row, "answers", "answer", of=of)
    answers = (told,) if isinstance(told, str) else texts_of(row, "answers", "answer", of=of)
    kind = text_of(row, "type", "question_type", of=of)
    return Question(number, image, text_of(row, "question", of=of).strip(), answers, kind)


def score(question: Question, answer: str) -> float:
    form = _expression if question.kind == EXPRESSIONS else _text
    said = form(answer)
    return float(any(form(one) in said for one in question.answers))


def _expression(text: str) -> str:
    return text.strip().replace("\n", "").replace(" ", "")


def _text(text: str) -> str:
    return text.translate(_FULL_WIDTH).lower().strip().replace("\n", " ")


def aggregate(marked: Sequence[ScoredAnswer]) -> Array:
    """Columns: credit and number of all questions; the same of each of `GROUPS`."""
    rows = np.zeros((len(marked), 2 + 2 * len(GROUPS)))
    for row, one in zip(rows, marked, strict=True):
        row[:2] = one.score, 1
        for i, types in enumerate(GROUPS.values()):
            if one.question.kind in types:
                row[2 + 2 * i : 4 + 2 * i] = one.score, 1
    return rows


def metrics(sums: Array) -> dict[str, Array]:
    """The share of all questions (OCRBench's score is this times 1,000), and of those groups that
    were asked.
    """
    found = {"accuracy": mean(sums[..., 0], sums[..., 1])}
    for i, name in enumerate(GROUPS):
        if sums[0, 3 + 2 * i]:
            found[name] = mean(sums[..., 2 + 2 * i], sums[..., 3 + 2 * i])
    return found


TASK = Task(
    "ocrbench",
    "OCRBench",
    load,
    score,
    aggregate,
    metrics,
    prompt=lambda question: question.text,
    row_id=row_id,
    max_new_tokens=128,
)
