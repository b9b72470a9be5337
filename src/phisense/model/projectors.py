"""Which native model holds which projector, how many slots a picture then takes, and a fresh projector's weights.

recipe                        native class                            slots of 24 x 24 patches
kind linear or mlp            LlavaForConditionalGeneration           576
kind mlp, pool 2 or 3         AyaVisionForConditionalGeneration       144 or 64; begins as the average of the patches it joins
kind pixel_shuffle            the same                                the same; begins without a preference
kind mlp, nested [1, 2, 4]    LlavaForConditionalGeneration           576, 144 or 36, chosen at run time

LLaVA's projector has one or two layers and no native class has more of them that stays out of the way (Janus's brings an image
generator along), so `mlp` means two. Nested training is that of Cai et al. 2024 (Matryoshka Multimodal Models, arXiv:2405.17430): the
patches are averaged before the projector, over squares of a side drawn for each sample, and one checkpoint serves every side.
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
from ..parts import open_auto, weight_files
from ..recipe import Projector
from ..vision.encoders import patches

_SET = {
    "model_type": "Set projector.pool as it was trained",
    "vision_feature_layer": "Set vision.layer",
    "vision_feature_select_strategy": "Set vision.encoder",
    "projector_hidden_act": "Set projector.kind",
    "downsample_factor": "Set projector.pool",
}
NESTED = "nested_pooling"  # in the configuration of a model trained at several sides


def configure(projector: Projector, text: Any, seen: Any, image_id: int, layer: int, strategy: str) -> PreTrainedConfig:
    """The native model's configuration. Raises PartError if the patches cannot be pooled so."""
    text.architectures = ["Phi3ForCausalLM"]  # what converters and servers look the language half up by
    shared = {
        "text_config": text,
        "vision_config": seen,
        "vision_feature_layer": layer,
        "vision_feature_select_strategy": strategy,
        "image_token_index": image_id,
        "tie_word_embeddings": False,
    }
    side = seen.image_size // seen.patch_size
    for pool in (projector.pool, *projector.nested):
        if side % pool:
            raise PartError(
                f"{pool}x{pool} pooling needs a number of patches a side that {pool} divides",
                got=f"{side}",
                do="Change projector.pool or projector.nested, or take another vision part",
            )
    if projector.pool > 1:
        return AyaVisionConfig(**shared, downsample_factor=projector.pool, alignment_intermediate_size=2 * text.hidden_size)
    nested = {NESTED: list(projector.nested)} if projector.nested else {}
    act = "linear" if projector.kind == "linear" else "gelu"
    return LlavaConfig(**shared, **nested, projector_hidden_act=act, image_seq_length=patches(seen))


def native_class(config: PreTrainedConfig) -> Any:
    return AyaVisionForConditionalGeneration if isinstance(config, AyaVisionConfig) else LlavaForConditionalGeneration


def fresh_projector(model: Any, config: PreTrainedConfig, kind: str, seed: int) -> nn.Module:
    """The frame's own projector class with new weights."""
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


def load_projector(projector: nn.Module, folder: Path, config: PreTrainedConfig) -> None:
    """Puts the weights of a model folder's projector into `projector`. Raises PartError unless it is such a one, reading the same layer."""
    own = open_auto(AutoConfig, folder)
    facts = ("model_type", "vision_feature_layer", "vision_feature_select_strategy", "projector_hidden_act", "downsample_factor")
    for fact in facts:
        got, wanted = getattr(own, fact, None), getattr(config, fact, None)
        if got != wanted:
            raise PartError(f"the recipe does not fit the projector of {folder}", got=f"{fact} {got}", wanted=f"{wanted}", do=_SET[fact])
    stored = {}
    for path in weight_files(folder):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118, it is no dict
                head, found, rest = name.partition("multi_modal_projector.")
                if found and head in ("", "model."):
                    stored[rest] = file.get_tensor(name).float()
    try:
        projector.load_state_dict(stored)
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise PartError(f"the projector of {folder} does not fit the parts", got=said, do="Take both parts from it") from error


def _joined(config: PreTrainedConfig) -> int:
    """The side of the squares of patches that the projector itself makes one slot of."""
    return int(config.downsample_factor) if isinstance(config, AyaVisionConfig) else 1


def picture_slots(config: PreTrainedConfig, pool: int = 1) -> int:
    """The positions that one picture takes in a prompt, if its patches are averaged over `pool` x `pool` before the projector."""
    return patches(config.vision_config) // (_joined(config) * pool) ** 2


def nested_pool(config: PreTrainedConfig, tokens: int | None) -> int:
    """The side over which patches are averaged so that a picture takes `tokens`; None: as native consumers read it, not at all.

    Raises UsageError for a number that the model was not trained at.
    """
    if tokens is None:
        return 1
    sides = getattr(config, NESTED, [1])
    served: dict[int, int] = {picture_slots(config, side): side for side in sides}
    if tokens not in served:
        raise UsageError(
            "the model was not trained at that many tokens a picture",
            got=f"{tokens}",
            wanted=" or ".join(map(str, served)),
            do="Train with projector.nested to choose at run time" if len(served) == 1 else None,
        )
    return served[tokens]


def average_patches(features: torch.Tensor, pool: int) -> torch.Tensor:
    """Features `(..., P, D)` -> `(..., P / pool^2, D)`: the means over squares of `pool` x `pool` patches."""
    if pool == 1:
        return features
    side = round(features.shape[-2] ** 0.5)
    squares = features.unflatten(-2, (side // pool, pool, side // pool, pool))
    averaged: torch.Tensor = squares.mean((-4, -2)).flatten(-3, -2)
    return averaged


def make_processor(images: Any, tokenizer: Any, config: PreTrainedConfig, extra_rows: int) -> LlavaProcessor:
    """Counts slots as the model does: a pooled slot is as wide as `pool` patches."""
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=config.vision_config.patch_size * _joined(config),
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=extra_rows,
        chat_template=tokenizer.chat_template,
    )
