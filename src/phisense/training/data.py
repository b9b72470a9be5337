"""Conversations -> rendered samples -> rows -> padded batches with stored features."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from ..conversations import read_conversations
from ..errors import ConversationError, TrainingError
from ..model import pad_rows
from ..model.projectors import average_patches
from ..model.spans import SPANS
from ..prompt import Prompt
from .packing import Packed, Sample, alone, end_to_end, filled, pack, padded


class Samples(Dataset[Packed]):
    """Every conversation of some data sets, rendered once, in rows. `shortened` counts those that lost turns to the length limit."""

    def __init__(
        self,
        sets: Sequence[tuple[Path, float]],
        prompt: Prompt,
        slots: Mapping[int, int],
        length: int,
        *,
        share: bool = False,
        seed: int = 0,
    ) -> None:
        """`sets` are paths with their weights; `share` puts conversations about the same pictures into one row.

        `slots` are a picture's slots by the side over which its patches are averaged: {1: 576}, or several for nested training, of
        which each picture is given one.

        Raises ConversationError, naming the conversation, for one that cannot be trained on.
        """
        rng = random.Random(f"mix {seed}")
        self.shortened = 0
        samples: list[Sample] = []
        digest = hashlib.sha256()
        self.sets: list[dict[str, Any]] = []  # what each file gave
        for path, weight in sets:
            before = len(samples)
            for conversation in read_conversations(path):
                times = int(weight) + (rng.random() < weight % 1)
                if not times:
                    continue
                pool = random.Random(f"pool {seed} {conversation.images}").choice(list(slots))
                rendered, left_out = prompt.fit(conversation, slots[pool], length)
                self.shortened += left_out > 0
                digest.update(repr((conversation, times, pool)).encode())
                samples += [Sample(conversation.id, rendered, conversation.images, pool)] * times
            self.sets.append({"name": path.name, "rows": len(samples) - before, "weight": weight})
        if not samples:
            raise ConversationError(
                "there is nothing to train on", got=f"no conversation in {', '.join(str(path) for path, _ in sets) or 'no data set'}"
            )
        self.conversations = len(samples)
        self.digest = digest.hexdigest()  # of what is trained on, in its order
        self.rows = pack(samples, prompt.image_id, length) if share else [alone(sample) for sample in samples]

    @property
    def pictures(self) -> set[str]:
        return {name for row in self.rows for name in row.images}

    @property
    def lengths(self) -> list[int]:
        return [len(row.rendered.ids) for row in self.rows]

    def rows_for(self, conversations: int) -> int:
        """How many rows hold that many conversations, on average: a number that can be cut in many ways, or 1 for less.

        1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20 ...; exactly as many where each row holds one.
        """
        rows = conversations * len(self.rows) / self.conversations
        if len(self.rows) == self.conversations:
            return conversations
        unit = 1 if rows < 4 else 2 if rows < 16 else 2 ** (int(math.log2(rows)) - 2)
        return max(1, unit * round(rows / unit))

    def rows_at_once(self, batch: int, micro_batch: int, processes: int) -> int:
        """The most rows, of about `micro_batch` conversations, of which a batch's are a multiple for each process.

        So the same conversations make a step, however it is cut. Raises TrainingError if they cannot be shared out.
        """
        rows, most = self.rows_for(batch), self.rows_for(micro_batch)
        if rows % processes:
            raise TrainingError(
                "the processes cannot share a batch",
                got=f"{batch} conversations in {rows} rows, {processes} processes",
                wanted="a multiple of the processes",
                do="Change the stage's batch, or the number of processes",
            )
        each = rows // processes
        return max(cut for cut in range(1, min(most, each) + 1) if each % cut == 0)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Packed:
        """`~index` is row `index` with nothing to learn from it."""
        return self.rows[index] if index >= 0 else self.rows[~index].unsupervised()


class Collator:
    """Rows -> `input_ids`, `labels` `(B, T)`, `position_ids` and, if there are pictures, `pixel_values` `(N, P, D)`.

    The pixel values are stored features, `look`'s of some names: in training a stand-in takes the vision tower's place, unless that is
    trained along. For the attention of model/spans.py
    the rows lie end to end, B is 1, and `spans` says what sees what. For any other they are padded, and `attention_mask` says it:
    `(B, T)`, or booleans `(B, 1, T, T)` if a row holds several conversations.
    """

    def __init__(self, look: Callable[[list[str]], torch.Tensor], pad: int, *, attention: str, multiple: int = 1) -> None:
        """Rows that lie end to end are filled up to a `multiple` of tokens: see packing.filled."""
        self.look = look
        self.pad = pad
        self.attention = attention
        self.multiple = multiple
        self.tokens = 0  # handed out so far: each conversation's own, padding not counted

    def __call__(self, rows: list[Packed]) -> dict[str, Any]:
        spans = self.attention == SPANS
        batch: dict[str, Any] = end_to_end(filled(rows, self.pad, self.multiple)) if spans else self._padded(rows)
        batch["ids"] = tuple(one for row in rows for one in row.ids)  # for the guard; the model does not get them
        self.tokens += sum(row.tokens for row in rows)
        names = [name for row in rows for name in row.images]
        if names:
            features = self.look(names)
            pools = [row.pool for row in rows for _ in row.images]
            if any(pool > 1 for pool in pools):  # of unlike lengths, so as one long picture: the projector reads patch by patch
                pooled = [average_patches(one, pool) for one, pool in zip(features, pools, strict=True)]
                features = torch.cat(pooled).unsqueeze(0)
            batch["pixel_values"] = features
        return batch

    def _padded(self, rows: list[Packed]) -> dict[str, Any]:
        batch: dict[str, Any] = pad_rows([row.rendered for row in rows], self.pad)
        if any(len(row.ends) > 1 for row in rows):
            batch["position_ids"], batch["attention_mask"] = padded(rows, batch["input_ids"].shape[1])
        return batch
