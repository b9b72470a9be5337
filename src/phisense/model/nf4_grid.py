"""The 4-bit codes of weights that lie on a known NF4 grid.

A merged weight is W = dequantized base + B A, rounded to the folder's dtype. With B A subtracted it
lies within that rounding of the base's grid, whose steps are far wider: a code is at least 0.08 of
its block's largest weight away from the next, bfloat16 rounds by 0.004 of a weight. So the nearest
code is the base's own, provided that the block's scale is the base's too. A scale found anew from
rounded weights would differ in its last digits; it is stored instead, one byte for 64 weights.

Layout of the codes, as in bitsandbytes: two in a byte, the first in its upper half.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .quantized import NF4_BLOCK

_CHUNK = 1 << 22  # weights that are computed at once: a few times 16 MB
_ROWS = NF4_BLOCK  # rows of a chunk are a multiple of this, so that no block is in two chunks


def quant_state(stats: Mapping[str, torch.Tensor]) -> Any:
    """The QuantState of bitsandbytes from its tensors, named as its `as_dict(packed=True)` does.

    Raises ValueError or another exception of bitsandbytes if they are not such tensors.
    """
    from bitsandbytes.functional import QuantState

    return QuantState.from_dict(dict(stats), torch.device("cpu"))


def scales(state: Any) -> torch.Tensor:
    """The scale of every block, `(N * K / 64,)`, float32."""
    from bitsandbytes.functional import dequantize_blockwise

    found: torch.Tensor = state.absmax.float()
    if state.nested:
        found = dequantize_blockwise(state.absmax, state.state2).float() + state.offset
    return found


def codes_on_grid(
    weight: torch.Tensor,
    state: Any,
    adapter: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Packed codes `(N * K / 2, 1)`, uint8, of the weight `(N, K)` less its adapter's B A, on the
    grid of `state`.

    `adapter` is A `(r, K)` and B `(N, r)`, with LoRA's factor in B. Computed in float32.
    """
    rows, columns = weight.shape
    code = state.code.float().cpu()
    bounds = (code[1:] + code[:-1]) / 2
    scale = scales(state).cpu()
    step = max(_ROWS, _CHUNK // columns // _ROWS * _ROWS)
    packed = torch.empty(rows * columns // 2, dtype=torch.uint8)
    for first in range(0, rows, step):
        chunk = weight[first : first + step].float()
        if adapter is not None:
            a, b = adapter
            chunk = chunk.addmm(b[first : first + step].float(), a.float(), alpha=-1.0)
        begin = first * columns
        found = _nearest(chunk.reshape(-1), scale[begin // NF4_BLOCK :], bounds)
        packed[begin // 2 : (begin + chunk.numel()) // 2] = (found[::2] << 4) | found[1::2]
    return packed.unsqueeze(1)


def _nearest(values: torch.Tensor, scale: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """The nearest of 16 codes for each value `(n,)`, uint8, by the scales of its blocks."""
    missing = -len(values) % NF4_BLOCK  # the last block may be shorter
    blocks = torch.nn.functional.pad(values, (0, missing)).view(-1, NF4_BLOCK)
    scaled = blocks / scale[: len(blocks), None]
    return torch.bucketize(scaled, bounds, out_int32=True).view(-1)[: len(values)].to(torch.uint8)
