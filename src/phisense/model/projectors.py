"""Projectors: the native class for each kind, the number of image tokens, and the initial weights.

recipe                       native class                        image tokens of 24 x 24 patches
kind linear or mlp           LlavaForConditionalGeneration       576
kind mlp, pool 2 or 3        AyaVisionForConditionalGeneration   144 or 64; initialized to the
                                                                 average of the merged patches
kind pixel_shuffle           the same                            the same; random initialization
kind mlp, nested [1, 2, 4]   LlavaForConditionalGeneration       576, 144 or 36, chosen at run time

LLaVA's projector has one or two layers and no native class offers more without other parts (Janus's
brings an image generator along), so `mlp` means two. Nested training is that of Cai et al. 2024
(Matryoshka Multimodal Models, arXiv:2405.17430): the patches are averaged before the projector,
over squares whose side is drawn for each sample, and one checkpoint serves every side.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
)

from ..errors import PartError, UsageError
from ..families import family_of_config
from ..opening import validate_folder
from ..opening.headers import StoredTensor
from ..opening.shape_checks import check_shapes
from ..parts import load_auto
from ..recipe import Projector
from ..vision.encoders import num_patches

_ADVICE = {
    "model_type": "Set projector.pool as it was trained",
    "vision_feature_layer": "Set vision.layer",
    "vision_feature_select_strategy": "Set vision.encoder",
    "projector_hidden_act": "Set projector.kind",
    "downsample_factor": "Set projector.pool",
}
NESTED_KEY = "nested_pooling"  # in the configuration of a model trained with several pooling sides


def make_config(
    projector: Projector, text: Any, seen: Any, image_id: int, layer: int, strategy: str
) -> PreTrainedConfig:
    """Build the native model's configuration. Raises PartError if the patches cannot be pooled like
    that, or the tower lacks the layer.
    """
    # converters and servers select the language model by it
    text.architectures = [family_of_config(text).model_class]
    shared = {
        "text_config": text,
        "vision_config": seen,
        "vision_feature_layer": layer,
        "vision_feature_select_strategy": strategy,
        "image_token_index": image_id,
        # AyaVision's class ties by default; whether weights are tied is the language part's
        "tie_word_embeddings": bool(text.tie_word_embeddings),
    }
    depth = int(seen.num_hidden_layers)
    if not -depth - 1 <= layer <= depth:
        raise PartError(
            "the vision part has no such layer",
            got=f"vision.layer {layer}",
            wanted=f"{-depth - 1} to -1, for {depth} layers",
            do="Set vision.layer",
        )
    side = seen.image_size // seen.patch_size
    for pool in (projector.pool, *projector.nested):
        if side % pool:
            raise PartError(
                f"{pool}x{pool} pooling needs a number of patches a side that {pool} divides",
                got=f"{side}",
                do="Change projector.pool or projector.nested, or take another vision part",
            )
    if projector.pool > 1:
        return AyaVisionConfig(
            **shared,
            downsample_factor=projector.pool,
            alignment_intermediate_size=2 * text.hidden_size,
        )
    nested = {NESTED_KEY: list(projector.nested)} if projector.nested else {}
    act = "linear" if projector.kind == "linear" else "gelu"
    return LlavaConfig(
        **shared, **nested, projector_hidden_act=act, image_seq_length=num_patches(seen)
    )


def native_class(config: PreTrainedConfig) -> Any:
    """The transformers class of a merged model with this configuration."""
    return (
        AyaVisionForConditionalGeneration
        if isinstance(config, AyaVisionConfig)
        else LlavaForConditionalGeneration
    )


def fresh_projector(model: Any, config: PreTrainedConfig, kind: str, seed: int) -> nn.Module:
    """The native model's projector class with newly initialized weights, in float32."""
    torch.manual_seed(seed)
    projector: Any = type(model.model.multi_modal_projector)(config).float()
    for linear in (projector.linear_1, projector.linear_2):
        nn.init.xavier_uniform_(linear.weight)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
    if isinstance(config, AyaVisionConfig) and kind != "pixel_shuffle":
        joined = config.downsample_factor**2
        one = projector.linear_1.weight.data.unflatten(1, (joined, -1)).mean(1) * joined**0.5
        projector.linear_1.weight.data = (one / joined).repeat(1, joined)
    made: nn.Module = projector
    return made


def check_projector(
    projector: nn.Module, folder: Path, config: PreTrainedConfig
) -> dict[str, tuple[str, StoredTensor]]:
    """Stored weights of a model folder's projector, by their names in `projector`: the name in the
    file, and its header entry.

    Raises PartError unless kind, shapes and vision layer are the same. No weight is read.
    """
    own = load_auto(AutoConfig, folder)
    facts = (
        "model_type",
        "vision_feature_layer",
        "vision_feature_select_strategy",
        "projector_hidden_act",
        "downsample_factor",
    )
    for fact in facts:
        got, wanted = getattr(own, fact, None), getattr(config, fact, None)
        if got != wanted:
            raise PartError(
                f"the recipe does not fit the projector of {folder}",
                got=f"{fact} {got}",
                wanted=f"{wanted}",
                do=_ADVICE[fact],
            )
    stored = {}
    for name, one in validate_folder(folder).headers.items():
        head, found, rest = name.partition("multi_modal_projector.")
        if found and head in ("", "model."):
            stored[rest] = (name, one)
    check_shapes(
        f"the projector of {folder} does not fit the parts",
        {rest: (one.shape, f"in {one.file.name}") for rest, (_, one) in stored.items()},
        {name: tuple(weight.shape) for name, weight in projector.state_dict().items()},
        wanted_by="as the recipe's parts and projector have it",
        do="Take both parts from that folder: leave language.part and vision.part out",
    )
    return stored


def load_projector(projector: nn.Module, folder: Path, config: PreTrainedConfig) -> None:
    """Load the projector weights of a model folder into `projector`. Raises PartError as
    `check_projector` does.
    """
    weights = {}
    for rest, (name, one) in check_projector(projector, folder, config).items():
        with safe_open(one.file, "pt") as file:
            weights[rest] = file.get_tensor(name).float()
    projector.load_state_dict(weights)


def _merged_side(config: PreTrainedConfig) -> int:
    """Side of the squares of patches that the projector itself merges into one image token."""
    return int(config.downsample_factor) if isinstance(config, AyaVisionConfig) else 1


def count_image_tokens(config: PreTrainedConfig, pool: int = 1) -> int:
    """Number of prompt positions per image, if its patches are averaged over `pool` x `pool` before
    the projector.
    """
    return num_patches(config.vision_config) // (_merged_side(config) * pool) ** 2


def nested_pool(config: PreTrainedConfig, image_tokens: int | None) -> int:
    """Pooling side with which an image takes `image_tokens`; for None it is 1, no pooling, as
    native consumers read it.

    Raises UsageError for a number that the model was not trained with.
    """
    if image_tokens is None:
        return 1
    sides = getattr(config, NESTED_KEY, [1])
    served: dict[int, int] = {count_image_tokens(config, side): side for side in sides}
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


def make_processor(
    images: Any, tokenizer: Any, config: PreTrainedConfig, extra_rows: int
) -> LlavaProcessor:
    """Processor that counts image tokens as the model does: a pooled token is as wide as `pool`
    patches.
    """
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=config.vision_config.patch_size * _merged_side(config),
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=extra_rows,
        chat_template=tokenizer.chat_template,
    )
