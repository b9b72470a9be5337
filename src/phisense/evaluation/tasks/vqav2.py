"""VQAv2 (Goyal et al., 2017): open questions about COCO pictures, ten people's answers to each.

v2_OpenEnded_mscoco_val2014_questions.json and v2_mscoco_val2014_annotations.json of visualqa.org, or rows that hold both (lmms-lab/VQAv2).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...conversations import Question
from ...errors import DataError
from ..answers import agreement, normalise, vqa_accuracy
from ..reading import Row, Usual, field, listed, picture_name, read, some, unpacking
from ..task import Array, Marked, Task, mean
from .wording import short

HUB = Usual("validation")


def load(sources: Sequence[str], pictures: Path | None) -> list[Question]:
    asked: dict[str, tuple[Row, str | None]] = {}
    answered: dict[str, Row] = {}
    with unpacking(pictures, sources) as unpacked:
        for source in sources:
            document = read(source, HUB)
            taken = document.get("data_subtype", "val2014") if isinstance(document, dict) else "val2014"
            key = "annotations" if isinstance(document, dict) and "annotations" in document else "questions"
            for row in listed(document, key):
                number = str(field(row, "question_id", of=source))
                if "question" in row or "text" in row:
                    asked[number] = row, picture_name(row, unpacked, source, _coco(row, taken))
                if row.get("answers") is not None:
                    answered[number] = row
    without = [number for number in asked if number not in answered]
    if without:
        raise DataError(
            f"VQAv2: {len(without)} of {len(asked)} questions have no answers", got=f"the first is {without[0]}",
            wanted="the questions and the annotations of one split", do="Name both files",
        )  # fmt: skip
    return some([_question(number, row, image, answered[number]) for number, (row, image) in asked.items()], sources)


def _coco(row: Row, taken: str) -> str | None:
    return f"COCO_{taken}_{int(row['image_id']):012d}.jpg" if row.get("image_id") is not None else None


def _question(number: str, row: Row, image: str | None, answered: Row) -> Question:
    answers = tuple(_told(one) for one in answered["answers"])
    return Question(number, image, str(field(row, "question", "text", of="VQAv2")), answers, str(answered.get("answer_type", "other")))


def _told(answer: Any) -> str:
    return str(answer["answer"] if isinstance(answer, dict) else answer)


def credit(question: Question, answer: str) -> float:
    return vqa_accuracy(answer, question.answers)


def tally(marked: Sequence[Marked]) -> Array:
    """Columns: the official accuracy; that of answers that are always normalised; number."""
    rows = [(one.credit, agreement(normalise(one.answer), [normalise(said) for said in one.question.answers]), 1.0) for one in marked]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def figures(sums: Array) -> dict[str, Array]:
    """The official accuracy; beside it that of normalised answers, which LLaVA hands in, where it is another."""
    found = {"accuracy": mean(sums[..., 0], sums[..., 2])}
    if abs(sums[0, 0] - sums[0, 1]) > 1e-9:
        found["accuracy_normalised"] = mean(sums[..., 1], sums[..., 2])
    return found


VQAV2 = Task("vqav2", "VQAv2", load, credit, tally, figures, put=short)
