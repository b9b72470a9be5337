"""MMStar (Chen et al., 2024): 1,500 multiple-choice questions that cannot be answered without the
image, of six categories with three sub-categories each.

mmstar.parquet (images embedded), or Lin-Chen/MMStar on the hub. The options, A to D, are part of
the question's text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...conversations import Question
from ...errors import DataError
from ..answer_metrics import OPTION_LETTERS
from ..benchmark_images import picture_name, unpack_images
from ..benchmark_io import HubDefaults, check_questions, read_source, rows_of, text_of
from ..caveats import Caveat, of_unread
from ..ranked_letters import parse_letter_ranked
from ..task import Array, ScoredAnswer, Task, mean
from .prompts import OPTION_LETTER

HUB = HubDefaults("val")
LETTERS = OPTION_LETTERS[:4]
_ASKS = " Please answer yes or no."


def load(sources: Sequence[str], pictures: Path | None) -> list[Question]:
    questions = []
    with unpack_images(pictures, sources) as unpacked:
        for source in sources:
            for row in rows_of(read_source(source, HUB), source):
                number = text_of(row, "index", "id", of=source)
                of = f"{source}, question {number}"
                right = text_of(row, "answer", of=of).strip().upper()
                if right not in LETTERS:
                    raise DataError(f"{of}: the answer is no option", got=right, wanted="A to D")
                questions.append(
                    Question(
                        number,
                        picture_name(row, unpacked, of),
                        text_of(row, "question", of=of).strip(),
                        (right,),
                        text_of(row, "l2_category", of=of),
                        LETTERS,
                    )
                )
    return check_questions(questions, sources)


def prompt(question: Question) -> str:
    # lmms-eval's instruction ends without a period here
    return f"{question.text.replace(_ASKS, '')}\n{OPTION_LETTER.rstrip('.')}"


def score(question: Question, answer: str) -> float:
    return float(parse_letter_ranked(answer) == question.answers[0])


def aggregate(marked: Sequence[ScoredAnswer]) -> Array:
    """Columns: credit and number of all questions; the same of each sub-category."""
    kinds = sorted({one.question.kind for one in marked})
    rows = np.zeros((len(marked), 2 + 2 * len(kinds)))
    for row, one in zip(rows, marked, strict=True):
        at = 2 + 2 * kinds.index(one.question.kind)
        row[:2] = row[at : at + 2] = one.score, 1
    return rows


def metrics(sums: Array) -> dict[str, Array]:
    """The share of correct answers (as in the paper), and the mean of the sub-categories' shares
    (lmms-eval's `average`).
    """
    shares = mean(sums[..., 2::2], sums[..., 3::2])
    return {
        "accuracy": mean(sums[..., 0], sums[..., 1]),
        # a bootstrap draw may miss a sub-category
        "average": np.nanmean(shares, axis=-1),
    }


def caveats(marked: Sequence[ScoredAnswer]) -> Iterator[Caveat]:
    yield from of_unread(
        marked, lambda one: parse_letter_ranked(one.answer) is not None, "name no option"
    )


TASK = Task("mmstar", "MMStar", load, score, aggregate, metrics, prompt=prompt, caveats=caveats)
