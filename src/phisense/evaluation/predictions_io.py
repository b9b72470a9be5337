"""Read answers written by other programs, and match them with a benchmark's questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..conversations import Question
from ..conversations.sources import open_data_source
from ..errors import DataError
from ..safe_parsing import shorten
from .answer_cells import missing_answer_error
from .answer_column import select_answer_column
from .caveats import Caveat, counted
from .matching import Row, canonical_id, has_ids, match_rows
from .results import ScoreReport
from .scores import score_predictions
from .task import Task, left_out_caveats
from .tasks import TASKS


@dataclass(frozen=True, slots=True)
class LoadedAnswers:
    """An answer to each question, in their order ("" if it is missing); the number of missing
    answers; caveats.
    """

    answers: list[str]
    missing: int
    caveats: list[Caveat]


def read_answers(
    path: Path,
    task: Task,
    questions: Sequence[Question],
    *,
    allow_missing: bool = False,
    column: str | None = None,
    ignored_ids: Callable[[], set[str]] = set,
) -> LoadedAnswers:
    """Read the answers to `questions` from `column` of a file, or from the column that is detected
    (answer_column.py).

    If several questions share an id, their answers are matched in order. Rows without ids are
    matched by the text of their question. Raises DataError for a row without an answer, an id that
    no question has and that is not among `ignored_ids`, two answers to one question, and missing
    answers unless `allow_missing`.
    """
    rows = [
        (number, _identified(row, task))
        for number, row in _unwrap_object(
            list(_read(path)), {question.id for question in questions}
        )
    ]
    caveats: list[Caveat] = []
    matching = match_rows(path, rows, questions)
    if matching.unknown:
        known = ignored_ids()
        _reject_unknown(
            path, [called for called in matching.unknown if called not in known], len(questions)
        )
        told = (
            "answers are to questions of the same files that this task does not ask (without a"
            " picture, or of another part): left out"
        )
        caveats.append(Caveat("not-asked", told, len(matching.unknown)))
    elif not has_ids(rows):
        caveats.append(
            Caveat(
                "by-text",
                "answers have no number: they were matched by the text of their question, in their"
                " order",
                len(rows),
            )
        )
    found: dict[str, str] = {}
    if matching.rows:
        texts, said = select_answer_column(path, matching.rows, task.score, column)
        caveats += said
        for (number, row, question), text in zip(matching.rows, texts, strict=True):
            if text is not None:
                found[question.id] = text
            elif not allow_missing:
                raise missing_answer_error(path, number, row)
    empty = "answers are empty, and count as wrong"
    caveats += counted("empty", empty, sum(not text.strip() for text in found.values()))
    _reject_missing(
        path,
        [question.id for question in questions if question.id not in found],
        len(questions),
        allow_missing,
    )
    return LoadedAnswers(
        [found.get(question.id, "") for question in questions], len(questions) - len(found), caveats
    )


def score_file(
    task: str,
    sources: Sequence[str],
    answers: Path,
    *,
    allow_missing: bool = False,
    column: str | None = None,
    seed: int = 0,
) -> ScoreReport:
    """Score the answers of a file to the questions of `sources` by the rules of `task`.

    Raises UsageError for an unknown task, DataError as `read_answers` does.
    """
    which = TASKS[task]
    questions = which.load(sources, None)
    given = read_answers(
        answers,
        which,
        questions,
        allow_missing=allow_missing,
        column=column,
        ignored_ids=lambda: which.ignored_ids(sources),
    )
    scores = score_predictions(which, questions, {"real": given.answers}, seed)
    return ScoreReport(
        task,
        scores.headline,
        scores.questions,
        scores.units,
        given.missing,
        (*left_out_caveats(which, sources), *given.caveats, *scores.caveats),
        seed,
        scores.real.metrics,
        scores.real.kinds,
    )


def _read(path: Path) -> Iterator[tuple[int, Row]]:
    empty = True
    for row_number, row, fault in open_data_source(path).rows():
        empty = False
        if fault is not None or not isinstance(row, dict):
            raise DataError(
                f"{path}, row {row_number} {fault[1] if fault else 'is no mapping'}",
                wanted='{"question_id": ..., "answer": ...}',
            )
        yield row_number, row
    if empty:
        raise DataError(f"{path} has no rows", wanted='rows of {"question_id": ..., "answer": ...}')


def _unwrap_object(rows: list[tuple[int, Row]], ids: set[str]) -> list[tuple[int, Row]]:
    """Unwrap a single JSON object: the rows of its only list, or one row for each question id that
    it maps to an answer.
    """
    if len(rows) != 1 or has_ids(rows):
        return rows
    [(_, row)] = rows
    lists = [
        value
        for value in row.values()
        if isinstance(value, list) and value and all(isinstance(one, dict) for one in value)
    ]
    if len(lists) == 1:
        return list(enumerate(lists[0], 1))
    if row and all(str(key).strip() in ids or canonical_id(key) in ids for key in row):
        return [
            (at, {"question_id": key, "answer": value})
            for at, (key, value) in enumerate(row.items(), 1)
        ]
    return rows


def _identified(row: Row, task: Task) -> Row:
    """The row with the id of the question that it, or lmms-eval's "doc" in it, names by several of
    the benchmark's fields.
    """
    doc = row.get("doc")
    for fields in (row, doc) if isinstance(doc, dict) else (row,):
        if (number := task.row_id(fields)) is not None:
            return {**row, "question_id": number}
    return row


def _reject_unknown(path: Path, unknown: Sequence[str], n: int) -> None:
    if unknown:
        raise DataError(
            f"{path} answers {len(unknown)} questions that are not among the {n}",
            got=f"{shorten(unknown[0])} for one",
            do=(
                "Name the question file that the answers are for; with several files numbers are"
                " CATEGORY/NUMBER, or rows have a category"
            ),
        )


def _reject_missing(path: Path, missing: Sequence[str], n: int, allow_missing: bool) -> None:
    if missing and not allow_missing:
        raise DataError(
            f"{path} has no answer to {len(missing)} of {n} questions",
            got=f"none to {shorten(missing[0])}",
            do="Answer them, or say --allow-missing: they then count as wrong",
        )
