"""From predictions to figures: each task's own with their intervals, by kind, and whether the model looks.

{"task": "pope", "headline": "accuracy", "questions": 3000, "units": 3000,
 "real": {"figures": {"accuracy": {"value", "low", "high"}, ...}, "kinds": {kind: {"n", "value", "low", "high"}}, "loss": 0.4},
 "blind": ..., "shuffled": ...,
 "looks": {"verdict": "looks", "blind" or "too few", "figure": "accuracy", "over": {"blind": {"value", "low", "high", "above_zero"}, ...}}}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..conversations import CAPTION_KINDS, Question
from ..intervals import ENOUGH, above, drawn_together, wilson, with_intervals
from .task import Marked, Task

CONDITIONS = ("real", "blind", "shuffled")


@dataclass(frozen=True, slots=True)
class Prediction:
    """One question asked under one condition. `loss` is that of the right answer, summed over `tokens`, where the engine tells it."""

    id: str
    kind: str
    image: str | None
    shown: str | None
    question: str
    answers: tuple[str, ...]
    condition: str
    answer: str
    credit: float
    loss: float | None = None
    tokens: int | None = None

    @property
    def right(self) -> bool:
        return self.credit >= 0.5

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "right": self.right}


def score(task: Task, questions: Sequence[Question], said: dict[str, Sequence[str]], seed: int = 0) -> dict[str, Any]:
    """`said` holds for each condition an answer to each question, in their order. The headline is the task's first figure."""
    ran = [name for name in CONDITIONS if name in said]
    marked = {name: [Marked(q, answer, task.credit(q, answer)) for q, answer in zip(questions, said[name], strict=True)] for name in ran}
    tallies = [task.tally(marked[name]) for name in ran]
    drawn = {name: task.figures(sums) for name, sums in zip(ran, drawn_together(tallies, seed), strict=True)}
    headline = next(iter(drawn[ran[0]]))
    scores: dict[str, Any] = {"task": task.name, "headline": headline, "questions": len(questions), "units": len(tallies[0])}
    scores |= {name: {"figures": with_intervals(drawn[name], len(tallies[0])), "kinds": _kinds(marked[name])} for name in ran}
    if all(name in drawn for name in CONDITIONS):
        over = {name: above(drawn["real"][headline], drawn[name][headline]) for name in CONDITIONS[1:]}
        looks = all(one["above_zero"] for one in over.values())
        verdict = "too few" if len(tallies[0]) < ENOUGH else "looks" if looks else "blind"
        scores["looks"] = {"verdict": verdict, "figure": headline, "over": over}
    return scores


def _kinds(marked: Sequence[Marked]) -> dict[str, Any]:
    """Mean credit of each kind of question; Wilson's interval, which for partial credit is a little too wide."""
    found = {}
    for kind in sorted({one.question.kind for one in marked} - set(CAPTION_KINDS)):
        earned = [one.credit for one in marked if one.question.kind == kind]
        low, high = wilson(sum(earned), len(earned))
        found[kind] = {"n": len(earned), "value": sum(earned) / len(earned), "low": low, "high": high}
    return found
