"""Select the column of an answer file that holds the model's answers.

Answer files are often copies of the benchmark's own file with one more column, so several columns
could be the answers, and the first may hold the reference answers. Each column with a usual answer
name is checked in all rows: one that holds the references or the questions is excluded if there is
another candidate. If exactly one is left, it is used and a caveat says so; otherwise a DataError
asks the user to name the column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..conversations import Question
from ..errors import DataError
from ..intervals import MIN_UNITS
from ..safe_parsing import quote, shorten
from .answer_metrics import OPTION_LETTERS, normalize_any_script
from .caveats import Caveat
from .column_names import (
    AMBIGUOUS_COLUMNS,
    ANSWER_COLUMNS,
    MODEL_COLUMNS,
    REFERENCE_COLUMNS,
    copies_questions,
    is_unrecognized,
    plain_name,
)
from .echoes import Echo, detect_echo
from .final_answer import final_answer
from .matching import MatchedRow, Row
from .unnamed_columns import may_hold_answers

AnswerScorer = Callable[[Question, str], float]


@dataclass(frozen=True, slots=True)
class Column:
    """Texts of a column, one for each row, None where a row has none. `name` is spelled as in the
    file.
    """

    name: str
    texts: Sequence[str | None]
    right: bool
    echo: Echo

    @property
    def plain(self) -> str:
        return plain_name(self.name)


@dataclass(frozen=True, slots=True)
class _File:
    """Rows of an answer file, its columns, and the scorer of an answer."""

    path: Path
    matched: Sequence[MatchedRow]
    keys: Sequence[str]
    score: AnswerScorer

    def is_correct(self, question: Question, text: str) -> bool:
        return _is_correct(question, text, self.score)


def select_answer_column(
    path: Path, matched: Sequence[MatchedRow], score: AnswerScorer, name: str | None
) -> tuple[Sequence[str | None], list[Caveat]]:
    """Return the answer of each row, and caveats about the column it was found in. Raises DataError
    if the column is ambiguous.
    """
    file = _File(
        path, matched, list(dict.fromkeys(str(key) for _, row, _ in matched for key in row)), score
    )
    if name is not None:
        return _named_column(file, name)
    usual = [
        key
        for key in file.keys
        if plain_name(key) in ANSWER_COLUMNS and any(_holds(row, key) for _, row, _ in matched)
    ]
    if any(plain_name(key) == "filtered_resps" for key in usual):
        usual = [key for key in usual if plain_name(key) != "resps"]
    if not usual:
        raise missing_answer_error(path, *matched[0][:2])
    if len(usual) > 1 and all(sum(_holds(row, key) for key in usual) <= 1 for _, row, _ in matched):
        return _one_column_a_row(file, usual)
    columns = [_column(file, key, alone=len(usual) == 1) for key in usual]
    columns = [
        column for column in columns if any(text is not None for text in column.texts)
    ] or columns
    return _best_column(file, columns)


def _best_column(
    file: _File, columns: Sequence[Column]
) -> tuple[Sequence[str | None], list[Caveat]]:
    asked = [column for column in columns if column.echo != "whole"]
    if not asked:
        raise _echoes(file, columns[0].name)
    if len(columns) == 1:
        _reject_reference_column(file, columns[0])
        return columns[0].texts, _all_correct_caveat(columns[0])
    left = [column for column in asked if not column.right and column.echo == "no"]
    # every candidate is correct in all rows: prefer the column that only model outputs have, else
    # the only one that does not repeat the question
    if not left:
        left = [column for column in asked if column.plain in MODEL_COLUMNS] or (
            asked if len(asked) == 1 else []
        )
    if not left or any(list(column.texts) != list(left[0].texts) for column in left[1:]):
        raise DataError(
            f"{file.path} has several columns that could be the answers",
            got=", ".join(quote(column.name) for column in left or asked),
            wanted="one",
            do="Name it: --answer-column NAME",
        )
    _reject_reference_column(file, left[0])
    others = [f"{quote(one.name)} holds {_what(one)}" for one in columns if one is not left[0]]
    told = f"answers are those of the column {quote(left[0].name)}; {', '.join(others)}"
    return left[0].texts, [
        Caveat("answer-column", told, len(file.matched)),
        *_all_correct_caveat(left[0]),
    ]


def _one_column_a_row(
    file: _File, usual: Sequence[str]
) -> tuple[Sequence[str | None], list[Caveat]]:
    """Files whose rows each fill exactly one of several columns, as when two files were joined.
    Each column is checked on its own rows: one part may be the benchmark's rows, not the model's.
    """
    parts = []
    for key in usual:
        own = replace(file, matched=[one for one in file.matched if _holds(one.row, key)])
        parts.append(_column(own, key, alone=True))
        if parts[-1].echo == "whole":
            raise _echoes(own, key)
        _reject_reference_column(own, parts[-1])
    gold = [part for part in parts if part.right and part.plain in AMBIGUOUS_COLUMNS]
    if gold and not all(part.right for part in parts):
        raise DataError(
            f"{file.path}: each row has its answer in one of the columns"
            f" {', '.join(quote(part.name) for part in parts)}, and {quote(gold[0].name)} is"
            " right wherever it is: it may hold the right answers, not the model's",
            wanted="the model's answers in one column",
            do="Write them under one name, or leave the rows without one out (--allow-missing)",
        )
    texts = {
        one.number: text
        for part in parts
        for one, text in zip(_rows_of(file, part.name), part.texts, strict=True)
    }
    told = (
        f"answers are those of the columns {' and '.join(quote(part.name) for part in parts)}, of"
        " which each row has one"
    )
    found = [texts.get(one.number) for one in file.matched]
    all_of_them = Column("", found, all(part.right for part in parts), "no")
    return found, [
        Caveat("answer-column", told, len(file.matched)),
        *_all_correct_caveat(all_of_them),
    ]


def _rows_of(file: _File, key: str) -> list[MatchedRow]:
    return [one for one in file.matched if _holds(one.row, key)]


def _all_correct_caveat(column: Column) -> list[Caveat]:
    """A model may answer a few questions all correctly; for many questions it is more likely that
    the reference answers were submitted.
    """
    if not column.right or len(column.texts) < MIN_UNITS:
        return []
    return [
        Caveat(
            "all-right",
            "answers are right, every one: make sure that they are the model's",
            len(column.texts),
        )
    ]


def _what(column: Column) -> str:
    return (
        "the right answers"
        if column.right
        else "the same"
        if column.echo == "no"
        else "the questions"
    )


def _named_column(file: _File, wanted: str) -> tuple[Sequence[str | None], list[Caveat]]:
    named = (
        wanted
        if wanted in file.keys
        else next((key for key in file.keys if plain_name(key) == plain_name(wanted)), None)
    )
    if named is None:
        raise DataError(
            f"{file.path} has no column {quote(wanted)}",
            wanted=_listed(file.keys),
            do="Name one of them: --answer-column NAME",
        )
    column = _column(file, named, alone=True)
    if column.echo == "whole":
        raise _echoes(file, named)
    told = (
        f"answers are those of the column {quote(named)}, as you said, and each of them is the"
        " right one: is it the model's?"
    )
    gold = column.plain in REFERENCE_COLUMNS or (
        column.plain in AMBIGUOUS_COLUMNS and copies_questions(file.keys)
    )
    return column.texts, (
        [Caveat("gold-column", told, len(file.matched))] if column.right and gold else []
    )


def _reject_reference_column(file: _File, column: Column) -> None:
    """Raise DataError if the only column with a usual name seems to be the benchmark's own, and
    another column the model's.
    """
    if column.plain not in AMBIGUOUS_COLUMNS:
        return
    others = any(_may_be_answers(file, key) for key in file.keys)
    copy = copies_questions(file.keys) and not any(
        plain_name(key) in REFERENCE_COLUMNS and _all_right(file, key) for key in file.keys
    )
    if (column.right and (copy or others)) or (copy and others):
        seen = (
            f"is right in all {len(file.matched)} rows"
            if column.right
            else "is a field of the benchmark's own file"
        )
        raise DataError(
            f"{file.path}: the column {quote(column.name)} {seen}, and may hold the right answers,"
            " not the model's",
            got=f"the columns {_listed(file.keys)}",
            do=(
                "Name the column of the model's answers: --answer-column NAME, which may be"
                " this one"
            ),
        )


def _all_right(file: _File, key: str) -> bool:
    """Whether a column named like reference answers holds them in every row: then a different
    column with an answer name holds the model's answers.
    """

    def told(row: Row) -> list[Any]:
        return value if isinstance(value := row.get(key), list) else [value]

    return all(
        any(_is_correct(question, str(one), lambda question, text: 0.0) for one in told(row))
        for _, row, question in file.matched
    )


def _may_be_answers(file: _File, key: str) -> bool:
    """Whether a column with an unknown name may hold a model's answers."""
    return is_unrecognized(key) and may_hold_answers(
        [(question, row.get(key)) for _, row, question in file.matched], file.is_correct
    )


