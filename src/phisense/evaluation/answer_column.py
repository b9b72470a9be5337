"""Select the column of an answer file that holds the model's answers.

Answer files are often copies of the benchmark's own file with one more column, so several columns
could be the answers, and the first may hold the reference answers. Each column with a usual answer
name is checked in all rows: one that holds the references or the questions is excluded if there is
another candidate. If exactly one is left, it is used and a caveat says so; otherwise a DataError
asks the user to name the column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..bootstrap import MIN_UNITS
from ..errors import DataError
from ..safe_parsing import quote
from .answer_cells import (
    AnswerFile,
    AnswerScorer,
    Column,
    echo_error,
    has_cell,
    is_correct_answer,
    list_columns,
    missing_answer_error,
    read_column,
)
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
from .matching import MatchedRow, Row
from .unnamed_columns import may_hold_answers


def select_answer_column(
    path: Path, matched: Sequence[MatchedRow], score: AnswerScorer, name: str | None
) -> tuple[Sequence[str | None], list[Caveat]]:
    """Return the answer of each row, and caveats about the column it was found in. Raises DataError
    if the column is ambiguous.
    """
    file = AnswerFile(
        path, matched, list(dict.fromkeys(str(key) for _, row, _ in matched for key in row)), score
    )
    if name is not None:
        return _named_column(file, name)
    usual = [
        key
        for key in file.keys
        if plain_name(key) in ANSWER_COLUMNS and any(has_cell(row, key) for _, row, _ in matched)
    ]
    if any(plain_name(key) == "filtered_resps" for key in usual):
        usual = [key for key in usual if plain_name(key) != "resps"]
    if not usual:
        raise missing_answer_error(path, *matched[0][:2])
    if len(usual) > 1 and all(
        sum(has_cell(row, key) for key in usual) <= 1 for _, row, _ in matched
    ):
        return _one_column_a_row(file, usual)
    columns = [read_column(file, key, alone=len(usual) == 1) for key in usual]
    columns = [
        column for column in columns if any(text is not None for text in column.texts)
    ] or columns
    return _best_column(file, columns)


def _best_column(
    file: AnswerFile, columns: Sequence[Column]
) -> tuple[Sequence[str | None], list[Caveat]]:
    asked = [column for column in columns if column.echo != "whole"]
    if not asked:
        raise echo_error(file, columns[0].name)
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
    file: AnswerFile, usual: Sequence[str]
) -> tuple[Sequence[str | None], list[Caveat]]:
    """Files whose rows each fill exactly one of several columns, as when two files were joined.
    Each column is checked on its own rows: one part may be the benchmark's rows, not the model's.
    """
    parts = []
    for key in usual:
        own = replace(file, matched=[one for one in file.matched if has_cell(one.row, key)])
        parts.append(read_column(own, key, alone=True))
        if parts[-1].echo == "whole":
            raise echo_error(own, key)
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


def _rows_of(file: AnswerFile, key: str) -> list[MatchedRow]:
    return [one for one in file.matched if has_cell(one.row, key)]


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


def _named_column(file: AnswerFile, wanted: str) -> tuple[Sequence[str | None], list[Caveat]]:
    named = (
        wanted
        if wanted in file.keys
        else next((key for key in file.keys if plain_name(key) == plain_name(wanted)), None)
    )
    if named is None:
        raise DataError(
            f"{file.path} has no column {quote(wanted)}",
            wanted=list_columns(file.keys),
            do="Name one of them: --answer-column NAME",
        )
    column = read_column(file, named, alone=True)
    if column.echo == "whole":
        raise echo_error(file, named)
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


def _reject_reference_column(file: AnswerFile, column: Column) -> None:
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
            got=f"the columns {list_columns(file.keys)}",
            do=(
                "Name the column of the model's answers: --answer-column NAME, which may be"
                " this one"
            ),
        )


def _all_right(file: AnswerFile, key: str) -> bool:
    """Whether a column named like reference answers holds them in every row: then a different
    column with an answer name holds the model's answers.
    """

    def told(row: Row) -> list[Any]:
        return value if isinstance(value := row.get(key), list) else [value]

    return all(
        any(is_correct_answer(question, str(one), lambda question, text: 0.0) for one in told(row))
        for _, row, question in file.matched
    )


def _may_be_answers(file: AnswerFile, key: str) -> bool:
    """Whether a column with an unknown name may hold a model's answers."""
    return is_unrecognized(key) and may_hold_answers(
        [(question, row.get(key)) for _, row, question in file.matched], file.is_correct
    )
