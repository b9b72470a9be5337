"""VQAv2 (Goyal et al., 2017): open-ended questions about COCO images, ten annotators' answers to
each.

v2_OpenEnded_mscoco_val2014_questions.json and v2_mscoco_val2014_annotations.json of visualqa.org,
or rows that hold both (lmms-lab/VQAv2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...conversations import Question
from ...errors import DataError
from ..answer_metrics import annotator_accuracy, normalize_official, vqa_accuracy
from ..benchmark_images import picture_name, unpack_images
from ..benchmark_io import (
    HubDefaults,
    Row,
    as_text,
    check_questions,
    kind_of,
    list_of,
    number_of,
    read_source,
    rows_of,
    text_of,
)
from ..caveats import Caveat, of_people, of_scripts
from ..task import Array, ScoredAnswer, Task, mean
from .prompts import short_answer_prompt

HUB = HubDefaults("validation")


def load(sources: Sequence[str], pictures: Path | None) -> list[Question]:
    asked: list[Question] = []
    # question id -> the annotators' answers, and the answer type
    answered: dict[str, tuple[tuple[str, ...], str]] = {}
    with unpack_images(pictures, sources) as unpacked:
        for source in sources:
            document = read_source(source, HUB)
            taken = (
                document.get("data_subtype", "val2014") if isinstance(document, dict) else "val2014"
            )
            key = (
                "annotations"
                if isinstance(document, dict) and "annotations" in document
                else "questions"
            )
            for row in rows_of(document, source, key):
                number = text_of(row, "question_id", of=source)
                if "question" in row or "text" in row:
                    image = picture_name(row, unpacked, source, _coco(row, taken, source))
                    asked.append(
                        Question(number, image, text_of(row, "question", "text", of=source), (), "")
                    )
                if row.get("answers") is not None:
                    said = (
                        _told(row, f"{source}, question {number}"),
                        kind_of(row, "answer_type", of=source),
                    )
                    if answered.setdefault(number, said) != said:
                        raise DataError(
                            f"{source} has other answers to question {number}, which has some",
                            wanted="answers to each once",
                        )
    without = [question.id for question in asked if question.id not in answered]
    if without:
        raise DataError(
            f"VQAv2: {len(without)} of {len(asked)} questions have no answers",
            got=f"the first is {without[0]}",
            wanted="the questions and the annotations of one split",
            do="Name both files",
        )
    questions = [
        replace(one, answers=answered[one.id][0], kind=answered[one.id][1]) for one in asked
    ]
    return check_questions(questions, sources)


def _coco(row: Row, taken: str, source: str) -> str | None:
    """The name of a COCO image, for rows that have no image name."""
    if row.get("image_id") is None or row.get("image") is not None:
        return None
    return f"COCO_{taken}_{number_of(row, 'image_id', of=source):012d}.jpg"


def _told(row: Row, of: str) -> tuple[str, ...]:
    """The annotators' answers: texts, or mappings with an "answer"."""
    told = list_of(row, "answers", of=of)
    return tuple(
        (
            text_of(one, "answer", of=of)
            if isinstance(one, dict)
            else as_text(one, f"{of}: one of answers")
        )
        for one in told
    )


def score(question: Question, answer: str) -> float:
    return vqa_accuracy(answer, question.answers)


def aggregate(marked: Sequence[ScoredAnswer]) -> Array:
    """Columns: the official accuracy; the accuracy with answers always normalized; number of
    questions.
    """
    rows = [
        (one.score, annotator_accuracy(one.answer, one.question.answers, normalize_official), 1.0)
        for one in marked
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def metrics(sums: Array) -> dict[str, Array]:
    """The official accuracy; beside it the accuracy of normalized answers, which is what LLaVA
    submits, if it differs.
    """
    found = {"accuracy": mean(sums[..., 0], sums[..., 2])}
    if abs(sums[0, 0] - sums[0, 1]) > 1e-9:
        found["accuracy_normalised"] = mean(sums[..., 1], sums[..., 2])
    return found


def caveats(marked: Sequence[ScoredAnswer]) -> Iterator[Caveat]:
    yield from of_people(marked)
    yield from of_scripts(marked)


TASK = Task(
    "vqav2", "VQAv2", load, score, aggregate, metrics, prompt=short_answer_prompt, caveats=caveats
)
