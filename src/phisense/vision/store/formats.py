"""On-disk formats of one image's features, and what reading them returns.

float32, float16   (P, D) unchanged
int8               (P, D) integers up to 127 and one float32 scale per token: errors under 0.5 % of
                   a token's largest value
pixels             the preprocessed image, (3, S, S) uint8, encoded when it is read: no features are
                   stored
"""

from __future__ import annotations

from typing import Literal

import torch

StoreFormat = Literal["float32", "float16", "int8", "pixels"]
_PLAIN = {"float32": torch.float32, "float16": torch.float16}
_INT8_MAX = 127
#: Tensors of a shard and their safetensors dtypes.
TENSORS: dict[str, dict[str, str]] = {
    "float32": {"features": "F32"},
    "float16": {"features": "F16"},
    "int8": {"features": "I8", "scales": "F32"},
    "pixels": {"pixels": "U8"},
}


def pack_rows(rows: torch.Tensor, format_: StoreFormat) -> dict[str, torch.Tensor]:
    """Convert rows of a shard, `(N, P, D)` features or `(N, 3, S, S)` pixels, to its tensors."""
    if format_ == "pixels":
        return {"pixels": rows.contiguous()}
    if format_ != "int8":
        return {"features": rows.to(_PLAIN[format_]).contiguous()}
    rows = rows.float()
    scale = rows.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / _INT8_MAX
    return {"features": (rows / scale).round().to(torch.int8), "scales": scale}


def unpack_rows(tensors: dict[str, torch.Tensor], format_: StoreFormat) -> torch.Tensor:
    """Invert `pack_rows` for one or more rows: features (int8 as float16), or unchanged pixels."""
    if format_ == "int8":
        return (tensors["features"].float() * tensors["scales"]).half()
    return tensors["pixels" if format_ == "pixels" else "features"]


def bytes_per_image(format_: StoreFormat, *, tokens: int, width: int, side: int) -> int:
    """Bytes of one image on disk."""
    if format_ == "pixels":
        return 3 * side * side
    return tokens * width * {"float32": 4, "float16": 2, "int8": 1}[format_] + (
        4 * tokens if format_ == "int8" else 0
    )


__all__ = ["TENSORS", "StoreFormat", "bytes_per_image", "pack_rows", "unpack_rows"]
