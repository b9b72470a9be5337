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
from ..conversations.common_answers import AnswerTable, Constants
from ..errors import DataError
from ..parts import fingerprint
from .predictors import EvalRequest, EvalResponse, Predictor
from .results import CONSTANT, EvaluationReport
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
    constants: Constants

    @classmethod
    def prepare(
        cls,
        task: Task,
        questions: Sequence[Question],
        images: ImageFinder,
        conditions: Sequence[str],
        max_new_tokens: int | None,
        seed: int,
        training: AnswerTable | None = None,
    ) -> AskedQuestions:
        """`training` has the answers of the model's training data, if they are known. Raises
        DataError where an image cannot be exchanged for another.
        """
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
            Constants.of(questions, training),
        )

    def record(self, predictor: Predictor, model: Path | None) -> dict[str, object]:
        """What the report records of the model and the settings."""
        return {
            **predictor.about,
            "fingerprint": None if model is None else fingerprint(model),
            "batch": predictor.batch_size,
            "by_content": "constant" if predictor.built is None else "likelihood",
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
            "candidates": _digest([self.constants.answers, self.constants.candidates]),
        }

    def by_content(
        self,
        condition: str,
        rows: Sequence[int],
        requests: Sequence[EvalRequest],
        answers: Sequence[EvalResponse],
        predictor: Predictor,
    ) -> list[EvalResponse]:
        """The answers to the questions `rows`; without their own image those that fell out of the
        answer's form ("There is no picture.") with the likeliest of the question's answers as
        `chosen`, so that they are measured by content. Of a predictor that tells no likelihoods
        with the constant, so that its form makes the model look no better than it is.
        """
        if condition == "real":
            return list(answers)
        lost = [at for at, one in enumerate(answers) if self._is_out_of_form(rows[at], one.text)]
        candidates = [self.constants.candidates[rows[at]] for at in lost]
        chosen = predictor.choose([requests[at] for at in lost], candidates) if lost else []
        if chosen is None:
            chosen = [self.constants.answers[rows[at]] for at in lost]
        found = list(answers)
        for at, text in zip(lost, chosen, strict=True):
            found[at] = replace(answers[at], chosen=text)
        return found

    def _is_out_of_form(self, row: int, answer: str) -> bool:
        question = self.questions[row]

        def accepts(said: str, reference: str) -> bool:
            asked = replace(question, answers=(reference,))
            return score_answer(self.task, asked, said).score > 0

        marked = score_answer(self.task, question, answer)
        if not self.task.reads(marked.question, marked.answer):
            return bool(self.constants.candidates[row])
        return self.constants.out_of_form(row, answer, accepts, marked.score)

    def scores(self, said: Answers) -> EvaluationReport:
        """The metrics of the answers and of the constant, with the mean loss of the references."""
        counted: dict[str, Sequence[str]] = {
            name: [one.counted for one in answers] for name, answers in said.items()
        }
        counted[CONSTANT] = self.constants.answers
        scores = score_predictions(self.task, self.questions, counted, self.seed)
        measured = {
            name: replace(one, source=self.constants.source)
            if name == CONSTANT
            else replace(
                one,
                loss=_mean_loss(said[name]),
                by_content=sum(answer.chosen is not None for answer in said[name]),
            )
            for name, one in scores.conditions.items()
        }
        return replace(scores, conditions=measured)

    def predictions(self, said: Answers) -> list[Prediction]:
        """Each answer of the model with its question and its credit, condition by condition."""
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
            credit=score_answer(task, q, one.counted).score,
            loss=one.loss,
            tokens=one.tokens,
            choices=q.choices,
            group=q.group,
            chosen=one.chosen,
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
