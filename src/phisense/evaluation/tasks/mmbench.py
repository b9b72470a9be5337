"""MMBench (Liu et al., 2023), English, dev: multiple choice with circular evaluation, which asks
each question once for each rotation of its options.

MMBench_DEV_EN.tsv or mmbench_dev_20230712.tsv (images embedded in base64), or lmms-lab/MMBench. A
question is correct only if it is in every rotation. Files that contain the rotations (index +
1,000,000 for each, as the published ones do) are used unchanged; for others the task generates
them, with the same numbering.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...conversations import Question
from ...errors import DataError
from ..answer_metrics import OPTION_LETTERS, parse_letter
from ..benchmark_images import unpack_images
from ..benchmark_io import (
    HubDefaults,
    Row,
    as_text,
    check_questions,
    field,
    kind_of,
    number_of,
    read_source,
    rows_of,
    text_of,
)
from ..caveats import Caveat, of_unread
from ..task import Array, ScoredAnswer, Task, mean
from .prompts import multiple_choice_prompt

HUB = HubDefaults("dev", ("en",))
ROTATION_OFFSET = 1_000_000  # added to a question's index for each rotation
_NAN = "nan"
_REFERENCE = 64  # a shorter image cell holds the index of the row that has the image


def load(sources: Sequence[str], pictures: Path | None) -> list[Question]:
    questions: list[Question] = []
    # index of a row -> its image name, or the index of the row that has the image
    names: dict[str, str] = {}
    with unpack_images(pictures, sources) as unpacked:
        for source in sources:
            rows = []
            for row in rows_of(read_source(source, HUB), source):
                number = str(number_of(row, "index", of=source))
                cell = field(row, "image", of=source)
                refers = isinstance(cell, str) and len(cell) < _REFERENCE
                names[number] = (
                    str(cell) if refers else unpacked.name(cell, f"{source}, question {number}")
                )
                rows.append((number, {key: value for key, value in row.items() if key != "image"}))
            absent = _writes_nan([row for _, row in rows])
            questions += [
                _question(number, row, names[number], source, absent) for number, row in rows
            ]
    questions = [replace(question, image=_held(question, names)) for question in questions]
    if not any(int(q.id) >= ROTATION_OFFSET for q in questions):
        questions = [turned for question in questions for turned in rotations(question)]
    return check_questions(questions, sources)


def _held(question: Question, names: dict[str, str]) -> str:
    """The image name of a question, its own or that of the row it refers to."""
    named = names[question.id]
    held = names.get(named, named)
    if "." not in held:
        raise DataError(
            f"MMBench: the picture of question {question.id} is said to be that of row {named}",
            wanted="a row that holds one",
        )
    return held


def _question(number: str, row: Row, image: str, source: str, absent: bool) -> Question:
    choices = _choices(row, f"{source}, question {number}", absent)
    right = "" if row.get("answer") is None else str(row["answer"]).strip()
    if right not in OPTION_LETTERS[: len(choices)]:
        raise DataError(
            f"{source}, question {number} has no answer among its {len(choices)} options",
            got=None if row.get("answer") is None else ascii(row["answer"])[:80],
            do="Take the dev file: the test file's answers are kept by MMBench's server",
        )  # fmt: skip
    hint = "" if row.get("hint") in (None, "", _NAN) else f"{text_of(row, 'hint', of=source)}\n"
    group = str(int(number) % ROTATION_OFFSET)
    return Question(
        number,
        image,
        f"{hint}{text_of(row, 'question', of=source)}",
        (right,),
        kind_of(row, "category", of=source),
        tuple(choices),
        group,
    )


def _choices(row: Row, of: str, absent: bool) -> list[str]:
    """The options. An empty cell is no option, and any text is one, including "None" and "NA"; for
    "nan" see `_writes_nan`.

    Raises DataError for an option after an empty cell, because its letter would differ from the
    file's.
    """
    letters = [letter for letter in OPTION_LETTERS if letter in row]
    cells = {
        letter: None if row[letter] in (None, "") or row[letter] != row[letter] else row[letter]
        for letter in letters
    }
    last = max(
        (at for at, letter in enumerate(letters) if not _is_nothing(cells[letter])), default=-1
    )
    tail = letters[last + 1 :]
    if not absent and len(tail) == 1:
        # a single "nan" at the end is a text in a file that does not write missing values so
        tail = [letter for letter in tail if cells[letter] is None]
    if str(row.get("answer")).strip() in tail and cells[str(row["answer"]).strip()] is not None:
        tail = tail[tail.index(str(row["answer"]).strip()) + 1 :]
    offered = letters[: len(letters) - len(tail)]
    gap = next(
        (
            at
            for at, letter in enumerate(offered)
            if letter != OPTION_LETTERS[at] or cells[letter] is None
        ),
        None,
    )
    if gap is not None:
        raise DataError(
            f"{of} has the option {offered[-1]} behind a gap",
            got=f"nothing for {OPTION_LETTERS[gap]}",
            wanted="options without a gap, from A",
            do=(
                f"Write the text of {OPTION_LETTERS[gap]}, or move the options behind it up, and"
                " the"
                " answer with them"
            ),
        )
    return [as_text(cells[letter], f"{of}: option {letter}") for letter in offered]


def _is_nothing(cell: object) -> bool:
    return cell is None or cell == _NAN


def _writes_nan(rows: Sequence[Row]) -> bool:
    """Whether a file writes missing values as "nan", as pandas' str() and the hub's MMBench do: it
    has a hint "nan", or a row whose last two options are "nan". Otherwise "nan" is an ordinary
    text.
    """
    for row in rows:
        options = [row[letter] for letter in OPTION_LETTERS if letter in row]
        if row.get("hint") == _NAN or options[-2:] == [_NAN, _NAN]:
            return True
    return False


def rotations(question: Question) -> list[Question]:
    """The question with its options shifted by 0, 1, ... positions."""
    made, n = [], len(question.choices)
    right = OPTION_LETTERS.index(question.answers[0])
    for turn in range(n):
        choices = question.choices[turn:] + question.choices[:turn]
        made.append(
            replace(
                question,
                id=str(int(question.id) + turn * ROTATION_OFFSET),
                choices=choices,
                answers=(OPTION_LETTERS[(right - turn) % n],),
            )
        )
    return made


def score(question: Question, answer: str) -> float:
    return float(parse_letter(answer, question.choices) == question.answers[0])


def aggregate(marked: Sequence[ScoredAnswer]) -> Array:
    """A unit is a question with its rotations. Columns: correct in all rotations; correct as
    published; number of questions.
    """
    groups: dict[str, list[ScoredAnswer]] = {}
    for one in marked:
        groups.setdefault(one.question.group, []).append(one)
    rows = [
        (
            all(one.score for one in group),
            min(group, key=lambda one: int(one.question.id)).score,
            1.0,
        )
        for group in groups.values()
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def metrics(sums: Array) -> dict[str, Array]:
    """Circular accuracy, and the accuracy of the questions as published, each asked once."""
    return {
        "accuracy": mean(sums[..., 0], sums[..., 2]),
        "accuracy_once": mean(sums[..., 1], sums[..., 2]),
    }


def caveats(marked: Sequence[ScoredAnswer]) -> Iterator[Caveat]:
    yield from of_unread(
        marked,
        lambda one: parse_letter(one.answer, one.question.choices) is not None,
        "name no option, or several",
    )


TASK = Task(
    "mmbench",
    "MMBench dev (English, circular)",
    load,
    score,
    aggregate,
    metrics,
    prompt=multiple_choice_prompt,
    caveats=caveats,
)
