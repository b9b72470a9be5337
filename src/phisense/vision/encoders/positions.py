"""Resizes an encoder's table of positions, once, to images of another side.

The encoder's own `interpolate_pos_encoding` does it, which transformers otherwise calls in every
forward pass, so the result is that of the encoder at run time. The table is then part of the
weights, `image_size` of the configuration agrees with it, and nothing is interpolated later: not in
plain transformers either, where CLIP and SigLIP have to be told to.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from accelerate import init_empty_weights

from ...errors import PartError


@torch.no_grad()
def resize_positions(tower: Any, side: int) -> Any:
    """The encoder `tower` for images of `side` pixels: its other weights, and its `(1 + P, D)` or
    `(P, D)` positions bicubically resized to the patches of that side.

    `tower` should hold the stored weights in float32, as CLIP and SigLIP interpolate in the dtype
    that they are in. Raises PartError for an encoder that cannot be resized.
    """
    embeddings = next(
        (one for one in tower.modules() if hasattr(one, "interpolate_pos_encoding")), None
    )
    if embeddings is None:
        raise PartError(
            f"a {type(tower).__name__} reads images of one size only",
            got=f"{side} pixels",
            wanted=f"{tower.config.image_size}, as its config.json says",
            do=f"Set vision.size to {tower.config.image_size}",
        )
    config = copy.deepcopy(tower.config)
    config.image_size = side
    with init_empty_weights(include_buffers=False):
        resized = type(tower)(config)
    weights = tower.state_dict()
    for name, wanted in resized.state_dict().items():
        if weights[name].shape != wanted.shape:
            rows, width = wanted.shape[-2:]
            like = weights[name].new_empty(1, rows, width)  # of the embedded patches: shape alone
            table = embeddings.interpolate_pos_encoding(like, side, side)
            weights[name] = table.reshape(wanted.shape).contiguous()
    resized.load_state_dict(weights, strict=True, assign=True)
    return resized.eval()
