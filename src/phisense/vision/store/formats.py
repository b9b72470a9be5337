"""How one picture's features lie on disk, and what they become when they are read.

float32, float16   (P, D) as they are
int8               (P, D) in whole numbers to 127 and one float32 scale a token: errors under 0.5 % of a token's largest
pixels             the picture itself as the encoder wants it, (3, S, S) uint8, to be encoded when it is read: no features are kept
"""

from __future__ import annotations

from typing import Literal

import torch

Format = Literal["float32", "float16", "int8", "pixels"]
_PLAIN = {"float32": torch.float32, "float16": torch.float16}
_LARGEST = 127


def pack(rows: torch.Tensor, format_: Format) -> dict[str, torch.Tensor]:
    """Rows of a shard, `(N, P, D)` features or `(N, 3, S, S)` pixels -> its tensors."""
    if format_ == "pixels":
        return {"pixels": rows.contiguous()}
    if format_ != "int8":
        return {"features": rows.to(_PLAIN[format_]).contiguous()}
    rows = rows.float()
    scale = rows.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / _LARGEST
    return {"features": (rows / scale).round().to(torch.int8), "scales": scale}


def unpack(tensors: dict[str, torch.Tensor], format_: Format) -> torch.Tensor:
    """What `pack` packed, for one row or several: features (int8 as float16), or pixels as they are."""
    if format_ == "int8":
        return (tensors["features"].float() * tensors["scales"]).half()
    return tensors["pixels" if format_ == "pixels" else "features"]


def bytes_each(format_: Format, *, tokens: int, width: int, side: int) -> int:
    """Bytes of one picture on disk."""
    if format_ == "pixels":
        return 3 * side * side
    return tokens * width * {"float32": 4, "float16": 2, "int8": 1}[format_] + (4 * tokens if format_ == "int8" else 0)


__all__ = ["Format", "bytes_each", "pack", "unpack"]
