"""How many image tokens an image takes, and the average pooling before the projector."""

from __future__ import annotations

import torch
from transformers import PreTrainedConfig

from ...errors import UsageError
from ...vision.encoders.loading import num_patches
from .base import native_model

NESTED_KEY = "nested_pooling"  # in the configuration of a model trained with several pooling sides


def merged_side(config: PreTrainedConfig) -> int:
    """Side of the squares of patches that the projector itself merges into one image token."""
    return native_model(config).merged_side(config)


def count_image_tokens(config: PreTrainedConfig, pool: int = 1) -> int:
    """Number of prompt positions per image, if its patches are averaged over `pool` x `pool` before
    the projector.
    """
    return num_patches(config.vision_config) // (merged_side(config) * pool) ** 2


def image_token_sides(config: PreTrainedConfig) -> dict[int, int]:
    """The numbers of image tokens that the model was trained with, each with its pooling side."""
    return {count_image_tokens(config, side): side for side in getattr(config, NESTED_KEY, [1])}


def nested_pool(config: PreTrainedConfig, image_tokens: int | None) -> int:
    """Pooling side with which an image takes `image_tokens`; for None it is 1, no pooling, as
    native consumers read it.

    Raises UsageError for a number that the model was not trained with.
    """
    if image_tokens is None:
        return 1
    served = image_token_sides(config)
    if image_tokens not in served:
        raise UsageError(
            "the model was not trained at that many tokens a picture",
            got=f"{image_tokens}",
            wanted=" or ".join(map(str, served)),
            do="Train with projector.nested to choose at run time" if len(served) == 1 else None,
        )
    return served[image_tokens]


def average_patches(features: torch.Tensor, pool: int) -> torch.Tensor:
    """Features `(..., P, D)` -> `(..., P / pool^2, D)`: means over squares of `pool` x `pool`
    patches.
    """
    if pool == 1:
        return features
    side = round(features.shape[-2] ** 0.5)
    squares = features.unflatten(-2, (side // pool, pool, side // pool, pool))
    averaged: torch.Tensor = squares.mean((-4, -2)).flatten(-3, -2)
    return averaged
