"""What the model answers while it is trained: some held-out questions, scored with and without their picture, and whether it looks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from random import Random
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..conversations import CAPTION_KINDS, Question, read_questions
from ..model import Phi3WithProjector
from ..model.asking import about, ask
from ..recipe import Recipe
from ..vision.store import FeatureStore
from .verdict import PICTURES, Looks, looks

SHOWN = 3
AT_ONCE = 32
LONGEST = 32  # tokens of an answer
Judge = Callable[[str, Iterable[str]], bool]
Put = tuple[Question, str | None]  # a question, and the picture that is shown with it


class Watch(TrainerCallback):
    """Asks `times` in a stage, the last time at its end. Reports `held_out`, the share of the questions that `judge` calls right,
    `blind`, the same without any picture, and some `answers`. At the end of the run's last stage it asks more, with another
    question's picture, too, and `facts` has the verdict whether it looks. Without a judge it asks nothing.

    Every process asks, or one would wait for another; what is reported by more than the first is not written.
    """

    def __init__(
        self,
        built: Phi3WithProjector,
        store: FeatureStore,
        recipe: Recipe,
        judge: Judge | None,
        report: Callable[[dict[str, Any]], None],
        *,
        stage: str,
    ) -> None:
        self.built, self.store, self.judge, self.report = built, store, judge, report
        self.times, self.last_stage = recipe.train.watch.times, stage == list(recipe.train.stages)[-1]
        self.all = [q for q in watched_questions(recipe) if q.image is None or q.image in store] if judge else []
        self.questions = spread(self.all, recipe.train.watch.questions)
        self.facts: dict[str, Any] = {"held_out": None, "blind": None, **({"looks": Looks().as_dict()} if self.last_stage else {})}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step in self._when(state.max_steps) and (row := self.look(kwargs["model"], state.global_step, state.max_steps)):
            self.report(row)

    def _when(self, steps: int) -> set[int]:
        return {round(steps * number / self.times) for number in range(1, self.times + 1)}

    def finish(self, model: Any, steps: int) -> None:
        """Asks once more where a resumed stage had no step left, and so no look. Its row was reported before, and is not again."""
        if self.facts["held_out"] is None:
            self.look(model, steps, steps)

    def look(self, model: Any, step: int, steps: int) -> dict[str, Any]:
        """Asks, sets the facts, and returns the row to report: none if there is nobody to judge or nothing to ask."""
        last = self.last_stage and step == steps
        asked = self.all if last else self.questions
        if self.judge is None or not asked:
            return {}
        seeing = [i for i, q in enumerate(asked) if q.image is not None]
        puts: list[Put] = [(q, q.image) for q in asked]
        if seeing:
            puts += [(q, None) for q in asked]
        if last and len({q.image for q in asked} - {None}) >= PICTURES:
            puts += zip(asked, exchanged([q.image for q in asked]), strict=True)
        said = self._answers(model, puts)
        right = [self.judge(answer, q.answers) for answer, (q, _) in zip(said, puts, strict=True)]
        real, blind, shuffled = (right[start : start + len(asked)] for start in (0, len(asked), 2 * len(asked)))
        self.facts |= {"held_out": sum(real) / len(real), "blind": sum(blind) / len(blind) if blind else None}
        if last:
            of_pictures = ([some[i] for i in seeing] if some else [] for some in (real, blind, shuffled))
            self.facts["looks"] = looks([str(asked[i].image) for i in seeing], *of_pictures).as_dict()
        shown = range(0, len(asked), -(-len(asked) // SHOWN))
        return {
            "step": step, "steps": steps, "held_out": self.facts["held_out"], "blind": self.facts["blind"], "questions": len(asked),
            "answers": [{"question": asked[i].text, "right": asked[i].answers[0], "said": said[i]} for i in shown],
        }  # fmt: skip

    @torch.inference_mode()
    def _answers(self, model: Any, puts: Sequence[Put]) -> list[str]:
        """An answer to each; the same question with the same picture, or with none, is asked once."""
        once = list({(q.text, image): (q, image) for q, image in puts}.items())
        said: dict[tuple[str, str | None], str] = {}
        with _answering(self.built, model):
            for start in range(0, len(once), AT_ONCE):
                some = once[start : start + AT_ONCE]
                names = list(dict.fromkeys(image for _, (_, image) in some if image is not None))
                slots = dict(zip(names, self.built.project([self.store.features(name).float() for name in names]), strict=True))
                asked = [about(q, None if image is None else slots[image]) for _, (q, image) in some]
                answers = ask(self.built, asked, max_new_tokens=LONGEST, losses=False)
                said.update((key, one.text) for (key, _), one in zip(some, answers, strict=True))
        return [said[q.text, image] for q, image in puts]


def watched_questions(recipe: Recipe) -> list[Question]:
    """Held-out ones with a short answer, evenly spaced: as many as the last look wants, of which the others ask some. Their pictures need
    features."""
    files = [recipe.path(file) for file in recipe.data.held_out]
    found = [q for file in files if file.exists() for q in read_questions(file) if q.kind not in CAPTION_KINDS]
    watch = recipe.train.watch
    return spread(found, max(watch.questions, watch.final_questions) if watch.questions else 0)


def spread(questions: Sequence[Question], wanted: int) -> list[Question]:
    """So many of them, or all if there are fewer: one drawn from each of as many stretches. Every n-th would not do: where the right
    answers are yes and no by turns, as in POPE, it can find only one of the two."""
    wanted, random = min(wanted, len(questions)), Random(0)
    bounds = [i * len(questions) // wanted for i in range(wanted + 1)] if wanted else []
    return [questions[random.randrange(start, end)] for start, end in pairwise(bounds)]


def exchanged(images: Sequence[str | None]) -> list[str | None]:
    """For each picture another, always the same one: that half-way round, since neighbours are often alike."""
    names = list(dict.fromkeys(name for name in images if name is not None))
    half = len(names) // 2
    other: dict[str | None, str | None] = dict(zip(names, [*names[half:], *names[:half]], strict=True))
    return [other.get(name) for name in images]


@contextmanager
def _answering(built: Phi3WithProjector, model: Any) -> Iterator[None]:
    """Training's attention knows no cache, and checkpointing forbids one."""
    config = built.model.config.text_config
    attention, cache, device = config._attn_implementation, built.model.config.use_cache, built.device
    model.eval()
    built.model.set_attn_implementation({"text_config": "sdpa"})
    built.model.config.use_cache = True
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=built.model.lm_head.weight.dtype is torch.bfloat16):
            yield
    finally:
        built.model.config.use_cache = cache
        built.model.set_attn_implementation({"text_config": attention})
        model.train()
