"""Accuracy of option letters by a benchmark's own reading of an answer, and by any wording."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..answer_metrics import parse_letter
from ..task import Array, ScoredAnswer, mean


def count_wordings(marked: Sequence[ScoredAnswer]) -> Array:
    """Columns: correct by the task's own rule; by any way of naming an option; number of
    questions.
    """
    rows = [
        (one.score, parse_letter(one.answer, one.question.choices) == one.question.answers[0], 1.0)
        for one in marked
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def wording_metrics(sums: Array) -> dict[str, Array]:
    """Accuracy by the task's own rule; that of any wording, if it differs."""
    found = {"accuracy": mean(sums[..., 0], sums[..., 2])}
    if sums[0, 0] != sums[0, 1]:
        found["accuracy_any_wording"] = mean(sums[..., 1], sums[..., 2])
    return found
