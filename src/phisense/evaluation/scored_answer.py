"""`ScoredAnswer`: what a task's aggregation and caveats are computed from."""

from __future__ import annotations

from dataclasses import dataclass

from ..conversations import Question


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """A question, the final answer to it (`final_answer`), and its score."""

    question: Question
    answer: str
    score: float
