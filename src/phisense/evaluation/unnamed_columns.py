"""Decide whether a column with an uninformative name may hold a model's answers ("vicuna"), or
other data about the rows ("run", "when").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..conversations import Question
from .answer_metrics import normalize_any_script
from .echoes import detect_echo

_MONTH = r"(?:jan|feb|mar|apr|may|june?|july?|aug|sept?|oct|nov|dec)[a-z]*\.?"
_TIME = r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?(?:\s*[ap]m)?"
#: The form of a cell. A column of such cells holds answers only if a reference has that form, too.
_FORMS = {
    "number": re.compile(r"[+-]?(?:\d+(?:[.,]\d+)*|\.\d+)(?:e[+-]?\d+)?%?", re.I),
    "date": re.compile(
        r"(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4})(?:[T"
        rf" ,]+{_TIME}.*)?|{_TIME}"
        rf"|(?:[a-z]{{3,9}},?\s+)?(?:\d{{1,2}}\s+{_MONTH}|{_MONTH}\s+\d{{1,2}}),?\s.*\d",
        re.I,
    ),
    "place": re.compile(
        r"[a-z][a-z0-9+.-]*://\S+|[^\n]*\w\.(?:jpe?g|png|gif|bmp|webp|tiff?|heic|avif|jsonl?|txt|"
        r"mp4|wav|mp3|flac)",
        re.I,
    ),
    "code": re.compile(
        r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?=[0-9a-f]*\d)[0-9a-f]{16,}|[\w+/=-]{64,}",
        re.I | re.A,
    ),
}
_WORD = re.compile(r"\w+")
_DEPTH = 4  # nesting depth of lists and objects in a cell


def may_hold_answers(
    cells: Sequence[tuple[Question, Any]], is_correct: Callable[[Question, str], bool]
) -> bool:
    """Whether any non-empty cell may be an answer to its question.

    The same value in all rows is not an answer, unless it is correct for some row, as that of a
    model that always says yes; nor is a repetition of the question.
    """
    held = [(question, found) for question, cell in cells if (found := tuple(_texts(cell)))]
    said = [(question, text) for question, texts in held for text in texts]
    if (
        len(held) > 1
        and len({texts for _, texts in held}) == 1
        and not any(_names_one(question, text) for question, text in said)
    ):
        return False
    return (
        any(_may_answer(question, text) for question, text in said)
        and detect_echo(said, is_correct) != "whole"
    )


def _texts(cell: Any, depth: int = 0) -> Iterator[str]:
    """The texts of a cell, including those in nested lists and objects."""
    if isinstance(cell, bool):
        yield "yes" if cell else "no"
    elif isinstance(cell, str | int | float):
        if cell == cell and str(cell).strip():
            yield str(cell).strip()
    elif isinstance(cell, list | dict) and depth < _DEPTH:
        for one in cell.values() if isinstance(cell, dict) else cell:
            yield from _texts(one, depth + 1)


def _may_answer(question: Question, text: str) -> bool:
    form = _form(text)
    if form == "number" and question.choices and text.isdecimal():
        return int(text) <= len(question.choices)
    return form == "text" or any(
        _form(one) == form
        for answer in question.answers
        for one in (answer, normalize_any_script(answer))
    )


def _names_one(question: Question, text: str) -> bool:
    """Whether a text is a reference answer, or begins with one."""
    said, *wanted = (_WORD.findall(one.casefold()) for one in (text, *question.answers))
    return any(one and said[: len(one)] == one for one in wanted)


def _form(text: str) -> str:
    return next((name for name, form in _FORMS.items() if form.fullmatch(text.strip())), "text")
