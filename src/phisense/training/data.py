"""Conversations -> rendered samples -> padded batches with stored features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from ..conversations import Conversation, read_conversations
from ..errors import ConversationError
from ..model import pad_rows
from ..prompt import Prompt, Rendered
from ..vision.store import FeatureStore


@dataclass(frozen=True, slots=True)
class Sample:
    id: str
    rendered: Rendered
    images: tuple[str, ...]


class Samples(Dataset[Sample]):
    """Every conversation of some files, rendered once. `shortened` counts those that lost turns to the length limit."""

    def __init__(self, files: Sequence[Path], prompt: Prompt, slots: int, length: int) -> None:
        """Raises ConversationError, naming the conversation, for one that cannot be trained on."""
        self.shortened = 0
        self.samples: list[Sample] = []
        for file in files:
            for conversation in read_conversations(file):
                rendered = self._render(conversation, prompt, slots, length)
                self.samples.append(Sample(conversation.id, rendered, conversation.images))
        if not self.samples:
            raise ConversationError("there is nothing to train on", got=f"no conversation in {', '.join(map(str, files)) or 'no file'}")

    def _render(self, conversation: Conversation, prompt: Prompt, slots: int, length: int) -> Rendered:
        """Whole exchanges are dropped from the end until the rest fits."""
        messages = list(conversation.messages)
        called = f"conversation {conversation.id}"
        rendered = prompt.render(messages, [slots] * len(conversation.images), sample=called)
        while len(rendered.ids) > length:
            last_question = max((i for i, m in enumerate(messages) if m.role == "user"), default=0)
            fewer = messages[:last_question]
            if not any(m.role == "assistant" for m in fewer) or any("<image>" in m.text for m in messages[last_question:]):
                raise ConversationError(
                    f"{called} is too long",
                    got=f"{len(rendered.ids)} tokens in its first exchange",
                    wanted=f"at most {length}",
                    do="Raise train.<stage>.length or shorten it",
                )
            messages = fewer
            rendered = prompt.render(messages, [slots] * len(conversation.images), sample=called)
        self.shortened += len(messages) < len(conversation.messages)
        return rendered

    @property
    def pictures(self) -> set[str]:
        return {name for sample in self.samples for name in sample.images}

    @property
    def lengths(self) -> list[int]:
        return [len(sample.rendered.ids) for sample in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


class Collator:
    """Samples -> `input_ids`, `attention_mask`, `labels` `(B, T)` and, if there are pictures, `pixel_values` `(N, P, D)`.

    The pixel values are stored features: in training a stand-in takes the vision tower's place.
    """

    def __init__(self, store: FeatureStore, pad: int) -> None:
        self.store = store
        self.pad = pad
        self.tokens = 0  # handed out so far, padding not counted

    def __call__(self, samples: list[Sample]) -> dict[str, Any]:
        batch: dict[str, Any] = pad_rows([sample.rendered for sample in samples], self.pad)
        self.tokens += int(batch["attention_mask"].sum())
        names = [name for sample in samples for name in sample.images]
        if names:
            batch["pixel_values"] = torch.stack([self.store.features(name) for name in names])
        return batch
