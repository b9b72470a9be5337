r"""Variable-length attention over rows concatenated into one: no padding, and no scores that a mask
would discard.

    row      tag image image | question answer | question answer || tag image image question ...
    spans    \_____ 0 _____/   \_____ 1 _____/   \_____ 2 _____/    \___________ 3 ___________
    prefix         -1                 0                 0                       -1

A token attends to what `attn_bias` allows of its own span, and to the whole span that is its span's
prefix. The batch holds `spans` `(S, 2)`: each span's number of tokens, and the index of its prefix
span or -1; and `attn_bias`, one flat tensor with the bias `(n, m)` of each span's n tokens over the
m keys of its prefix and itself: 0 where a key is visible and -inf where it is not. The speed-up:
docs/benchmarks.md, "Beside TRL".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

VARLEN = "spans"


def varlen_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    *,
    spans: torch.Tensor,
    attn_bias: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """`query` `(1, heads, T, d)`, `key` and `value` `(1, kv_heads, T, d)` -> `(1, T, heads, d)`.

    `spans` and `attn_bias` replace the attention mask.
    """
    dtype = query.dtype
    query, key, value = query.float(), key.float(), value.float()
    counts, behind = spans[:, 0].tolist(), spans[:, 1].tolist()
    group = query.shape[1] // key.shape[1]
    if group > 1:
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    queries, keys, values = (part.split(counts, 2) for part in (query, key, value))
    widths = [
        count + (counts[first] if first >= 0 else 0)
        for count, first in zip(counts, behind, strict=True)
    ]
    masks = attn_bias.to(query.dtype).split(
        [count * width for count, width in zip(counts, widths, strict=True)]
    )
    out = []
    rate = dropout if module.training else 0.0
    with torch.autocast(query.device.type, enabled=False):
        for i, first in enumerate(behind):
            seen_keys, seen_values = keys[i], values[i]
            if first >= 0:
                seen_keys, seen_values = (
                    torch.cat([keys[first], seen_keys], 2),
                    torch.cat([values[first], seen_values], 2),
                )
            mask = masks[i].view(counts[i], widths[i])
            out.append(
                nn.functional.scaled_dot_product_attention(
                    queries[i],
                    seen_keys,
                    seen_values,
                    attn_mask=mask,
                    dropout_p=rate,
                    scale=scaling,
                )
            )
    return torch.cat(out, 2).transpose(1, 2).to(dtype).contiguous(), None


AttentionInterface.register(VARLEN, varlen_attention)
