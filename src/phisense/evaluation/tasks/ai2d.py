"""AI2D (Kembhavi et al., 2016), test: multiple-choice questions about school diagrams.

The folder of ai2d-all.zip (allenai.org/data/diagrams) with ai2d_test_ids.csv in it, or
lmms-lab/ai2d. Questions whose options are letters in the diagram are about the version of it in
`abc_images`.

An answer is correct if it is the letter, or begins with it and a period ("B. stem"); case and ASCII
punctuation do not count ("(b)"). This is lmms-eval's rule; nothing else is read.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...conversations import Question
from ...errors import DataError
from ..answer_metrics import OPTION_LETTERS
from ..benchmark_images import picture_name, unpack_images
from ..benchmark_io import (
    HubDefaults,
    Row,
    check_questions,
    mapping,
    number_of,
    numbered_rows,
    read_source,
    rows_of,
    text_of,
    texts_of,
)
from ..caveats import Caveat, of_unread
from ..task import ScoredAnswer, Task
from .prompts import multiple_choice_prompt
from .wordings import count_wordings, wording_metrics

HUB = HubDefaults("test")
TEST_IDS = "ai2d_test_ids.csv"
_LEADING = re.compile(r"\s*([A-Z])\.")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def load(sources: Sequence[str], pictures: Path | None) -> list[Question]:
    questions: list[Question] = []
    with unpack_images(pictures, sources) as unpacked:
        for source in sources:
            for number, row in _rows(source, len(questions)):
                of = f"{source}, question {number}"
                questions.append(_question(number, row, picture_name(row, unpacked, of), of))
    return check_questions(questions, sources)


def _rows(source: str, first: int) -> Iterator[tuple[str, Row]]:
    folder = Path(source)
    if not (folder / "questions").is_dir():
        yield from numbered_rows(read_source(source, HUB), source, first)
        return
    listed = next((one for one in (folder, folder.parent) if (one / TEST_IDS).is_file()), None)
    if listed is None:
        raise DataError(
            f"{source} does not say which diagrams are of the test split",
            wanted=f"{TEST_IDS} in it or beside it",
        )
    tested = set((listed / TEST_IDS).read_text(encoding="utf-8").split())
    for path in sorted((folder / "questions").glob("*.json")):
        if path.name.split(".")[0] in tested:
            yield from _diagram(read_source(str(path), HUB), str(path))


def _diagram(document: Any, source: str) -> Iterator[tuple[str, Row]]:
    """The questions of one diagram of the official release, as rows."""
    for diagram in rows_of(document, source):
        name = text_of(diagram, "imageName", of=source)
        for text, value in mapping(diagram.get("questions"), f"{source}: questions").items():
            row = mapping(value, f"{source}: a question")
            folder = "abc_images" if row.get("abcLabel") else "images"
            yield (
                text_of(row, "questionId", of=source),
                {**row, "question": text, "image": f"{folder}/{name}"},
            )


def _question(number: str, row: Row, image: str | None, of: str) -> Question:
    choices = texts_of(row, "options", "answerTexts", of=of)
    right = number_of(row, "answer", "correctAnswer", of=of)
    if not 0 <= right < len(choices) <= len(OPTION_LETTERS):
        raise DataError(
            f"{of}: the right answer is not among the options",
            got=right,
            wanted=f"0 to {len(choices) - 1}",
        )
    kind = "letters in the diagram" if row.get("abcLabel") else "texts"
    text = text_of(row, "question", of=of)
    return Question(number, image, text, (OPTION_LETTERS[right],), kind, choices)


def parse_answer(answer: str) -> str:
    """What is compared with the letter, in lower case."""
    leading = _LEADING.match(answer)
    return (leading[1] if leading else answer).lower().translate(_PUNCTUATION)


def score(question: Question, answer: str) -> float:
    return float(parse_answer(answer) == question.answers[0].lower())


def caveats(marked: Sequence[ScoredAnswer]) -> Iterator[Caveat]:
    yield from of_unread(
        marked,
        lambda one: parse_answer(one.answer).upper() in OPTION_LETTERS[: len(one.question.choices)],
        "name no option, by lmms-eval's reading",
    )


TASK = Task(
    "ai2d",
    "AI2D test",
    load,
    score,
    count_wordings,
    wording_metrics,
    prompt=multiple_choice_prompt,
    caveats=caveats,
)
