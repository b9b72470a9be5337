"""Supervised training: the cross-entropy of the next token, on answers only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ...conversations import Conversation
from ...model import pad_rows
from ...model.varlen_attention import VARLEN
from ...prompt import IGNORE_INDEX, Prompt, Rendered
from ..packing import PackedRow, concatenate_rows, pad_to_multiple, padded_masks
from .base import Batch, BatchLayout, Objective


class Supervised:
    """Next-token cross-entropy. Labels are those of `Prompt.render_conversation`: the answers'
    tokens.
    """

    targets: tuple[str, ...] = ()

    def render(
        self, prompt: Prompt, conversation: Conversation, image_tokens: int, max_length: int
    ) -> tuple[Rendered, int]:
        """The conversation in the model's chat format; whole exchanges are dropped from its end."""
        return prompt.render_truncated(conversation, image_tokens, max_length)

    def collate(self, rows: Sequence[PackedRow], layout: BatchLayout) -> Batch:
        """`input_ids`, `labels` `(B, T)` and `position_ids`.

        For model/varlen_attention.py the rows are concatenated, B is 1, and `spans` and `attn_bias`
        define the attention. For any other attention they are padded, with an `attention_mask`
        `(B, T)`, or boolean `(B, 1, T, T)` if a row holds several conversations.
        """
        if layout.attention == VARLEN:
            return concatenate_rows(pad_to_multiple(rows, layout.pad_id, layout.pad_to_multiple_of))
        batch: Batch = pad_rows([row.rendered for row in rows], layout.pad_id).to_kwargs()
        if any(len(row.ends) > 1 for row in rows):
            batch["position_ids"], batch["attention_mask"] = padded_masks(
                rows, batch["input_ids"].shape[1]
            )
        return batch

    def loss(self, outputs: Any, batch: Batch, num_items: torch.Tensor | int) -> torch.Tensor:
        """The mean cross-entropy per supervised token of the step."""
        return supervised_loss(outputs, batch["labels"], num_items)


def supervised_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int
) -> torch.Tensor:
    """Cross-entropy of the logits `(N, V)` at the N supervised positions, summed and divided by
    their number in the whole step.

    The sum is in float64, or its last digits would depend on how a step is split into
    micro-batches.
    """
    shifted = labels[:, 1:]
    losses = nn.functional.cross_entropy(
        outputs.logits.float(), shifted[shifted != IGNORE_INDEX], reduction="none"
    )
    return losses.double().sum() / num_items_in_batch


OBJECTIVE: Objective = Supervised()
