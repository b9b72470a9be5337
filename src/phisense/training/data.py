"""Training data: conversations -> rendered samples -> packed rows -> batches with stored
features.
"""

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
from ..model.projectors.image_tokens import average_patches
from ..pipeline.results import StageData
from ..prompt import Prompt
from .objectives import BatchLayout, Objective
from .packing import PackedRow, Sample, pack, single_row


class Samples(Dataset[PackedRow]):
    """Every conversation of some data sets, rendered once by the stage's objective, in rows.

    `num_shortened` counts the conversations that lost turns to the length limit.
    """

    def __init__(
        self,
        sets: Sequence[tuple[Path, float]],
        prompt: Prompt,
        image_tokens: Mapping[int, int],
        max_length: int,
        *,
        objective: Objective,
        share: bool = False,
        seed: int = 0,
    ) -> None:
        """`sets` are paths with their weights; `share` packs conversations about the same images
        into one row.

        `image_tokens` maps the pooling side to an image's number of tokens: {1: 576}, or several
        entries for nested training, of which one is drawn for each conversation's images.

        Raises ConversationError, naming the conversation, for one that cannot be trained on.
        """
        rng = random.Random(f"mix {seed}")
        self.num_shortened = 0
        samples: list[Sample] = []
        digest = hashlib.sha256()
        self.sets: list[StageData] = []
        for path, weight in sets:
            before = len(samples)
            for conversation in read_conversations(path):
                times = int(weight) + (rng.random() < weight % 1)
                if not times:
                    continue
                pool = random.Random(f"pool {seed} {conversation.images}").choice(
                    list(image_tokens)
                )
                rendered, left_out = objective.render(
                    prompt, conversation, image_tokens[pool], max_length
                )
                self.num_shortened += left_out > 0
                digest.update(repr((conversation, times, pool)).encode())
                # those of dropped exchanges are gone
                shown = conversation.images[: prompt.images_in(rendered, image_tokens[pool])]
                samples += [Sample(conversation.id, rendered, shown, pool)] * times
            rows = len(samples) - before
            self.sets.append(StageData(name=path.name, rows=rows, weight=weight))
        if not samples:
            raise ConversationError(
                "there is nothing to train on",
                got=(
                    "no conversation in"
                    f" {', '.join(str(path) for path, _ in sets) or 'no data set'}"
                ),
            )
        self.conversations = len(samples)
        self.digest = digest.hexdigest()  # of the training data, in order
        self.rows = (
            pack(samples, prompt.image_id, max_length)
            if share
            else [single_row(sample) for sample in samples]
        )

    @property
    def pictures(self) -> set[str]:
        """Names of all images in the rows."""
        return {name for row in self.rows for name in row.images}

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each row."""
        return [len(row.rendered.ids) for row in self.rows]

    def rows_for(self, conversations: int) -> int:
        """Average number of rows that hold `conversations`, rounded to a number with many divisors,
        at least 1.

        1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20 ...; exactly `conversations` if each row holds one.
        """
        return scale_rows(conversations, len(self.rows), self.conversations)

    def micro_batch_rows(self, batch_size: int, micro_batch_size: int, processes: int) -> int:
        """Rows per micro-batch: at most `micro_batch_size` conversations, and a divisor of each
        process's rows per step.

        So a step has the same conversations, however it is split. Raises TrainingError if the rows
        of a step cannot be split evenly among the processes.
        """
        rows, most = self.rows_for(batch_size), self.rows_for(micro_batch_size)
        if rows % processes:
            raise TrainingError(
                "the processes cannot share a batch",
                got=f"{batch_size} conversations in {rows} rows, {processes} processes",
                wanted="a multiple of the processes",
                do="Change the stage's batch_size, or the number of processes",
            )
        each = rows // processes
        return max(cut for cut in range(1, min(most, each) + 1) if each % cut == 0)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> PackedRow:
        """Row `index`; `~index` is the same row with all labels ignored."""
        return self.rows[index] if index >= 0 else self.rows[~index].unsupervised()


def scale_rows(conversations: int, rows: int, total: int) -> int:
    """`Samples.rows_for` for `rows` rows that hold `total` conversations."""
    if rows == total:
        return conversations
    share = conversations * rows / total
    unit = 1 if share < 4 else 2 if share < 16 else 2 ** (int(math.log2(share)) - 2)
    return max(1, unit * round(share / unit))


class Collator:
    """Rows -> the tensors of the objective's batch, `input_ids`, `labels` `(B, T)` and others, and,
    if there are images, `pixel_values` `(N, P, D)`.

    The pixel values are the features that `load_features` returns for image names: in training
    StoredFeatures replaces the vision tower, unless the tower is trained.
    """

    def __init__(
        self,
        load_features: Callable[[list[str]], torch.Tensor],
        objective: Objective,
        layout: BatchLayout,
    ) -> None:
        self.load_features = load_features
        self.objective = objective
        self.layout = layout
        self.tokens = 0  # collated so far: as if no prefix were shared, without padding

    def __call__(self, rows: list[PackedRow]) -> dict[str, Any]:
        """Rows -> the tensors of a batch: token ids, labels, positions, and the features of their
        images; with `ids`, the conversations' ids.
        """
        batch: dict[str, Any] = {**self.objective.collate(rows, self.layout)}
        # for LossGuard; StageTrainer removes them before the model
        batch["ids"] = tuple(one for row in rows for one in row.ids)
        self.tokens += sum(row.tokens for row in rows)
        names = [name for row in rows for name in row.images]
        if names:
            features = self.load_features(names)
            pools = [row.pool for row in rows for _ in row.images]
            # lengths differ, so concatenate them as one long image: the projector works per patch
            if any(pool > 1 for pool in pools):
                pooled = [
                    average_patches(one, pool) for one, pool in zip(features, pools, strict=True)
                ]
                features = torch.cat(pooled).unsqueeze(0)
            batch["pixel_values"] = features
        return batch
