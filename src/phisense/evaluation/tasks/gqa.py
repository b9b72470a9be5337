"""GQA (Hudson and Manning, 2019): compositional questions, one right answer each. testdev_balanced_questions.json, or lmms-lab/GQA.

An answer is right if it is the right one, letter by letter (GQA's eval.py), without a period at its end and in lower case (LLaVA's
convert_gqa_for_eval.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...conversations import Question
from ..reading import Row, Usual, kind_of, mapping, numbered_rows, picture_name, read, rows_of, some, text_of, unpacking
from ..task import Task, accuracy, shares
from .wording import short

HUB = Usual("testdev", ("testdev_balanced_images", "testdev_balanced_instructions"))


def load(sources: Sequence[str], pictures: Path | None) -> list[Question]:
    questions, unpacked_names = [], {}
    with unpacking(pictures, sources) as unpacked:
        for source in sources:
            document = read(source, HUB)
            rows = ({"id": number, **row} for number, row in numbered_rows(document, source)) if isinstance(document, dict) else document
            for row in rows_of(rows, source):
                if "question" not in row and row.get("image") is not None:  # the hub has pictures and questions apart
                    unpacked_names[text_of(row, "id", of=source)] = picture_name(row, unpacked, source)
                elif row.get("isBalanced", True):
                    questions.append(_question(row, picture_name(row, unpacked, source), source))
    if unpacked_names:
        questions = [
            Question(q.id, unpacked_names.get(str(q.image).removesuffix(".jpg"), q.image), q.text, q.answers, q.kind) for q in questions
        ]
    return some(questions, sources)


def _question(row: Row, image: str | None, source: str) -> Question:
    types = mapping(row.get("types") or {}, f"{source}: types")
    return Question(
        text_of(row, "id", "question_id", of=source),
        image if image is not None else f"{text_of(row, 'imageId', of=source)}.jpg",
        text_of(row, "question", "text", of=source),
        (text_of(row, "answer", of=source),),
        kind_of(types, "structural", of=source),
    )


def credit(question: Question, answer: str) -> float:
    return float(answer.strip().rstrip(".").lower() == question.answers[0])


GQA = Task("gqa", "GQA", load, credit, shares, accuracy, put=short)
