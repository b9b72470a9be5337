"""Match each row of an answer file with its question: by id, by position, or by the text of the
question.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ..conversations import Question
from ..errors import DataError
from ..safe_parsing import escape, quote, shorten
from .column_names import may_hold_question, plain_name
from .echoes import question_forms, same_question

Row = Mapping[str, Any]
_ID = (
    "question_id",
    "id",
    "questionid",
    "index",
    "image_id",
    "qid",
    "problem_id",
    "sample_id",
    "pid",
    "uid",
)


class MatchedRow(NamedTuple):
    """A row of an answer file, its row number, and the question that it answers."""

    number: int
    row: Row
    question: Question


@dataclass(slots=True)
class MatchResult:
    """Rows matched with a question, and the numbers of those that answer none."""

    rows: list[MatchedRow] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def match_rows(
    path: Path, rows: Sequence[tuple[int, Row]], questions: Sequence[Question]
) -> MatchResult:
    """Match rows with questions. Raises DataError for rows without an id whose question cannot be
    determined from its text either.
    """
    matching = _by_number(path, rows, questions)
    if matching is not None:
        _reject_shifted_rows(path, matching.rows, questions)
        return matching
    if (matching := _by_text(path, rows, questions)) is None:
        raise _without_number(path, *rows[0])
    return matching


def _number(row: Row) -> tuple[Any, Any]:
    """The question id and the category in a row; lmms-eval's samples store the question under
    "doc".
    """
    doc = row.get("doc")
    for mapping in (row, doc) if isinstance(doc, dict) else (row,):
        plain = {
            plain_name(key): value
            for key, value in reversed(list(mapping.items()))
            if value is not None
        }
        for key in _ID:
            if key in plain:
                return plain[key], plain.get("category")
    return None, None


def has_ids(rows: Sequence[tuple[int, Row]]) -> bool:
    return any(_number(row)[0] is not None for _, row in rows)


def _by_number(
    path: Path, rows: Sequence[tuple[int, Row]], questions: Sequence[Question]
) -> MatchResult | None:
    """Match by id; None if no row has one."""
    if not has_ids(rows):
        return _by_place(path, rows, questions) if all("doc_id" in row for _, row in rows) else None
    by_id = {question.id: question for question in questions}
    plainly = {one: canonical_id(one) for one in by_id}
    alike = Counter(plainly.values())
    called_alike = {plain: one for one, plain in plainly.items() if alike[plain] == 1}
    columns = _asking([row for _, row in rows])
    several = {one: [one] for one in by_id}  # questions that share an id, in their order
    for one in by_id:
        first, mark, _ = one.rpartition("#")
        if mark and first in by_id:
            several[first].append(one)
    matching, met = MatchResult(), set[str]()
    for row_number, row in rows:
        number, category = _number(row)
        if number is None:
            raise _without_number(path, row_number, row)
        called = _called(number, category, by_id, called_alike)
        if called is None:
            matching.unknown.append(canonical_id(number))
            continue
        left = [one for one in several[called] if one not in met]
        if not left:
            raise DataError(
                f"{path}, row {row_number} is another answer to question {escape(called)}",
                wanted="one answer to each question",
            )
        key = next(
            (one for one in left if len(left) > 1 and _is_asked(by_id[one], row, columns)), left[0]
        )
        met.add(key)
        matching.rows.append(MatchedRow(row_number, row, by_id[key]))
    return matching


def _called(
    number: Any, category: Any, by_id: Mapping[str, Question], called_alike: Mapping[str, str]
) -> str | None:
    """The question id that a row's number refers to: as written, within its category, or as the
    same number in another notation.
    """
    if (written := str(number)) in by_id:
        return written
    tried = (f"{category}/{number}", f"{category}/{canonical_id(number)}")
    return next((one for one in tried if one in by_id), called_alike.get(canonical_id(number)))


def _without_number(path: Path, row_number: int, row: Row) -> DataError:
    return DataError(
        f"{path}, row {row_number} has no question_id or id",
        got=", ".join(escape(key) for key in islice(row, 12)),
    )


def canonical_id(number: object) -> str:
    """1, "1", " 1" and 1.0 have the same canonical id."""
    text = str(number).strip()
    if text.isdecimal():
        return text
    whole = re.fullmatch(r"([+-]?[0-9]+)\.0+", text)
    return whole[1] if whole else text


def _by_place(
    path: Path, rows: Sequence[tuple[int, Row]], questions: Sequence[Question]
) -> MatchResult:
    """Match lmms-eval's samples without "doc" by their index in the data set, accepted only if each
    row's target is the reference of that question.
    """
    matching = MatchResult()
    for row_number, row in rows:
        at, target = row["doc_id"], str(row.get("target", "")).strip().lower()
        if (
            not isinstance(at, int)
            or not 0 <= at < len(questions)
            or target not in {one.lower() for one in questions[at].answers}
        ):
            raise DataError(
                f"{path}, row {row_number} has the number {shorten(at)} in lmms-eval's data set,"
                f" and"
                " its target is not the right answer to the question in that place here",
                got=shorten(row.get("target")),
                wanted="answers to the questions of that file, in its order",
            )
        matching.rows.append(MatchedRow(row_number, row, questions[at]))
    return matching


def _by_text(
    path: Path, rows: Sequence[tuple[int, Row]], questions: Sequence[Question]
) -> MatchResult | None:
    """Match by question text: in the order of the questions (POPE's own format), or individually if
    only one question has that text.
    """
    matching = MatchResult()
    columns = _asking([row for _, row in rows])
    for column in columns:
        texts = [str(row.get(column)) for _, row in rows]
        if len(rows) == len(questions) and all(
            same_question(q.text, text) for q, text in zip(questions, texts, strict=True)
        ):
            matching.rows = [
                MatchedRow(number, row, question)
                for (number, row), question in zip(rows, questions, strict=True)
            ]
            return matching
    if "question" not in map(plain_name, columns):
        return None
    column = next(one for one in columns if plain_name(one) == "question")
    by_text: dict[str, list[Question]] = {}
    for question in questions:
        by_text.setdefault(_folded(question.text), []).append(question)
    met: set[str] = set()
    for number, row in rows:
        same = by_text.get(_folded(str(row.get(column))), [])
        if len(same) != 1 or same[0].id in met:
            raise DataError(
                f"{path}, row {number} has no question_id or id, and its question "
                f"{'is answered twice' if len(same) == 1 else f'is that of {len(same)} questions'}",
                got=shorten(row.get(column)),
                wanted="a number in each row, or every question in the order of the file",
            )
        met.add(same[0].id)
        matching.rows.append(MatchedRow(number, row, same[0]))
    return matching


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def _asking(rows: Sequence[Row]) -> list[str]:
    """Columns that may hold the text of the question."""
    return [
        key
        for key in dict.fromkeys(str(key) for row in rows for key in row)
        if may_hold_question(key)
    ]


def _is_asked(question: Question, row: Row, columns: Sequence[str]) -> bool:
    """Whether a row repeats that question."""
    texts = [text for column in columns if isinstance(text := row.get(column), str)]
    if question.text in texts:
        return True
    forms = set(question_forms(question.text))
    return any(not forms.isdisjoint(question_forms(text)) for text in texts)


def _reject_shifted_rows(
    path: Path, matched: Sequence[MatchedRow], questions: Sequence[Question]
) -> None:
    """Raise DataError if ids and question texts of rows refer to different questions: a table with
    shifted columns, or another split.

    A text that belongs to no question is accepted: it may be phrased differently.
    """
    owners: dict[str, str] = {}
    for column in _asking([one.row for one in matched]):
        texts = [(one, text) for one in matched if isinstance(text := one.row.get(column), str)]
        doubted = [
            (one, text) for one, text in texts if not _is_asked(one.question, one.row, [column])
        ]
        if doubted and not owners:
            owners = {
                form: question.id
                for question in questions
                for form in question_forms(question.text)
            }
        others = [
            (one, owner) for one, text in doubted if (owner := _owner(text, owners)) is not None
        ]
        if others and (len(texts) - len(doubted) + len(others)) * 2 > len(matched):
            (one, owner), n = others[0], len(others)
            raise DataError(
                f"{path}, row {one.number} has the number of question {escape(one.question.id)},"
                f" and in {quote(column)} the text of question {escape(owner)}; so it is in {n}"
                f" of {len(matched)} rows",
                got=quote(one.row[column], 100),
                wanted="the number of the question that is answered",
                do="Mend the numbers, or leave them out: texts then tell",
            )


def _owner(text: str, owners: Mapping[str, str]) -> str | None:
    return next((owners[form] for form in question_forms(text) if form in owners), None)
