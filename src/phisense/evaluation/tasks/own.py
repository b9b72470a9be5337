"""Your own questions, in any form that `phisense check` reads: equality after the VQA challenge's normalisation; ROUGE-L for long texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...conversations import CAPTION_KINDS, Question, read_questions
from ..answers import is_right, normalise
from ..reading import not_none
from ..task import Array, Marked, Task, mean
from ..texts import rouge_l, words
from ..yes_no import yes_no_figures, yes_no_row, yes_or_no


def load(sources: Sequence[str], pictures: Path | None) -> list[Question]:
    questions = [question for source in sources for question in read_questions(Path(source))]
    return not_none(questions, sources, "at least one")


def credit(question: Question, answer: str) -> float:
    if question.kind in CAPTION_KINDS:
        return rouge_l(words(answer), [words(one) for one in question.answers])
    return float(is_right(answer, question.answers))


def tally(marked: Sequence[Marked]) -> Array:
    """Columns: credit and number of questions; yes/no questions said and true, said, true, equal, and their number; ROUGE-L and texts."""
    rows = np.zeros((len(marked), 9))
    for row, one in zip(rows, marked, strict=True):
        if one.question.kind in CAPTION_KINDS:
            row[7:] = one.credit, 1
            continue
        row[:2] = one.credit, 1
        true = {normalise(answer) for answer in one.question.answers}
        if true <= {"yes", "no"}:
            row[2:7] = yes_no_row(yes_or_no(one.answer), "yes" if "yes" in true else "no")
    return rows


def figures(sums: Array) -> dict[str, Array]:
    """Accuracy, or of texts alone ROUGE-L; yes/no figures and ROUGE-L where there is something they are of."""
    asked, binary, told = sums[0, 1] > 0, sums[0, 6] > 0, sums[0, 8] > 0
    found = {"accuracy": mean(sums[:, 0], sums[:, 1])} if asked else {}
    if binary:
        found |= {f"yes_no_{name}": figure for name, figure in yes_no_figures(sums[:, 2:7]).items()}
    if told:
        found["rouge_l"] = mean(sums[:, 7], sums[:, 8])
    return found


OWN = Task("own", "Your own questions", load, credit, tally, figures, max_new_tokens=64, losses=True)