def _column(file: _File, key: str, *, alone: bool) -> Column:
    """Read a column. Raises DataError for a cell that is not text if the column is the only
    candidate (`alone`).
    """
    texts: list[str | None] = []
    for number, row, _ in file.matched:
        try:
            texts.append(_text(file.path, number, row, key))
        except DataError:
            if alone:
                raise
            return Column(key, [None] * len(file.matched), right=False, echo="no")
    said = [
        (one.question, text)
        for one, text in zip(file.matched, texts, strict=True)
        if text is not None
    ]
    filled = [(question, text) for question, text in said if text.strip()]
    right = bool(filled) and all(file.is_correct(question, text) for question, text in filled)
    echo = detect_echo(said, file.is_correct)
    if echo == "begins" and (alone or plain_name(key) in MODEL_COLUMNS):
        echo = "no"  # a model that repeats the question before it answers
    return Column(key, texts, right, echo)


def _holds(row: Row, key: str) -> bool:
    # tables store missing values as NaN
    return (value := row.get(key)) is not None and bool(value == value)


def _text(path: Path, number: int, row: Row, key: str) -> str | None:
    """A cell as text. Numbers become text, integral floats without the decimal point; NaN is a
    missing value.
    """
    value = row.get(key)
    if plain_name(key) in ("resps", "filtered_resps"):  # lmms-eval wraps it in a list
        while isinstance(value, list) and len(value) == 1:
            value = value[0]
    if value is None or value != value:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(
            f"{path}, row {number} has an answer that is no text",
            got=quote(value, 100),
            wanted="text",
        )
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _is_correct(question: Question, text: str, score: AnswerScorer) -> bool:
    """Whether a text is the correct answer in any form that files use: the text, the letter, or the
    zero-based index of an option.
    """
    final = final_answer(text).text
    if (
        normalize_any_script(final) in {normalize_any_script(one) for one in question.answers}
        or score(question, final) == 1.0
    ):
        return True
    if not question.choices or question.answers[0] not in OPTION_LETTERS:
        return False
    at = OPTION_LETTERS.index(question.answers[0])
    return text.strip() == str(at) or (
        at < len(question.choices)
        and normalize_any_script(text) == normalize_any_script(question.choices[at])
    )


def missing_answer_error(path: Path, number: int, row: Row) -> DataError:
    """The error for a row without an answer."""
    return DataError(
        f"{path}, row {number} has no answer or text",
        got=_listed(list(row)),
        do="Name the column of the answers: --answer-column NAME",
    )


def _echoes(file: _File, name: str) -> DataError:
    return DataError(
        f"{file.path}: what the column {quote(name)} holds is the text of the questions, in"
        " every row",
        got=_listed(file.keys),
        wanted="the model's answers",
        do="Name their column: --answer-column NAME",
    )


def _listed(keys: Sequence[object]) -> str:
    return shorten(", ".join(map(str, keys))).strip("'")
