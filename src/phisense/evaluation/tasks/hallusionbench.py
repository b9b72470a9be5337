"""HallusionBench (Guan et al., 2024): yes/no questions about figures as they were and edited ones,
so that what is known by heart and what is seen differ.

HallusionBench.json of github.com/tianyi-lab/HallusionBench, or lmms-lab/HallusionBench. Its 951
questions with an image are asked, as by lmms-eval; those without one are counted. Ids are
CATEGORY/SUBCATEGORY/SET/FIGURE/QUESTION.

    a_acc  all accuracy: the share of questions
    f_acc  figure accuracy: the share of figures all of whose questions are answered correctly
    q_acc  question pair accuracy: the share of questions that are answered correctly for every
           figure of their set

The published figures are judged by GPT-4, which no offline evaluation can repeat. Answers are read
by yes_no.py; where lmms-eval's own fallback without a judge, which takes an answer that holds "yes"
anywhere for yes and any other for no, gives other figures, these stand beside as lmms_a_acc, ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...conversations import Question
from ...errors import DataError
from ..benchmark_images import picture_name, unpack_images
from ..benchmark_io import HubDefaults, Row, check_questions, read_source, rows_of, text_of
from ..task import Array, ScoredAnswer, Task, mean
from ..yes_no import parse_yes_no
from .yes_no_caveats import yes_no_caveats

HUB = HubDefaults("image")
_PICTURE = ("image", "filename")
_PARTS = ("category", "subcategory", "set_id", "figure_id", "question_id")
_METRICS = ("a_acc", "f_acc", "q_acc")


def load(sources: Sequence[str], pictures: Path | None) -> list[Question]:
    questions = []
    with unpack_images(pictures, sources) as unpacked:
        for source, number, row in _rows(sources):
            if (image := picture_name(row, unpacked, source, names=_PICTURE)) is not None:
                questions.append(_question(row, number, image, source))
    return check_questions(questions, sources)


def ignored_ids(sources: Sequence[str]) -> set[str]:
    """Ids of the questions without an image."""
    return {
        number
        for _, number, row in _rows(sources)
        if all(row.get(name) is None for name in _PICTURE)
    }


def _rows(sources: Sequence[str]) -> Iterator[tuple[str, str, Row]]:
    for source in sources:
        for row in rows_of(read_source(source, HUB), source):
            yield source, question_name(row, source), row


def question_name(row: Row, of: str) -> str:
    return "/".join(text_of(row, part, of=of) for part in _PARTS)


def row_id(row: Mapping[str, Any]) -> str | None:
    """The id of a row of the official file, to which HallusionBench's own results add a column."""
    parts = [str(row.get(part, "")) for part in _PARTS]
    return "/".join(parts) if all(parts) and "/" not in parts[-1] else None


def _question(row: Row, number: str, image: str, source: str) -> Question:
    of = f"{source}, question {number}"
    right = {"1": "yes", "0": "no"}.get(text_of(row, "gt_answer", of=of).strip())
    if right is None:
        raise DataError(f"{of}: gt_answer is neither 1 nor 0", got=str(row["gt_answer"])[:80])
    group, _, _ = number.rsplit("/", 2)
    kind = text_of(row, "subcategory", of=of)
    return Question(number, image, text_of(row, "question", of=of), (right,), kind, group=group)


def parse_answer_lmms(answer: str) -> str:
    """lmms-eval's reading without a judge."""
    return "yes" if "yes" in answer.lower() else "no"


def score(question: Question, answer: str) -> float:
    return float(parse_yes_no(answer, question.text) == question.answers[0])


def aggregate(marked: Sequence[ScoredAnswer]) -> Array:
    """A unit is a set of figures with its questions. Columns for each of `_METRICS`: what is
    correct, its number; the same by lmms-eval's reading. A missing answer is wrong by both.
    """
    sets: dict[str, list[ScoredAnswer]] = {}
    for one in marked:
        sets.setdefault(one.question.group, []).append(one)
    rows = []
    for answers in sets.values():
        names = [one.question.id.rsplit("/", 2) for one in answers]
        keys = (range(len(names)), [name[1] for name in names], [name[2] for name in names])
        readings = (
            [one.score > 0 for one in answers],
            [
                bool(one.answer) and parse_answer_lmms(one.answer) == one.question.answers[0]
                for one in answers
            ],
        )
        rows.append([n for right in readings for key in keys for n in _all_right(key, right)])
    return np.array(rows, dtype=np.float64).reshape(-1, 4 * len(_METRICS))


def _all_right(keys: Sequence[object], right: Sequence[bool]) -> tuple[int, int]:
    """How many distinct keys have only correct answers, and how many there are."""
    wrong = {key for key, is_right in zip(keys, right, strict=True) if not is_right}
    number = len(set(keys))
    return number - len(wrong), number


def metrics(sums: Array) -> dict[str, Array]:
    """The accuracies, and those by lmms-eval's reading if any differs."""
    half = 2 * len(_METRICS)
    found = _accuracies(sums[..., :half])
    if (sums[0, :half] != sums[0, half:]).any():
        found |= {f"lmms_{name}": one for name, one in _accuracies(sums[..., half:]).items()}
    return found


def _accuracies(sums: Array) -> dict[str, Array]:
    return {name: mean(sums[..., 2 * i], sums[..., 2 * i + 1]) for i, name in enumerate(_METRICS)}


TASK = Task(
    "hallusionbench",
    "HallusionBench (questions with an image)",
    load,
    score,
    aggregate,
    metrics,
    prompt=lambda question: question.text,
    caveats=yes_no_caveats,
    ignored_ids=ignored_ids,
    row_id=row_id,
    left_out="questions have no picture, and were not asked",
    max_new_tokens=128,
)
