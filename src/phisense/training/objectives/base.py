"""The interface of a training objective.

    render     conversation -> token ids with labels
    collate    rows of rendered conversations -> the tensors of a batch
    loss       logits and batch -> the loss of a micro-batch

Everything else is the same for all of them: packing, sampling, the gradient check, the guard
against bad steps. They rely on the labels, by which an objective says what counts: a token whose
label is IGNORE_INDEX adds nothing to the loss, its predecessor's logits are not computed, and
`num_items` is the number of the other labels, without the first of each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ...conversations import Conversation
from ...prompt import IGNORE_INDEX, Prompt, Rendered
from ..packing import PackedRow

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """The form in which the model's attention takes a batch.

    pad_id                token id of padding
    attention             "spans" (model/varlen_attention.py): rows are concatenated; any other:
                          they are padded
    pad_to_multiple_of    concatenated rows are padded to a multiple of so many tokens
    """

    pad_id: int
    attention: str
    pad_to_multiple_of: int = 1


class Objective(Protocol):
    """What a stage learns, and how far the model is from it."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of tensors of the batch, besides `labels`, that are for `loss` alone: the model
        does not get them.
        """

    def render(
        self, prompt: Prompt, conversation: Conversation, image_tokens: int, max_length: int
    ) -> tuple[Rendered, int]:
        """A conversation as at most `max_length` tokens with labels, each image as `image_tokens`
        of them, and the number of exchanges that were dropped from its end.

        Raises ConversationError for one that cannot be trained on.
        """

    def collate(self, rows: Sequence[PackedRow], layout: BatchLayout) -> Batch:
        """`input_ids` and `labels` `(B, T)`, and what `layout.attention` needs beside them."""

    def loss(self, outputs: Any, batch: Batch, num_items: torch.Tensor | int) -> torch.Tensor:
        """The loss of a micro-batch, a scalar, from `outputs.logits` `(N, V)` at the N positions
        `supervised_positions(batch["labels"])`.

        It is a sum over supervised tokens divided by `num_items`, their number in the whole
        optimizer step, so that a step has the same loss however it is split.
        """


def supervised_positions(labels: torch.Tensor) -> torch.Tensor:
    """Labels `(B, T)` -> boolean `(B, T)`: the positions that predict a supervised token, the one
    after them.
    """
    return torch.nn.functional.pad(labels[:, 1:] != IGNORE_INDEX, (0, 1))


def count_supervised(labels: torch.Tensor) -> int:
    """The number of supervised tokens of labels `(B, T)`, as transformers' Trainer counts them."""
    return int((labels[:, 1:] != IGNORE_INDEX).sum())
