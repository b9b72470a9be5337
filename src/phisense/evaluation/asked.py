"""What an evaluation asks: the questions as they are put to the model, and the image that is shown
beside each under each condition; and what the answers to them are worth.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

from ..conversations import ImageFinder, Question
from ..errors import DataError
from ..parts import fingerprint
from .predictors import EvalResponse, Predictor
from .results import EvaluationReport
from .scores import Prediction, score_predictions
from .task import Task, score_answer

_VERSIONS = ("phisense", "torch", "transformers")


Answers = Mapping[str, Sequence[EvalResponse]]
"""The responses under each condition, in the order of the questions."""


@dataclass(frozen=True, slots=True)
class AskedQuestions:
    """What is asked: the questions, as they are `put` to the model, with the image that is `shown`
    beside each under each condition, and the files of these images.
    """

    task: Task
    questions: Sequence[Question]
    put: Sequence[Question]
    shown: Mapping[str, Sequence[str | None]]
    paths: Mapping[str, Path]
    max_new_tokens: int
    seed: int

    @classmethod
    def prepare(
        cls,
        task: Task,
        questions: Sequence[Question],
        images: ImageFinder,
        conditions: Sequence[str],
        max_new_tokens: int | None,
        seed: int,
    ) -> AskedQuestions:
        """Raises DataError where an image cannot be exchanged for another."""
        shown = {name: pictures_for_condition(questions, name, seed) for name in conditions}
        names = {name for under in shown.values() for name in under if name is not None}
        return cls(
            task,
            questions,
            [replace(question, text=task.prompt(question)) for question in questions],
            shown,
            {name: images.path(name) for name in sorted(names)},
            max_new_tokens or task.max_new_tokens,
            seed,
        )

    def record(self, predictor: Predictor, model: Path | None) -> dict[str, object]:
        """What the report records of the model and the settings."""
        return {
            **predictor.about,
            "fingerprint": None if model is None else fingerprint(model),
            "batch": predictor.batch_size,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
            "prompt": self.put[0].text,
            **{name: version(name) for name in _VERSIONS},
        }

    def identity(self) -> dict[str, object]:
        """Digests of questions and images, by which an interrupted evaluation is recognized."""
        return {
            "task": self.task.name,
            "questions": _digest([[asdict(one) for one in self.put], list(self.shown)]),
            "pictures": _pictures_digest(self.paths),
        }

    def scores(self, said: Answers) -> EvaluationReport:
        """The metrics of the answers, with the mean loss of the references."""
        scores = score_predictions(
            self.task,
            self.questions,
            {name: [one.text for one in answers] for name, answers in said.items()},
            self.seed,
        )
        measured = {
            name: replace(one, loss=_mean_loss(said[name]))
            for name, one in scores.conditions.items()
        }
        return replace(scores, conditions=measured)

    def predictions(self, said: Answers) -> list[Prediction]:
        """Each answer with its question and its credit, condition by condition."""
        return [
            one
            for name, answers in said.items()
            for one in _predictions(
                self.task, name, self.questions, self.put, self.shown[name], answers
            )
        ]


def _digest(value: Any) -> str:
    return hashlib.sha256(orjson.dumps(value)).hexdigest()


def _pictures_digest(paths: Mapping[str, Path]) -> str:
    """A digest of the sizes and modification times of the image files; hashing their content would
    mean reading all of them.
    """
    states = [(name, path.stat()) for name, path in paths.items()]
    return _digest([(name, state.st_size, state.st_mtime_ns) for name, state in states])


def _predictions(
    task: Task,
    condition: str,
    questions: Sequence[Question],
    put: Sequence[Question],
    shown: Sequence[str | None],
    said: Sequence[EvalResponse],
) -> list[Prediction]:
    return [
        Prediction(
            id=q.id,
            kind=q.kind,
            image=q.image,
            shown=seen,
            question=asked.text,
            answers=q.answers,
            condition=condition,
            answer=one.text,
            credit=score_answer(task, q, one.text).score,
            loss=one.loss,
            tokens=one.tokens,
            choices=q.choices,
            group=q.group,
        )
        for q, asked, seen, one in zip(questions, put, shown, said, strict=True)
    ]


def pictures_for_condition(
    questions: Sequence[Question], condition: str, seed: int
) -> list[str | None]:
    """The image of each question under a condition: its own, none, or a fixed other one (a
    derangement of the images).
    """
    if condition == "real":
        return [question.image for question in questions]
    if condition == "blind":
        return [None] * len(questions)
    names = sorted({question.image for question in questions if question.image is not None})
    if len(names) < 2:
        raise DataError(
            "shuffling needs at least two different pictures",
            got=f"{len(names)}",
            do="Evaluate with --condition real",
        )
    order = names[:]
    random.Random(seed).shuffle(order)
    after = dict(zip(order, order[1:] + order[:1], strict=True))  # one cycle, so no fixed points
    return [None if question.image is None else after[question.image] for question in questions]


def _mean_loss(said: Sequence[EvalResponse]) -> float | None:
    """The mean loss of the references in nats per token; None if the predictor does not compute
    it.
    """
    if any(one.loss is None for one in said):
        return None
    return sum(one.loss or 0.0 for one in said) / max(1, sum(one.tokens or 0 for one in said))
