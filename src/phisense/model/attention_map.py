"""Attention maps of an answer over its images: the attention from the answer's tokens to the image
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from .assembly import Phi3WithProjector

RECORDING = "sdpa_with_attention_map"


@dataclass
class _Recorder:
    """`first_query` is the first recorded row, `image_columns` are the recorded columns,
    `per_layer` is one tensor per layer.
    """

    first_query: int
    image_columns: torch.Tensor
    per_layer: list[torch.Tensor] = field(default_factory=list)


def recording_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    *,
    recorder: _Recorder,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """PyTorch's fused attention, which also appends to `recorder` the weights `(image_tokens,)`,
    averaged over heads and rows.
    """
    group = query.shape[1] // key.shape[1]
    if group > 1:
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    out = nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling
    )
    rows = torch.arange(recorder.first_query, query.shape[2], device=query.device)
    scores = (query[:, :, recorder.first_query :] @ key.transpose(2, 3)).float() * scaling
    hidden = torch.arange(key.shape[2], device=query.device)[None] > rows[:, None]
    weights = scores.masked_fill_(hidden, float("-inf")).softmax(-1)
    recorder.per_layer.append(weights[..., recorder.image_columns].mean((0, 1, 2)))
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(RECORDING, recording_attention)


@torch.inference_mode()
def attention_map(
    built: Phi3WithProjector,
    ids: list[int],
    image_embeds: Sequence[torch.Tensor],
    answer_length: int,
) -> list[torch.Tensor]:
    """A grid `(rows, columns)` for each image of ids `(T,)`, whose last `answer_length` tokens are
    the answer. All grids together have the sum 1, so they tell which image it attended to, too.

    It is the mean over all heads and the layers of the upper half, where output tokens are
    determined. It shows where the model attended, not why it answered as it did (Jain and Wallace
    2019, arXiv:1902.10186).
    """
    input_ids = torch.tensor(ids, device=built.device)
    where = (input_ids == built.prompt.image_id).nonzero()[:, 0]
    embedded = built.embed(input_ids, image_embeds)
    recorder = _Recorder(
        len(ids) - answer_length - 1, where
    )  # a token is predicted by the row before it
    text = built.model.config.text_config
    implementation = text._attn_implementation
    built.model.set_attn_implementation({"text_config": RECORDING})
    try:
        positions = torch.arange(len(ids), device=built.device)[None]
        # recording_attention is causal itself: a given mask keeps the model from building one
        mask = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool, device=built.device)
        built.model.model.language_model(
            inputs_embeds=embedded[None],
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
            recorder=recorder,
        )
    finally:
        built.model.set_attn_implementation({"text_config": implementation})
    upper = torch.stack(recorder.per_layer[len(recorder.per_layer) // 2 :]).mean(0)
    shares = (upper / upper.sum()).cpu().split([len(one) for one in image_embeds])
    sides = [round(len(share) ** 0.5) for share in shares]
    return [share.view(side, side) for share, side in zip(shares, sides, strict=True)]
