"""Conversations -> rendered samples -> padded batches with stored features."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ..conversations import read_conversations
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
    """Every conversation of some data sets, rendered once. `shortened` counts those that lost turns to the length limit."""

    def __init__(self, sets: Sequence[tuple[Path, float]], prompt: Prompt, slots: int, length: int, *, seed: int = 0) -> None:
        """`sets` are paths with their weights. Raises ConversationError, naming the conversation, for one that cannot be trained on."""
        rng = random.Random(f"mix {seed}")
        self.shortened = 0
        self.samples: list[Sample] = []
        for path, weight in sets:
            for conversation in read_conversations(path):
                times = int(weight) + (rng.random() < weight % 1)
                if not times:
                    continue
                rendered, left_out = prompt.fit(conversation, slots, length)
                self.shortened += left_out > 0
                self.samples += [Sample(conversation.id, rendered, conversation.images)] * times
        if not self.samples:
            raise ConversationError(
                "there is nothing to train on", got=f"no conversation in {', '.join(str(path) for path, _ in sets) or 'no data set'}"
            )

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
            batch["pixel_values"] = self.store.batch(names)
        return batch
