"""From predictions to metrics: each task's own with their intervals, by kind of question, and
whether the model uses the image. The result types are in `results.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from ..bootstrap import (
    MIN_UNITS,
    Array,
    confidence_intervals,
    paired_bootstrap,
    paired_difference,
    wilson_interval,
)
from ..conversations import CAPTION_KINDS, Question
from ..intervals import PairedDifference
from ..pipeline.json_fields import as_object, optional, present, required
from .caveats import of_thoughts
from .results import (
    CONDITIONS,
    SCORED,
    ConditionScores,
    EvaluationReport,
    ImageUse,
    KindScore,
    Verdict,
)
from .task import ScoredAnswer, Task, score_answer

__all__ = ["CONDITIONS", "Prediction", "score_predictions"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One question under one condition: a line of `predictions.jsonl`.

    `shown` is the image that was shown, `loss` the loss of the reference, summed over `tokens`,
    where the engine computes it. `choices` and `group` are those of the question: a task needs them
    to know which questions belong together. `chosen` is scored in the place of an `answer` that
    fell out of the answer's form without its image.
    """

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
    choices: tuple[str, ...] = ()
    group: str = ""
    chosen: str | None = None

    @property
    def counted(self) -> str:
        """The answer that was scored."""
        return self.answer if self.chosen is None else self.chosen

    @property
    def right(self) -> bool:
        """Whether the answer earned at least half of the credit."""
        return self.credit >= 0.5

    def to_dict(self) -> dict[str, object]:
        """The line's JSON; `group`, `choices` and `chosen` only where there are any."""
        line = {name: getattr(self, name) for name in _LINE}
        more = {"group": self.group, "choices": self.choices} if self.group or self.choices else {}
        more |= {} if self.chosen is None else {"chosen": self.chosen}
        return {**line, "right": self.right, **more}

    @classmethod
    def from_dict(cls, document: object, source: str = "predictions.jsonl") -> Prediction:
        """Read `to_dict`'s JSON; unknown keys are ignored. Raises ArtifactError, naming `source`,
        for a line without the question, its references, or the answer.
        """
        line = as_object(document, source)
        for key in _NEEDED:
            required(line, key, object, source)
        for key in ("image", "shown"):  # null where there is none
            present(line, key, source)
        known = {name: line[name] for name in _FIELDS if name in line}
        known |= {
            name: tuple(map(str, optional(line, name, list, source) or ()))
            for name in ("answers", "choices")
        }
        known["group"] = str(line.get("group") or "")
        return cls(**known)  # type: ignore[arg-type]


_FIELDS = tuple(one.name for one in fields(Prediction))
_LINE = _FIELDS[: _FIELDS.index("choices")]
_NEEDED = ("id", "kind", "question", "answers", "condition", "answer", "credit")


def score_predictions(
    task: Task, questions: Sequence[Question], said: dict[str, Sequence[str]], seed: int = 0
) -> EvaluationReport:
    """Score `said`, which holds for each condition an answer to each question, in their order; for
    the condition `constant` the answers of `Constants`. The headline is the task's first metric.
    """
    ran = [name for name in SCORED if name in said]
    marked = {
        name: [
            score_answer(task, q, answer) for q, answer in zip(questions, said[name], strict=True)
        ]
        for name in ran
    }
    tallies = [task.aggregate(marked[name]) for name in ran]
    drawn = {
        name: task.metrics(sums)
        for name, sums in zip(ran, paired_bootstrap(tallies, seed), strict=True)
    }
    headline, units = next(iter(drawn[ran[0]])), len(tallies[0])
    return EvaluationReport(
        task.name,
        headline,
        len(questions),
        units,
        {
            name: ConditionScores(confidence_intervals(drawn[name], units), _kinds(marked[name]))
            for name in ran
        },
        (*of_thoughts(said[ran[0]]), *task.caveats(marked[ran[0]])),
        _image_use(headline, {name: its[headline] for name, its in drawn.items()}, units),
    )


def _image_use(headline: str, drawn: dict[str, Array], units: int) -> ImageUse | None:
    """The verdict from the bootstrap draws of the headline metric under each condition; None unless
    the model was asked under all three. It must be better than under each other one, so than the
    best of them.
    """
    if any(name not in drawn for name in CONDITIONS):
        return None
    over: dict[str, PairedDifference] = {
        name: paired_difference(drawn["real"], drawn[name]) for name in SCORED[1:] if name in drawn
    }
    looks = all(one.above_zero for one in over.values())
    verdict: Verdict = "too few" if units < MIN_UNITS else "looks" if looks else "blind"
    return ImageUse(verdict, headline, over)


def _kinds(marked: Sequence[ScoredAnswer]) -> dict[str, KindScore]:
    """Mean credit of each kind of question with its Wilson interval, which for partial credit is
    slightly too wide.
    """
    found = {}
    for kind in sorted({one.question.kind for one in marked} - set(CAPTION_KINDS)):
        earned = [one.score for one in marked if one.question.kind == kind]
        low, high = wilson_interval(sum(earned), len(earned))
        found[kind] = KindScore(sum(earned) / len(earned), low, high, len(earned))
    return found
