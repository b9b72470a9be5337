"""Custom questions, in any format that `phisense check` reads: exact match after VQA normalization;
ROUGE-L for long texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...conversations import CAPTION_KINDS, Question, read_questions
from ..answer_metrics import is_correct, normalize_answer
from ..benchmark_io import require_questions
from ..caption_metrics import rouge_l, tokenize_caption
from ..caveats import Caveat, of_long_texts, of_scripts, of_unread
from ..task import Array, ScoredAnswer, Task, mean
from ..yes_no import parse_yes_no, yes_no_counts, yes_no_metrics


def load(sources: Sequence[str], pictures: Path | None) -> list[Question]:
    questions = [question for source in sources for question in read_questions(Path(source))]
    return require_questions(questions, sources, "at least one")


def score(question: Question, answer: str) -> float:
    if question.kind in CAPTION_KINDS:
        return rouge_l(
            tokenize_caption(answer), [tokenize_caption(one) for one in question.answers]
        )
    return float(is_correct(answer, question.answers))


def aggregate(marked: Sequence[ScoredAnswer]) -> Array:
    """Columns: credit and number of questions; for yes/no questions the columns of `yes_no_metrics`
    (true positives, predicted yes, reference yes, correct, number); ROUGE-L and number of texts.
    """
    rows = np.zeros((len(marked), 9))
    for row, one in zip(rows, marked, strict=True):
        if one.question.kind in CAPTION_KINDS:
            row[7:] = one.score, 1
            continue
        row[:2] = one.score, 1
        if true := _yes_or_no(one.question):
            row[2:7] = yes_no_counts(parse_yes_no(one.answer, one.question.text), true)
    return rows


def _yes_or_no(question: Question) -> str | None:
    """The reference of a yes/no question; None for any other."""
    true = {normalize_answer(answer) for answer in question.answers}
    return ("yes" if "yes" in true else "no") if true <= {"yes", "no"} else None


def metrics(sums: Array) -> dict[str, Array]:
    """Accuracy, or ROUGE-L if there are only texts; yes/no metrics and ROUGE-L where such questions
    exist.
    """
    asked, binary, told = sums[0, 1] > 0, sums[0, 6] > 0, sums[0, 8] > 0
    found = {"accuracy": mean(sums[:, 0], sums[:, 1])} if asked else {}
    if binary:
        found |= {f"yes_no_{name}": figure for name, figure in yes_no_metrics(sums[:, 2:7]).items()}
    if told:
        found["rouge_l"] = mean(sums[:, 7], sums[:, 8])
    return found


def caveats(marked: Sequence[ScoredAnswer]) -> Iterator[Caveat]:
    short = [one for one in marked if one.question.kind not in CAPTION_KINDS]
    binary = [one for one in short if _yes_or_no(one.question)]
    yield from of_unread(
        binary,
        lambda one: parse_yes_no(one.answer, one.question.text) != "other",
        "to yes/no questions are neither",
    )
    yield from of_scripts(short)
    yield from of_long_texts([one for one in marked if one.question.kind in CAPTION_KINDS])


TASK = Task(
    "own",
    "Your own questions",
    load,
    score,
    aggregate,
    metrics,
    max_new_tokens=64,
    losses=True,
    caveats=caveats,
)
