"""What a benchmark is: questions, how they are put, what an answer earns, and the figures that come of it.

    load     files -> questions
    put      question -> the text the model is given
    credit   question, answer -> 0 to 1
    tally    marked answers -> (U, S): what each of U independent units adds to S sums
    figures  sums (..., S) -> named figures (...), the first of which is the headline

A figure is a function of sums over units that are independent of each other (a question; a picture with its two questions; a question with
all its rotations), so every figure of every benchmark gets its interval in the same way: units are drawn anew, with replacement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from ..conversations import Question
from ..intervals import Array as Array  # benchmarks take it from here


@dataclass(frozen=True, slots=True)
class Marked:
    """A question, what was said to it, and what that earns."""

    question: Question
    answer: str
    credit: float


def as_it_is(question: Question) -> str:
    return question.text


@dataclass(frozen=True, slots=True)
class Task:
    """`load` gets what the user named, files or hub ids, and a folder into which it may unpack pictures that come inside the files, or None
    where nobody will look at them.

    `tally` gets the answers in the order of the questions and must give the same units in the same order whatever the answers are:
    conditions are compared unit by unit.
    """

    name: str
    title: str
    load: Callable[[Sequence[str], Path | None], list[Question]]
    credit: Callable[[Question, str], float]
    tally: Callable[[Sequence[Marked]], Array]
    figures: Callable[[Array], dict[str, Array]]
    put: Callable[[Question], str] = as_it_is
    max_new_tokens: int = 16
    losses: bool = False
    """whether the loss of the first right answer says something"""


def shares(marked: Sequence[Marked]) -> Array:
    """The usual tally: each question is a unit that adds its credit and a count."""
    return np.array([(one.credit, 1.0) for one in marked], dtype=np.float64).reshape(-1, 2)


def accuracy(sums: Array) -> dict[str, Array]:
    """The figure of `shares`."""
    return {"accuracy": mean(sums[..., 0], sums[..., 1])}


def mean(total: Array, number: Array) -> Array:
    """Unknown (NaN, left out of the interval) where a draw has none of what the figure is of."""
    return np.divide(total, number, out=np.full_like(np.asarray(total, dtype=np.float64), np.nan), where=np.asarray(number) > 0)


def ratio(part: Array, whole: Array) -> Array:
    """Zero where there is nothing to divide by: precision where nobody said yes."""
    return np.divide(part, whole, out=np.zeros_like(np.asarray(part, dtype=np.float64)), where=np.asarray(whole) > 0)


def some_of(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """`limit` questions, or a few more: those of one group stay together. In their order, drawn by what they are called, so that they
    are the same each time, and not every second one: POPE's answers are yes and no by turns.
    """
    if limit is None or len(questions) <= limit:
        return list(questions)
    groups: dict[str, list[int]] = {}
    for i, question in enumerate(questions):
        groups.setdefault(question.group or f"{question.id} {i}", []).append(i)
    chosen: list[int] = []
    for name in sorted(groups, key=lambda name: sha256(name.encode()).digest()):
        if len(chosen) >= limit:
            break
        chosen += groups[name]
    return [questions[i] for i in sorted(chosen)]
