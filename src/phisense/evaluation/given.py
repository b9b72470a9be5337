"""Answers that somebody else's program wrote, matched with a benchmark's questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..conversations import Question
from ..conversations.sources import open_source
from ..errors import DataError

_ID = ("question_id", "id", "questionId", "index", "image_id")
_TEXT = ("answer", "text", "prediction", "caption", "response")


def read_answers(path: Path, questions: Sequence[Question], *, allow_missing: bool = False) -> tuple[list[str], int]:
    """An answer to each question, in their order ("" where there is none), and how many there are not.

    Where a benchmark asks several questions under one number, the answers to it are taken in their order. Raises DataError for a row
    without a number or an answer, a number that no question has, two answers to one question, and questions without one unless
    `allow_missing`.
    """
    numbers = {question.id for question in questions}
    times: Counter[str] = Counter()
    found: dict[str, str] = {}
    unknown: list[str] = []
    for row_number, row, fault in open_source(path).rows():
        if fault is not None or not isinstance(row, dict):
            raise DataError(
                f"{path}, row {row_number} {fault[1] if fault else 'is no mapping'}", wanted='{"question_id": ..., "answer": ...}'
            )
        number, text = (next((row[key] for key in keys if row.get(key) is not None), None) for keys in (_ID, _TEXT))
        if number is None or text is None:
            raise DataError(
                f"{path}, row {row_number} has no {'question_id or id' if number is None else 'answer or text'}",
                got=", ".join(map(str, row))[:200],
            )
        if not isinstance(text, (str, int, float)) or isinstance(text, bool):
            raise DataError(f"{path}, row {row_number} has an answer that is no text", got=str(text)[:100], wanted="text")
        called = str(number)
        if called not in numbers and f"{row.get('category')}/{called}" in numbers:
            called = f"{row['category']}/{called}"
        times[called] += 1
        key = called if times[called] == 1 else f"{called}#{times[called]}"
        if called not in numbers:
            unknown.append(called)
        elif key not in numbers:
            raise DataError(f"{path}, row {row_number} is another answer to question {called}", wanted="one answer to each question")
        else:
            found[key] = str(text)
    _refuse(path, unknown, [question.id for question in questions if question.id not in found], len(questions), allow_missing)
    return [found.get(question.id, "") for question in questions], len(questions) - len(found)


def _refuse(path: Path, unknown: list[str], missing: list[str], n: int, allow_missing: bool) -> None:
    if unknown:
        raise DataError(
            f"{path} answers {len(unknown)} questions that are not among the {n}", got=f"{unknown[0]!r} for one",
            do="Name the question file that the answers are for; with several files numbers are CATEGORY/NUMBER, or rows have a category",
        )  # fmt: skip
    if missing and not allow_missing:
        raise DataError(
            f"{path} has no answer to {len(missing)} of {n} questions", got=f"none to {missing[0]!r}",
            do="Answer them, or say --allow-missing: they then count as wrong",
        )  # fmt: skip
