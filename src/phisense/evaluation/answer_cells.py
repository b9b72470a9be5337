"""The columns of an answer file: their texts, whether these are correct in every row, and whether
they repeat the questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..conversations import Question
from ..errors import DataError
from ..safe_parsing import quote, shorten
from .answer_metrics import OPTION_LETTERS, normalize_any_script
from .column_names import MODEL_COLUMNS, plain_name
from .echoes import Echo, detect_echo
from .final_answer import final_answer
from .matching import MatchedRow, Row

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
        """The name as it is compared with usual ones."""
        return plain_name(self.name)


@dataclass(frozen=True, slots=True)
class AnswerFile:
    """Rows of an answer file, its columns, and the scorer of an answer."""

    path: Path
    matched: Sequence[MatchedRow]
    keys: Sequence[str]
    score: AnswerScorer

    def is_correct(self, question: Question, text: str) -> bool:
        """Whether a text is the correct answer; see `is_correct_answer`."""
        return is_correct_answer(question, text, self.score)


def read_column(file: AnswerFile, key: str, *, alone: bool) -> Column:
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


def has_cell(row: Row, key: str) -> bool:
    """Whether the row has a value there."""
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


def is_correct_answer(question: Question, text: str, score: AnswerScorer) -> bool:
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
        got=list_columns(list(row)),
        do="Name the column of the answers: --answer-column NAME",
    )


def echo_error(file: AnswerFile, name: str) -> DataError:
    """The error for a column that holds the questions."""
    return DataError(
        f"{file.path}: what the column {quote(name)} holds is the text of the questions, in"
        " every row",
        got=list_columns(file.keys),
        wanted="the model's answers",
        do="Name their column: --answer-column NAME",
    )


def list_columns(keys: Sequence[object]) -> str:
    """The names of columns, shortened for an error."""
    return shorten(", ".join(map(str, keys))).strip("'")
