"""Evaluation during training: held-out questions, scored with and without their image, and whether
the model uses images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..conversations import CAPTION_KINDS, ImageFinder, Question, read_questions
from ..conversations.common_answers import AnswerTable, Constants
from ..malloc import release_free_memory
from ..model import Phi3WithProjector
from ..model.batch_generate import Query, batch_generate, likeliest_answers, query_for
from ..model.sharding import root_gathered
from ..pipeline.progress import OnEvent, Progress, ignore
from ..pipeline.records import Record, key
from ..pipeline.results import TrainingVerdict
from ..recipe import Recipe
from ..vision.store import FeatureStore
from .verdict import MIN_IMAGES, judge_looking

ANSWERS_LOGGED = 3
EVAL_BATCH_SIZE = 32
MAX_NEW_TOKENS = 32  # tokens of an answer, unless the recipe's evaluation cuts it earlier
IsCorrect = Callable[[str, Sequence[str]], bool]
QuestionImage = tuple[Question, str | None]  # a question, and the image that goes with it


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedAnswer(Record):
    """A held-out question, its reference, and what the model said."""

    question: str
    right: str
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutRow(Record):
    """A row of metrics.jsonl: the shares of `questions` answered correctly after a step, with the
    image and without (None if not evaluated), and some `answers`.
    """

    step: int
    steps: int
    accuracy: float = key("held_out")
    blind: float | None
    questions: int
    answers: tuple[LoggedAnswer, ...]


class EvalCallback(TrainerCallback):
    """Evaluates `times` in a stage, the last time at its end.

    Reports `held_out`, the share of the questions that `is_correct` accepts, `blind`, the same
    without images, and some `answers`. At the end of the run's last stage it evaluates more
    questions, also with another question's image, and `verdict` tells whether the model uses its
    images, compared with the commonest answers of `training`, too; in other stages it is None.
    Without `is_correct` nothing is evaluated. The reasons why questions cannot be evaluated are in
    `unasked`, and are reported at the beginning.

    Every process evaluates, or the others would wait for it; only the first process writes the
    reports.
    """

    def __init__(
        self,
        built: Phi3WithProjector,
        store: FeatureStore,
        recipe: Recipe,
        is_correct: IsCorrect | None,
        report: Callable[[dict[str, Any]], None],
        *,
        stage: str,
        training: AnswerTable | None = None,
        on_event: OnEvent = ignore,
    ) -> None:
        self.stage, self.on_event = stage, on_event
        self.training = training
        self.built, self.store, self.is_correct, self.report = built, store, is_correct, report
        self.times = recipe.train.eval.times
        self.batch_size = eval_batch_size(recipe)
        self.max_new_tokens = min(MAX_NEW_TOKENS, recipe.evaluate.max_new_tokens)
        self.last_stage = stage == list(recipe.train.stages)[-1]
        wanted = eval_questions(recipe) if is_correct else []
        self.final_questions = [q for q in wanted if q.image is None or q.image in store]
        self.unasked = explain_skipped(recipe, wanted, store) if is_correct else []
        self.questions = sample_evenly(self.final_questions, recipe.train.eval.questions)
        self.held_out_accuracy: float | None = None  # of the last evaluation
        self.blind_accuracy: float | None = None
        self.verdict = TrainingVerdict() if self.last_stage else None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report why questions cannot be evaluated, if any."""
        for why in self.unasked:
            self.report({"step": state.global_step, "unasked": why})

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate if it is due after this step, and report the result."""
        if state.global_step in self._eval_steps(state.max_steps) and (
            row := self.evaluate(kwargs["model"], state.global_step, state.max_steps)
        ):
            self.report(row.to_dict())

    def _eval_steps(self, steps: int) -> set[int]:
        return {round(steps * number / self.times) for number in range(1, self.times + 1)}

    def finish(self, model: Any, steps: int) -> None:
        """Evaluate once more if a resumed stage had no step left, and so no evaluation.

        Its row was reported before, and is not reported again.
        """
        if self.held_out_accuracy is None:
            self.evaluate(model, steps, steps)

    def evaluate(self, model: Any, step: int, steps: int) -> HeldOutRow | None:
        """Evaluate, update the accuracies and the verdict, and return the row to report: None
        without `is_correct` or questions.
        """
        last = self.last_stage and step == steps
        questions = self.final_questions if last else self.questions
        if self.is_correct is None or not questions:
            return None
        release_free_memory()  # what the steps left behind does not fit the answers
        seeing = [i for i, q in enumerate(questions) if q.image is not None]
        pairs: list[QuestionImage] = [(q, q.image) for q in questions]
        if seeing:
            pairs += [(q, None) for q in questions]
        if last and len({q.image for q in questions} - {None}) >= MIN_IMAGES:
            pairs += zip(questions, exchange_images([q.image for q in questions]), strict=True)
        answers = self._answers(model, pairs)
        right = self._right(pairs, answers)
        real, blind = right[: len(questions)], right[len(questions) : 2 * len(questions)]
        accuracy = self.held_out_accuracy = sum(real) / len(real)
        self.blind_accuracy = sum(blind) / len(blind) if blind else None
        if last:
            self.verdict = self._judge(model, pairs, answers, seeing)
        shown = range(0, len(questions), -(-len(questions) // ANSWERS_LOGGED))
        return HeldOutRow(
            step=step,
            steps=steps,
            accuracy=accuracy,
            blind=self.blind_accuracy,
            questions=len(questions),
            answers=tuple(
                LoggedAnswer(
                    question=questions[i].text, right=questions[i].answers[0], said=answers[i]
                )
                for i in shown
            ),
        )

    def _right(self, pairs: Sequence[QuestionImage], answers: Sequence[str]) -> list[bool]:
        assert self.is_correct is not None
        return [
            self.is_correct(answer, q.answers)
            for answer, (q, _) in zip(answers, pairs, strict=True)
        ]

    def _judge(
        self,
        model: Any,
        pairs: Sequence[QuestionImage],
        answers: Sequence[str],
        seeing: Sequence[int],
    ) -> TrainingVerdict:
        """The verdict on the questions `seeing` an image; `pairs` holds all questions under each
        condition. Answers without their own image that fell out of the answer's form count by
        content.
        """
        count = len(self.final_questions)
        constants = Constants.of(self.final_questions, self.training)
        said = self._by_content(model, pairs, answers, constants)
        right = self._right(pairs, said)
        real, blind, shuffled = (
            [right[start + i] for i in seeing] if start < len(right) else []
            for start in (0, count, 2 * count)
        )
        constant = self._right(pairs[:count], constants.answers)
        found = judge_looking(
            [str(self.final_questions[i].image) for i in seeing],
            real,
            blind,
            shuffled,
            [constant[i] for i in seeing],
        )
        return replace(
            found,
            constant_source=constants.source,
            by_content=sum(
                answers[start + i] != said[start + i]
                for start in range(count, len(pairs), count)
                for i in seeing
            ),
        )

    @torch.inference_mode()
    def _by_content(
        self,
        model: Any,
        pairs: Sequence[QuestionImage],
        answers: Sequence[str],
        constants: Constants,
    ) -> list[str]:
        """The answers, without their own image those out of form replaced by the likeliest of the
        question's answers.
        """
        assert self.is_correct is not None
        is_correct, count = self.is_correct, len(self.final_questions)
        lost = [
            at
            for at in range(count, len(pairs))
            if constants.out_of_form(
                at % count,
                answers[at],
                lambda said, reference: is_correct(said, (reference,)),
                float(is_correct(answers[at], pairs[at][0].answers)),
            )
        ]
        said = list(answers)
        with _inference_settings(self.built, model):
            for start in range(0, len(lost), self.batch_size):
                some = lost[start : start + self.batch_size]
                chosen = likeliest_answers(
                    self.built,
                    self._queries([pairs[at] for at in some]),
                    [constants.candidates[at % count] for at in some],
                    batch_size=self.batch_size,
                )
                for at, text in zip(some, chosen, strict=True):
                    said[at] = text
                self._progress("answers by content", start + len(some), len(lost))
        return said

    def _progress(self, what: str, done: int, total: int) -> None:
        self.on_event(Progress(f"{self.stage}: {what}", done, total, "answers"))

    def _queries(self, pairs: Sequence[QuestionImage]) -> list[Query]:
        """The pairs as queries; an image that several share is projected once."""
        names = list(dict.fromkeys(image for _, image in pairs if image is not None))
        features = [self.store.features(name).float() for name in names]
        image_embeds = dict(zip(names, self.built.project(features), strict=True))
        return [query_for(q, None if image is None else image_embeds[image]) for q, image in pairs]

    @torch.inference_mode()
    def _answers(self, model: Any, pairs: Sequence[QuestionImage]) -> list[str]:
        """The answer to each pair; the same question with the same image, or with none, is
        generated once.
        """
        once = list({(q.text, image): (q, image) for q, image in pairs}.items())
        found: dict[tuple[str, str | None], str] = {}
        with _inference_settings(self.built, model):
            for start in range(0, len(once), self.batch_size):
                batch = once[start : start + self.batch_size]
                queries = self._queries([pair for _, pair in batch])
                answers = batch_generate(
                    self.built, queries, max_new_tokens=self.max_new_tokens, losses=False
                )
                found.update((key, one.text) for (key, _), one in zip(batch, answers, strict=True))
                self._progress("held-out questions", len(found), len(once))
        return [found[q.text, image] for q, image in pairs]


def eval_batch_size(recipe: Recipe) -> int:
    """Questions that are answered at once while a run trains: as many as `evaluate` would ask, at
    most `EVAL_BATCH_SIZE`.

    Each holds the key-value cache of its image, 226 MB for Phi-3.5 and 576 image tokens.
    """
    return min(EVAL_BATCH_SIZE, recipe.evaluate.batch_size)


def eval_questions(recipe: Recipe) -> list[Question]:
    """Held-out questions with a short answer, evenly sampled, as many as the final evaluation
    needs.

    Earlier evaluations use some of them. Their images need features.
    """
    files = [recipe.path(file) for file in recipe.data.held_out]
    found = [
        q
        for file in files
        if file.exists()
        for q in read_questions(file)
        if q.kind not in CAPTION_KINDS
    ]
    watch = recipe.train.eval
    return sample_evenly(
        found, max(watch.questions, watch.final_questions) if watch.questions else 0
    )


def explain_skipped(recipe: Recipe, wanted: Sequence[Question], store: FeatureStore) -> list[str]:
    """Why held-out questions cannot be evaluated, one sentence per reason: a missing file, or
    images without features.
    """
    said = []
    if recipe.train.eval.questions:
        absent = [
            str(recipe.path(file))
            for file in recipe.data.held_out
            if not recipe.path(file).exists()
        ]
        said += [
            f"There is no {path}, so nothing in it is asked while it trains: mend data.held_out"
            for path in absent
        ]
    lacking = [q.image for q in wanted if q.image is not None and q.image not in store]
    if not lacking:
        return said
    names = list(dict.fromkeys(lacking))
    finder = ImageFinder(recipe.image_folders)
    lost = [name for name in names if finder.find(name) is None]
    advice = "Run phisense features with this recipe"
    if lost:
        others = f" and {len(lost) - 1:,} more" if len(lost) > 1 else ""
        advice = f"Name the folder of {lost[0]}{others} in data.images, and run phisense features"
    return [
        *said,
        (
            f"{len(lacking):,} of {len(wanted):,} held-out questions are not asked, since"
            f" {store.folder} lacks their pictures ({len(names):,}, the first {names[0]}). {advice}"
        ),
    ]


def sample_evenly(questions: Sequence[Question], count: int) -> list[Question]:
    """`count` questions, or all if there are fewer: one drawn at random from each of `count` equal
    stretches.

    Taking every n-th would not do: where correct answers alternate between yes and no, as in POPE,
    it could select only one of the two.
    """
    count, random = min(count, len(questions)), Random(0)
    bounds = [i * len(questions) // count for i in range(count + 1)] if count else []
    return [questions[random.randrange(start, end)] for start, end in pairwise(bounds)]


def exchange_images(images: Sequence[str | None]) -> list[str | None]:
    """For each image another one, always the same: the one half-way around the list, since
    neighbors are often similar.
    """
    names = list(dict.fromkeys(name for name in images if name is not None))
    half = len(names) // 2
    other: dict[str | None, str | None] = dict(
        zip(names, [*names[half:], *names[:half]], strict=True)
    )
    return [other.get(name) for name in images]


@contextmanager
def _inference_settings(built: Phi3WithProjector, model: Any) -> Iterator[None]:
    """Switch to SDPA attention with a KV cache: training's attention does not support one, and
    checkpointing forbids it.
    """
    config = built.model.config.text_config
    attention = config._attn_implementation
    cache = built.model.config.use_cache
    device = built.device
    model.eval()
    built.model.set_attn_implementation({"text_config": "sdpa"})
    built.model.config.use_cache = True
    try:
        with (
            root_gathered(model),
            torch.autocast(
                device.type,
                torch.bfloat16,
                enabled=built.model.lm_head.weight.dtype is torch.bfloat16,
            ),
        ):
            yield
    finally:
        built.model.config.use_cache = cache
        built.model.set_attn_implementation({"text_config": attention})
        model.train()
