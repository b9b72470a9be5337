"""ScienceQA-IMG (Lu et al., 2022): school questions with a picture, to be answered by a letter.

problems.json and pid_splits.json of github.com/lupantech/ScienceQA (the test questions that have a picture), or lmms-lab/ScienceQA.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...conversations import Question
from ...errors import DataError
from ..answers import LETTERS, letter, llava_letter
from ..reading import Row, Usual, kind_of, number_of, numbered_rows, picture_name, read, some, text_of, texts_of, unpacking
from ..task import Array, Marked, Task, mean
from .wording import multiple_choice

HUB = Usual("test", ("ScienceQA-IMG",))


def load(sources: Sequence[str], pictures: Path | None) -> list[Question]:
    documents = [(source, read(source, HUB)) for source in sources]
    splits = next((one for _, one in documents if isinstance(one, dict) and isinstance(one.get("test"), list)), None)
    tested = set(map(str, splits["test"])) if splits is not None else None
    questions = []
    met = 0  # rows without an id are numbered on from file to file
    with unpacking(pictures, sources) as unpacked:
        for source, document in documents:
            if document is splits:
                continue
            for number, row in numbered_rows(document, source, met):
                met += 1
                if row.get("image") is None or (number not in tested if tested is not None else row.get("split", "test") != "test"):
                    continue
                name = picture_name(row, unpacked, source)
                image = f"{number}/{name}" if isinstance(row["image"], str) else name
                questions.append(_question(number, row, image, source))
    return some(questions, sources)


def _question(number: str, row: Row, image: str | None, source: str) -> Question:
    choices = texts_of(row, "choices", of=source)
    right = number_of(row, "answer", of=source)
    if not 0 <= right < len(choices) <= len(LETTERS):
        raise DataError(
            f"{source}, question {number}: the right answer is not among the choices", got=right, wanted=f"0 to {len(choices) - 1}"
        )
    context = f"Context: {text_of(row, 'hint', of=source)}\n" if row.get("hint") else ""
    text = f"{context}{text_of(row, 'question', of=source)}"
    return Question(number, image, text, (LETTERS[right],), kind_of(row, "subject", of=source), choices)


def credit(question: Question, answer: str) -> float:
    return float(llava_letter(answer, len(question.choices)) == question.answers[0])


def tally(marked: Sequence[Marked]) -> Array:
    """Columns: right by LLaVA's reading; right by any way of naming an option; number."""
    rows = [(one.credit, letter(one.answer, one.question.choices) == one.question.answers[0], 1.0) for one in marked]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def figures(sums: Array) -> dict[str, Array]:
    """Accuracy by LLaVA's reading of answers; where another reading finds more letters, its accuracy too."""
    found = {"accuracy": mean(sums[..., 0], sums[..., 2])}
    if sums[0, 0] != sums[0, 1]:
        found["accuracy_any_wording"] = mean(sums[..., 1], sums[..., 2])
    return found


SCIENCEQA = Task("scienceqa", "ScienceQA-IMG", load, credit, tally, figures, put=multiple_choice)
