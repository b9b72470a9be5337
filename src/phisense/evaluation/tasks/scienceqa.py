"""ScienceQA-IMG (Lu et al., 2022): multiple-choice school questions with an image.

problems.json and pid_splits.json of github.com/lupantech/ScienceQA (the test questions with an
image), or lmms-lab/ScienceQA.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ...conversations import Question
from ...errors import DataError
from ..answer_metrics import OPTION_LETTERS, parse_letter_llava
from ..benchmark_images import picture_name, unpack_images
from ..benchmark_io import (
    HubDefaults,
    Row,
    check_questions,
    kind_of,
    number_of,
    numbered_rows,
    read_source,
    text_of,
    texts_of,
)
from ..caveats import Caveat, of_unread
from ..task import ScoredAnswer, Task
from .prompts import multiple_choice_prompt
from .wordings import count_wordings, wording_metrics

HUB = HubDefaults("test", ("ScienceQA-IMG",))


def load(sources: Sequence[str], pictures: Path | None) -> list[Question]:
    questions = []
    with unpack_images(pictures, sources) as unpacked:
        for source, number, row in _tested(sources):
            if row.get("image") is not None:
                name = picture_name(row, unpacked, source)
                image = f"{number}/{name}" if isinstance(row["image"], str) else name
                questions.append(_question(number, row, image, source))
    return check_questions(questions, sources)


def ignored_ids(sources: Sequence[str]) -> set[str]:
    """Ids of the test questions without an image: a file of answers to the whole split, such as
    LLaVA's, answers them too.
    """
    return {number for _, number, row in _tested(sources) if row.get("image") is None}


def _tested(sources: Sequence[str]) -> Iterator[tuple[str, str, Row]]:
    """Source, id and row of every question of the test split."""
    documents = [(source, read_source(source, HUB)) for source in sources]
    splits = next(
        (
            one
            for _, one in documents
            if isinstance(one, dict) and isinstance(one.get("test"), list)
        ),
        None,
    )
    tested = set(map(str, splits["test"])) if splits is not None else None
    met = 0  # rows without an id are numbered consecutively across files
    for source, document in documents:
        if document is splits:
            continue
        for number, row in numbered_rows(document, source, met):
            met += 1
            if number in tested if tested is not None else row.get("split", "test") == "test":
                yield source, number, row


def _question(number: str, row: Row, image: str | None, source: str) -> Question:
    choices = texts_of(row, "choices", of=source)
    right = number_of(row, "answer", of=source)
    if not 0 <= right < len(choices) <= len(OPTION_LETTERS):
        raise DataError(
            f"{source}, question {number}: the right answer is not among the choices",
            got=right,
            wanted=f"0 to {len(choices) - 1}",
        )
    context = (
        f"Context: {text_of(row, 'hint', of=source)}\n" if row.get("hint") not in (None, "") else ""
    )
    text = f"{context}{text_of(row, 'question', of=source)}"
    return Question(
        number, image, text, (OPTION_LETTERS[right],), kind_of(row, "subject", of=source), choices
    )


def score(question: Question, answer: str) -> float:
    return float(parse_letter_llava(answer, len(question.choices)) == question.answers[0])


def caveats(marked: Sequence[ScoredAnswer]) -> Iterator[Caveat]:
    read = "name no option, by LLaVA's reading"
    yield from of_unread(
        marked,
        lambda one: parse_letter_llava(one.answer, len(one.question.choices)) is not None,
        read,
    )


TASK = Task(
    "scienceqa",
    "ScienceQA-IMG",
    load,
    score,
    count_wordings,
    wording_metrics,
    prompt=multiple_choice_prompt,
    caveats=caveats,
    ignored_ids=ignored_ids,
)
