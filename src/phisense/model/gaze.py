"""Where on its picture a model looks while it says an answer: the attention from the answer's tokens to the picture's slots."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from .assembly import Phi3WithProjector

GAZE = "gaze"


@dataclass
class _Gaze:
    """`asked` is the first row that is told of, `slots` the columns; `found` one tensor a layer."""

    asked: int
    slots: torch.Tensor
    found: list[torch.Tensor] = field(default_factory=list)


def attend_and_tell(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    *,
    gaze: _Gaze,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """As PyTorch's fused attention, and puts into `gaze` the attention `(slots,)`, the mean over heads and rows."""
    group = query.shape[1] // key.shape[1]
    if group > 1:
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    out = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    rows = torch.arange(gaze.asked, query.shape[2], device=query.device)
    scores = (query[:, :, gaze.asked :] @ key.transpose(2, 3)).float() * scaling
    hidden = torch.arange(key.shape[2], device=query.device)[None] > rows[:, None]
    weights = scores.masked_fill_(hidden, float("-inf")).softmax(-1)
    gaze.found.append(weights[..., gaze.slots].mean((0, 1, 2)))
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(GAZE, attend_and_tell)


@torch.inference_mode()
def gaze_at(built: Phi3WithProjector, ids: list[int], slots: torch.Tensor, answer: int) -> torch.Tensor:
    """For ids `(T,)` with one picture, whose last `answer` tokens are the answer: a grid `(rows, columns)`, its sum 1.

    The mean over all heads and the layers of the upper half, where words are chosen. It says where the model looked, not why it said what
    it said (Jain and Wallace 2019, arXiv:1902.10186).
    """
    wanted = torch.tensor(ids, device=built.device)
    where = (wanted == built.prompt.image_id).nonzero()[:, 0]
    embedded = built.model.get_input_embeddings()(wanted)
    embedded[where] = slots.to(embedded)
    gaze = _Gaze(len(ids) - answer - 1, where)  # a token is chosen by the row before it
    text = built.model.config.text_config
    usual = text._attn_implementation
    built.model.set_attn_implementation({"text_config": GAZE})
    try:
        positions = torch.arange(len(ids), device=built.device)[None]
        mask = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool, device=built.device)  # its own is causal; the model must make none
        built.model.model.language_model(
            inputs_embeds=embedded[None], attention_mask=mask, position_ids=positions, use_cache=False, gaze=gaze
        )
    finally:
        built.model.set_attn_implementation({"text_config": usual})
    upper = torch.stack(gaze.found[len(gaze.found) // 2 :]).mean(0)
    side = round(len(where) ** 0.5)
    return (upper / upper.sum()).view(side, side).cpu()
