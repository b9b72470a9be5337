"""DocVQA (Mathew et al., 2021), validation: questions about scanned documents, with one or more
references each, scored by ANLS.

val_v1.0_withQT.json (or val_v1.0.json) of docvqa.org; rows {"id", "image", "question", "answers"},
which may be your own; or lmms-lab/DocVQA. The test split has no answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...conversations import Question
from ..benchmark_images import picture_name, unpack_images
from ..benchmark_io import (
    HubDefaults,
    Row,
    as_text,
    check_questions,
    read_source,
    rows_of,
    text_of,
    texts_of,
)
from ..document_metrics import anls
from ..task import Array, Task, aggregate_scores, mean
from .prompts import short_answer_prompt

HUB = HubDefaults("validation", ("DocVQA",))


def load(sources: Sequence[str], pictures: Path | None) -> list[Question]:
    questions = []
    with unpack_images(pictures, sources) as unpacked:
        for source in sources:
            for row in rows_of(read_source(source, HUB), source, "data"):
                number = text_of(row, "questionId", "question_id", "id", of=source)
                of = f"{source}, question {number}"
                questions.append(
                    Question(
                        number,
                        picture_name(row, unpacked, source),
                        text_of(row, "question", of=of),
                        texts_of(row, "answers", of=of),
                        _kind(row, of),
                    )
                )
    return check_questions(questions, sources)


def _kind(row: Row, of: str) -> str:
    """The first of the question's types, by which its answer is found: form, table/list, ..."""
    types = row.get("question_types")
    first = types[0] if isinstance(types, list) and types else types
    return "other" if first in (None, "", []) else as_text(first, f"{of}: question_types")


def score(question: Question, answer: str) -> float:
    return anls(answer, question.answers)


def metrics(sums: Array) -> dict[str, Array]:
    return {"anls": mean(sums[..., 0], sums[..., 1])}


TASK = Task(
    "docvqa",
    "DocVQA validation",
    load,
    score,
    aggregate_scores,
    metrics,
    prompt=short_answer_prompt,
    max_new_tokens=32,
)
