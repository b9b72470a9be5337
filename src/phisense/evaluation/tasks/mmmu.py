"""MMMU (Yue et al., 2024), validation: 900 college-level questions of 30 subjects in six
disciplines, multiple choice or open.

The hub's Parquet files (MMMU/MMMU, one configuration for each subject, or lmms-lab/MMMU). Questions
that show several images are not asked, because a conversation here has one; they are counted.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...conversations import Question
from ...errors import DataError
from ...safe_parsing import quote
from ..answer_metrics import OPTION_LETTERS
from ..benchmark_images import picture_name, unpack_images
from ..benchmark_io import (
    HubDefaults,
    Row,
    as_text,
    check_questions,
    field,
    read_source,
    rows_of,
    text_of,
)
from ..caveats import Caveat, counted
from ..mmmu_answers import drawn_letter, open_answer_is_correct, parse_choice
from ..task import Array, ScoredAnswer, Task, mean
from .prompts import OPTION_LETTER, SHORT_ANSWER

DISCIPLINES = {
    "art_and_design": ("Art", "Art_Theory", "Design", "Music"),
    "business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "health_and_medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "humanities_and_social_science": ("History", "Literature", "Sociology", "Psychology"),
    "tech_and_engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
HUB = HubDefaults("validation", tuple(sorted(one for of in DISCIPLINES.values() for one in of)))
_IMAGE = re.compile(r"<image (\d+)>")
_ID = re.compile(r"[^_]+_(?P<subject>.+)_\d+")
_MAX_LIST = 20_000  # characters of a list written as text


def load(sources: Sequence[str], pictures: Path | None) -> list[Question]:
    questions = []
    with unpack_images(pictures, sources) as unpacked:
        for source, number, row in _rows(sources):
            shown = _shown(row, f"{source}, question {number}")
            if len(shown) < 2:
                names = [f"image_{one}" for one in shown]
                image = picture_name(row, unpacked, f"{source}, question {number}", names=names)
                questions.append(_question(row, number, image, source))
    return check_questions(questions, sources)


def ignored_ids(sources: Sequence[str]) -> set[str]:
    """Ids of the questions that show several images."""
    return {
        number
        for source, number, row in _rows(sources)
        if len(_shown(row, f"{source}, question {number}")) > 1
    }


def _rows(sources: Sequence[str]) -> Iterator[tuple[str, str, Row]]:
    for source in sources:
        for row in rows_of(read_source(source, HUB), source):
            yield source, text_of(row, "id", of=source), row


def _shown(row: Row, of: str) -> set[str]:
    """Numbers of the images that the question or one of its options shows."""
    texts = [text_of(row, "question", of=of), *_listed(row.get("options"), f"{of}: options")]
    return {match for text in texts for match in _IMAGE.findall(text)}


def _listed(value: Any, of: str) -> tuple[str, ...]:
    """A list of texts, which the hub's set writes as Python does ("['2', '4']")."""
    if value is None or value == "":
        return ()
    if isinstance(value, str) and len(value) <= _MAX_LIST:
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            value = None
    if not isinstance(value, list):
        raise DataError(f"{of} is no list", got=quote(str(value), 80), wanted="['2', '4']")
    return tuple(as_text(one, f"{of}: one") for one in value)


def _question(row: Row, number: str, image: str | None, source: str) -> Question:
    of = f"{source}, question {number}"
    named = _ID.fullmatch(number)
    subject = "other" if named is None else named["subject"]
    text = text_of(row, "question", of=of)
    if text_of(row, "question_type", of=of) != "multiple-choice":
        return Question(number, image, text, _references(row, of), subject)
    choices = _listed(row.get("options"), f"{of}: options")
    right = text_of(row, "answer", of=of).strip()
    if right not in OPTION_LETTERS[: len(choices)]:
        raise DataError(
            f"{of}: the answer is not among its {len(choices)} options",
            got=quote(right, 80),
            do="Take the validation split: the test split's answers are not public",
        )
    return Question(number, image, text, (right,), subject, choices)


def _references(row: Row, of: str) -> tuple[str, ...]:
    """The accepted answers of an open question: one, or a list, which may be written as text, as
    the options are. lmms-eval compares with such a text as a whole.
    """
    value = field(row, "answer", of=of)
    if not isinstance(value, list) and not str(value).startswith(("['", '["')):
        return (as_text(value, f"{of}: answer"),)
    if not (found := _listed(value, f"{of}: answer")):
        raise DataError(f"{of} has no answer", got="an empty list", wanted="at least one")
    return found


def prompt(question: Question) -> str:
    if not question.choices:
        return f"{question.text}\n\n{SHORT_ANSWER}"
    options = "\n".join(
        f"{letter}. {choice}"
        for letter, choice in zip(OPTION_LETTERS, question.choices, strict=False)
    )
    return f"{question.text}\n{options}\n\n{OPTION_LETTER}"


def score(question: Question, answer: str) -> float:
    """Nothing is drawn for an answer that is missing or empty: it is wrong."""
    if not answer.strip():
        return 0.0
    if not question.choices:
        return float(open_answer_is_correct(answer, question.answers))
    named = parse_choice(answer, question.choices)
    if named is None:
        named = drawn_letter(question.id, len(question.choices))
    return float(named == question.answers[0])


def reads(question: Question, answer: str) -> bool:
    """Whether nothing has to be drawn."""
    return not question.choices or parse_choice(answer, question.choices) is not None


def aggregate(marked: Sequence[ScoredAnswer]) -> Array:
    """Columns: credit and number of all questions; the same of each of `DISCIPLINES`."""
    rows = np.zeros((len(marked), 2 + 2 * len(DISCIPLINES)))
    for row, one in zip(rows, marked, strict=True):
        row[:2] = one.score, 1
        for i, subjects in enumerate(DISCIPLINES.values()):
            if one.question.kind in subjects:
                row[2 + 2 * i : 4 + 2 * i] = one.score, 1
    return rows


def metrics(sums: Array) -> dict[str, Array]:
    """The share of all questions, and of each discipline if there are several."""
    found = {"accuracy": mean(sums[..., 0], sums[..., 1])}
    asked = {name: 2 + 2 * i for i, name in enumerate(DISCIPLINES) if sums[0, 3 + 2 * i]}
    if len(asked) > 1:
        found |= {name: mean(sums[..., at], sums[..., at + 1]) for name, at in asked.items()}
    return found


def caveats(marked: Sequence[ScoredAnswer]) -> Iterator[Caveat]:
    drawn = sum(bool(one.answer.strip()) and not reads(one.question, one.answer) for one in marked)
    told = "answers name no option: one was drawn for them, as MMMU does, but always the same one"
    yield from counted("drawn", told, drawn)


TASK = Task(
    "mmmu",
    "MMMU validation",
    load,
    score,
    aggregate,
    metrics,
    prompt=prompt,
    caveats=caveats,
    reads=reads,
    ignored_ids=ignored_ids,
    left_out="questions show several pictures, and were not asked",
    max_new_tokens=128,
)
