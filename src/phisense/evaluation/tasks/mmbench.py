"""MMBench (Liu et al., 2023), English, dev: multiple choice, each question asked once for each rotation of its options ("circular").

MMBench_DEV_EN.tsv or mmbench_dev_20230712.tsv (pictures inside, in base64), or lmms-lab/MMBench. A question is right only if it is in
every rotation. Files that hold the rotations already (index + 1,000,000 for each, as the published ones do) are taken as they are; of
others the task makes them, under the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...conversations import Question
from ...errors import DataError
from ..answers import LETTERS, letter
from ..reading import Row, Usual, as_text, field, kind_of, number_of, read, rows_of, some, text_of, unpacking
from ..task import Array, Marked, Task, mean
from .wording import multiple_choice

HUB = Usual("dev", ("en",))
ROUND = 1_000_000  # what is added to a question's number for each rotation
_OPTIONS = LETTERS[:5]
_REFERENCE = 64  # a picture cell that is shorter holds the number of the row whose picture it is


def load(sources: Sequence[str], pictures: Path | None) -> list[Question]:
    questions: list[Question] = []
    names: dict[str, str] = {}  # number of a row -> the picture it holds, or the number of the row that holds it
    with unpacking(pictures, sources) as unpacked:
        for source in sources:
            for row in rows_of(read(source, HUB), source):
                number = str(number_of(row, "index", of=source))
                cell = field(row, "image", of=source)
                refers = isinstance(cell, str) and len(cell) < _REFERENCE
                names[number] = str(cell) if refers else unpacked.name(cell, f"{source}, question {number}")
                questions.append(_question(number, row, names[number], source))
    questions = [replace(question, image=_held(question, names)) for question in questions]
    if not any(int(q.id) >= ROUND for q in questions):
        questions = [turned for question in questions for turned in rotations(question)]
    return some(questions, sources)


def _held(question: Question, names: dict[str, str]) -> str:
    """The picture of a question, or that of the row it refers to."""
    named = names[question.id]
    held = names.get(named, named)
    if "." not in held:
        raise DataError(f"MMBench: the picture of question {question.id} is said to be that of row {named}", wanted="a row that holds one")
    return held


def _question(number: str, row: Row, image: str, source: str) -> Question:
    choices: list[str] = []
    for option in _OPTIONS:
        if _is_none(row.get(option)):
            break
        choices.append(as_text(row[option], f"{source}, question {number}: option {option}"))
    right = str(row.get("answer")).strip()
    if right not in LETTERS[: len(choices)]:
        raise DataError(
            f"{source}, question {number} has no answer among its {len(choices)} options",
            got=None if row.get("answer") is None else ascii(row["answer"])[:80],
            do="Take the dev file: the test file's answers are kept by MMBench's server",
        )  # fmt: skip
    hint = "" if _is_none(row.get("hint")) else f"{text_of(row, 'hint', of=source)}\n"
    group = str(int(number) % ROUND)
    return Question(
        number, image, f"{hint}{text_of(row, 'question', of=source)}", (right,), kind_of(row, "category", of=source), tuple(choices), group
    )


def _is_none(value: object) -> bool:
    return value is None or str(value).strip().lower() in ("", "nan", "none")


def rotations(question: Question) -> list[Question]:
    """The question with its options moved up by 0, 1, ... places."""
    made, n = [], len(question.choices)
    right = LETTERS.index(question.answers[0])
    for turn in range(n):
        choices = question.choices[turn:] + question.choices[:turn]
        made.append(replace(question, id=str(int(question.id) + turn * ROUND), choices=choices, answers=(LETTERS[(right - turn) % n],)))
    return made


def credit(question: Question, answer: str) -> float:
    return float(letter(answer, question.choices) == question.answers[0])


def tally(marked: Sequence[Marked]) -> Array:
    """A unit is a question with its rotations. Columns: right in all; right as it is published; number."""
    groups: dict[str, list[Marked]] = {}
    for one in marked:
        groups.setdefault(one.question.group, []).append(one)
    rows = [(all(one.credit for one in group), min(group, key=lambda one: int(one.question.id)).credit, 1.0) for group in groups.values()]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def figures(sums: Array) -> dict[str, Array]:
    """Circular accuracy, and that of the questions as they are published, each asked once."""
    return {"accuracy": mean(sums[..., 0], sums[..., 2]), "accuracy_once": mean(sums[..., 1], sums[..., 2])}


MMBENCH = Task("mmbench", "MMBench dev (English, circular)", load, credit, tally, figures, put=multiple_choice)
