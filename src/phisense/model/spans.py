r"""Attention over rows that lie end to end in one: nothing is padded, and no score is computed that a mask would take away.

    row        tag picture picture | question answer | question answer || tag picture picture question answer || ...
    spans      \______ 0 ________/   \____ 1 ______/   \____ 2 ______/    \_________________ 3 ____________/
    behind              -1                   0                  0                           -1

A token sees, of its own span, what `added` says, and all of the span that its own is behind. The batch holds `spans` `(S, 2)`: each
span's tokens, and the number of the one it is behind or -1; and `added`, in one line for all spans: to each one's scores `(n, m)` of
its own tokens and those it is behind, 0 where one is seen and -inf where not. What is won: docs/benchmarks.md, "Beside TRL".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

SPANS = "spans"


def attend_in_spans(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    *,
    spans: torch.Tensor,
    added: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """`query` `(1, heads, T, d)`, `key` and `value` `(1, key heads, T, d)` -> `(1, T, heads, d)`. The mask is in `spans` and `added`."""
    given = query.dtype
    query, key, value = query.float(), key.float(), value.float()
    counts, behind = spans[:, 0].tolist(), spans[:, 1].tolist()
    group = query.shape[1] // key.shape[1]
    if group > 1:
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    queries, keys, values = (part.split(counts, 2) for part in (query, key, value))
    widths = [count + (counts[first] if first >= 0 else 0) for count, first in zip(counts, behind, strict=True)]
    masks = added.to(query.dtype).split([count * width for count, width in zip(counts, widths, strict=True)])
    out = []
    rate = dropout if module.training else 0.0
    with torch.autocast(query.device.type, enabled=False):
        for i, first in enumerate(behind):
            seen, told = keys[i], values[i]
            if first >= 0:
                seen, told = torch.cat([keys[first], seen], 2), torch.cat([values[first], told], 2)
            mask = masks[i].view(counts[i], widths[i])
            out.append(nn.functional.scaled_dot_product_attention(queries[i], seen, told, attn_mask=mask, dropout_p=rate, scale=scaling))
    return torch.cat(out, 2).transpose(1, 2).to(given).contiguous(), None


AttentionInterface.register(SPANS, attend_in_spans)
