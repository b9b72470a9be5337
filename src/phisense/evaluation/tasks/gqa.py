"""GQA (Hudson and Manning, 2019): compositional questions, one right answer each. testdev_balanced_questions.json, or lmms-lab/GQA.

An answer is right if it is the right one, letter by letter (GQA's eval.py), without a period at its end and in lower case (LLaVA's
convert_gqa_for_eval.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ...conversations import Question
from ..reading import Row, Usual, field, picture_name, read, some, unpacking
from ..task import Task, accuracy, shares
from .wording import short

HUB = Usual("testdev", ("testdev_balanced_images", "testdev_balanced_instructions"))


def load(sources: Sequence[str], pictures: Path | None) -> list[Question]:
    questions, unpacked_names = [], {}
    with unpacking(pictures, sources) as unpacked:
        for source in sources:
            document = read(source, HUB)
            rows: Iterable[Row] = ({"id": number, **row} for number, row in document.items()) if isinstance(document, dict) else document
            for row in rows:
                if "question" not in row and row.get("image") is not None:  # the hub has pictures and questions apart
                    unpacked_names[str(row["id"])] = picture_name(row, unpacked, source)
                elif row.get("isBalanced", True):
                    questions.append(_question(row, picture_name(row, unpacked, source), source))
    if unpacked_names:
        questions = [
            Question(q.id, unpacked_names.get(str(q.image).removesuffix(".jpg"), q.image), q.text, q.answers, q.kind) for q in questions
        ]
    return some(questions, sources)


def _question(row: Row, image: str | None, source: str) -> Question:
    types = row.get("types") or {}
    return Question(
        str(field(row, "id", "question_id", of=source)),
        image if image is not None else f"{field(row, 'imageId', of=source)}.jpg",
        str(field(row, "question", "text", of=source)),
        (str(field(row, "answer", of=source)),),
        str(types.get("structural", "other")),
    )


def credit(question: Question, answer: str) -> float:
    return float(answer.strip().rstrip(".").lower() == question.answers[0])


GQA = Task("gqa", "GQA", load, credit, shares, accuracy, put=short)
