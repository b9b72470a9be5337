"""ChartQA (Masry et al., 2022), test: questions about charts, half of them written by people,
half generated from summaries, scored by relaxed accuracy.

test_human.json and test_augmented.json of github.com/vis-nlp/ChartQA, one or both; rows {"id",
"image", "question", "answer"}, which may be your own; or lmms-lab/ChartQA. Questions without an id
are numbered KIND/NUMBER, from 0 for each kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...conversations import Question
from ..benchmark_images import picture_name, unpack_images
from ..benchmark_io import (
    HubDefaults,
    Row,
    check_questions,
    kind_of,
    read_source,
    rows_of,
    text_of,
)
from ..document_metrics import relaxed_accuracy
from ..task import Array, ScoredAnswer, Task, mean
from .prompts import SINGLE_WORD

HUB = HubDefaults("test")
CHARTQA_KINDS = ("human", "augmented")


def load(sources: Sequence[str], pictures: Path | None) -> list[Question]:
    questions = []
    times: Counter[str] = Counter()
    with unpack_images(pictures, sources) as unpacked:
        for source in sources:
            for row in rows_of(read_source(source, HUB), source, "data"):
                kind = _kind(row, source)
                number = f"{kind}/{times[kind]}"
                if row.get("question_id", row.get("id")) is not None:
                    number = text_of(row, "question_id", "id", of=source)
                times[kind] += 1
                questions.append(
                    Question(
                        number,
                        picture_name(row, unpacked, source, names=("image", "imgname")),
                        text_of(row, "query", "question", of=source),
                        (text_of(row, "label", "answer", of=source),),
                        kind,
                    )
                )
    return check_questions(questions, sources)


def _kind(row: Row, source: str) -> str:
    """By the row's `type` ("human_test" of the hub's set), or the name of the official file."""
    told = kind_of(row, "type", of=source)
    named = Path(source).stem if told == "other" else told
    return next((kind for kind in CHARTQA_KINDS if kind in named), told)


def prompt(question: Question) -> str:
    return f"{question.text}\n{SINGLE_WORD}"


def score(question: Question, answer: str) -> float:
    return relaxed_accuracy(answer, question.answers[0])


def aggregate(marked: Sequence[ScoredAnswer]) -> Array:
    """Columns: credit and number of all questions; the same of each of `CHARTQA_KINDS`."""
    rows = np.zeros((len(marked), 2 + 2 * len(CHARTQA_KINDS)))
    for row, one in zip(rows, marked, strict=True):
        row[:2] = one.score, 1
        if one.question.kind in CHARTQA_KINDS:
            at = 2 + 2 * CHARTQA_KINDS.index(one.question.kind)
            row[at : at + 2] = one.score, 1
    return rows


def metrics(sums: Array) -> dict[str, Array]:
    """Relaxed accuracy of all questions, and of each kind if there are both."""
    found = {"relaxed_accuracy": mean(sums[..., 0], sums[..., 1])}
    asked = [2 + 2 * i for i in range(len(CHARTQA_KINDS)) if sums[0, 3 + 2 * i]]
    if len(asked) > 1:
        for kind, at in zip(CHARTQA_KINDS, asked, strict=True):
            found[f"{kind}_relaxed_accuracy"] = mean(sums[..., at], sums[..., at + 1])
    return found


TASK = Task(
    "chartqa", "ChartQA test", load, score, aggregate, metrics, prompt=prompt, max_new_tokens=16
)
