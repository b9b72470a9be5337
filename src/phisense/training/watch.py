"""What the model answers while it is trained: some held-out questions, scored, and three of its answers to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..conversations import CAPTION_KINDS, Question, read_questions
from ..model import Phi3WithProjector
from ..model.asking import about, ask
from ..recipe import Recipe
from ..vision.store import FeatureStore

SHOWN = 3
AT_ONCE = 32
LONGEST = 32  # tokens of an answer
Judge = Callable[[str, Iterable[str]], bool]


class Watch(TrainerCallback):
    """Asks `times` in a stage, the last time at its end. Reports `held_out`, the share of `questions` that `judge` calls right, and some
    `answers`. Without a judge it asks nothing.

    Every process asks, or one would wait for another; what is reported by more than the first is not written.
    """

    def __init__(
        self, built: Phi3WithProjector, store: FeatureStore, recipe: Recipe, judge: Judge | None, report: Callable[[dict[str, Any]], None]
    ) -> None:
        self.built, self.store, self.judge, self.report = built, store, judge, report
        self.times = recipe.train.watch.times
        self.questions = [q for q in watched_questions(recipe) if q.image is None or q.image in store] if judge else []
        self.accuracy: float | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self.judge or not self.questions or state.global_step not in self._when(state.max_steps):
            return
        said = self._answers(kwargs["model"])
        right = [self.judge(answer, q.answers) for answer, q in zip(said, self.questions, strict=True)]
        self.accuracy = sum(right) / len(right)
        shown = range(0, len(said), -(-len(said) // SHOWN))
        self.report({
            "step": state.global_step, "steps": state.max_steps, "held_out": self.accuracy, "questions": len(said),
            "answers": [{"question": self.questions[i].text, "right": self.questions[i].answers[0], "said": said[i]} for i in shown],
        })  # fmt: skip

    def _when(self, steps: int) -> set[int]:
        return {round(steps * number / self.times) for number in range(1, self.times + 1)}

    @torch.inference_mode()
    def _answers(self, model: Any) -> list[str]:
        said: list[str] = []
        with _answering(self.built, model):
            for start in range(0, len(self.questions), AT_ONCE):
                some = self.questions[start : start + AT_ONCE]
                names = list(dict.fromkeys(q.image for q in some if q.image is not None))
                slots = dict(zip(names, self.built.project([self.store.features(name).float() for name in names]), strict=True))
                asked = [about(q, slots[q.image] if q.image else None) for q in some]
                said += [one.text for one in ask(self.built, asked, max_new_tokens=LONGEST)]
        return said


def watched_questions(recipe: Recipe) -> list[Question]:
    """As many held-out ones as the recipe wants, evenly spaced, of those with a short answer. Their pictures need features."""
    files = [recipe.path(file) for file in recipe.data.held_out]
    found = [q for file in files if file.exists() for q in read_questions(file) if q.kind not in CAPTION_KINDS]
    wanted = recipe.train.watch.questions
    return found[:: -(-len(found) // wanted)] if found and wanted else []


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
