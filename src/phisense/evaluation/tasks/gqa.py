"""GQA (Hudson and Manning, 2019): compositional questions with one reference each.
testdev_balanced_questions.json, or lmms-lab/GQA.

An answer is correct if it equals the reference (exact match, GQA's eval.py) after a final period is
removed and it is lower-cased (LLaVA's convert_gqa_for_eval.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ...conversations import Question
from ...unicode_scripts import is_non_latin
from ..answer_metrics import normalize_any_script
from ..benchmark_images import picture_name, unpack_images
from ..benchmark_io import (
    HubDefaults,
    Row,
    check_questions,
    kind_of,
    mapping,
    numbered_rows,
    read_source,
    rows_of,
    text_of,
)
from ..caveats import of_scripts
from ..task import Task, accuracy_metrics, aggregate_scores
from .prompts import short_answer_prompt

HUB = HubDefaults("testdev", ("testdev_balanced_images", "testdev_balanced_instructions"))


def load(sources: Sequence[str], pictures: Path | None) -> list[Question]:
    questions, unpacked_names = [], {}
    with unpack_images(pictures, sources) as unpacked:
        for source in sources:
            for row in _rows(source):
                # the hub data set has separate rows for images and questions
                if "question" not in row and row.get("image") is not None:
                    unpacked_names[text_of(row, "id", of=source)] = picture_name(
                        row, unpacked, source
                    )
                elif row.get("isBalanced", True):
                    questions.append(_question(row, picture_name(row, unpacked, source), source))
    if unpacked_names:
        questions = [
            Question(
                q.id,
                unpacked_names.get(str(q.image).removesuffix(".jpg"), q.image),
                q.text,
                q.answers,
                q.kind,
            )
            for q in questions
        ]
    return check_questions(questions, sources)


def ignored_ids(sources: Sequence[str]) -> set[str]:
    """Ids of the questions outside the balanced set."""
    return {
        text_of(row, "id", "question_id", of=source)
        for source in sources
        for row in _rows(source)
        if not row.get("isBalanced", True)
    }


def _rows(source: str) -> Iterator[Row]:
    document = read_source(source, HUB)
    rows = (
        ({"id": number, **row} for number, row in numbered_rows(document, source))
        if isinstance(document, dict)
        else document
    )
    return rows_of(rows, source)


def _question(row: Row, image: str | None, source: str) -> Question:
    types = mapping(row.get("types") or {}, f"{source}: types")
    return Question(
        text_of(row, "id", "question_id", of=source),
        image if image is not None else f"{text_of(row, 'imageId', of=source)}.jpg",
        text_of(row, "question", "text", of=source),
        (text_of(row, "answer", of=source),),
        kind_of(types, "structural", of=source),
    )


def score(question: Question, answer: str) -> float:
    """The official references are lower case; those of custom files may not be."""
    right = question.answers[0]
    if is_non_latin(right):
        return float(normalize_any_script(answer) == normalize_any_script(right))
    return float(_form(answer) == _form(right))


def _form(answer: str) -> str:
    return answer.strip().rstrip(".").lower()


TASK = Task(
    "gqa",
    "GQA",
    load,
    score,
    aggregate_scores,
    accuracy_metrics,
    prompt=short_answer_prompt,
    caveats=of_scripts,
    ignored_ids=ignored_ids,
)
