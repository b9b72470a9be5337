"""A native model's configuration, class and processor."""

from __future__ import annotations

from typing import Any

from transformers import LlavaProcessor, PreTrainedConfig

from ...errors import PartError
from ...families import family_of_config
from ...recipe import Projector
from ...vision.encoders.image_size import nearest_sizes
from ...vision.encoders.loading import num_patches
from .base import PROJECTORS, NativeModel, native_model
from .image_tokens import NESTED_KEY, merged_side


def make_config(
    projector: Projector, text: Any, seen: Any, image_id: int, layer: int, strategy: str
) -> PreTrainedConfig:
    """Build the native model's configuration. Raises PartError if the patches cannot be pooled like
    that, or the tower lacks the layer.
    """
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
            near = nearest_sizes(
                seen.image_size, seen.patch_size, (projector.pool, *projector.nested)
            )
            sizes = " or ".join(f"{one} ({one // seen.patch_size} a side)" for one in near)
            raise PartError(
                f"{pool}x{pool} pooling needs a number of patches a side that {pool} divides",
                got=f"{side}, of {seen.patch_size} pixels each in images of {seen.image_size}",
                do=(
                    f"Set vision.size to {sizes}, change projector.pool or projector.nested, or"
                    " take another vision part"
                ),
            )
    kind = PROJECTORS[projector.kind]
    nested = {NESTED_KEY: list(projector.nested)} if projector.nested else {}
    return native_config(
        kind.native(projector.pool),
        text,
        seen,
        image_id=image_id,
        layer=layer,
        strategy=strategy,
        **kind.keys(projector.pool, num_patches(seen), text.hidden_size),
        **nested,
    )


def native_config(
    native: NativeModel,
    text: Any,
    seen: Any,
    *,
    image_id: int,
    layer: int,
    strategy: str,
    **keys: Any,
) -> PreTrainedConfig:
    """The configuration of a native model with these parts; `keys` are those of its own."""
    # converters and servers select the language model by it
    text.architectures = [family_of_config(text).model_class]
    made: PreTrainedConfig = native.model_class().config_class(
        text_config=text,
        vision_config=seen,
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
        image_token_index=image_id,
        # AyaVision's class ties by default; whether weights are tied is the language part's
        tie_word_embeddings=bool(text.tie_word_embeddings),
        **keys,
    )
    return made


def native_class(config: PreTrainedConfig) -> Any:
    """The transformers class of a merged model with this configuration."""
    return native_model(config).model_class()


def make_processor(
    images: Any, tokenizer: Any, config: PreTrainedConfig, extra_rows: int
) -> LlavaProcessor:
    """Processor that counts image tokens as the model does: a pooled token is as wide as `pool`
    patches.
    """
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=config.vision_config.patch_size * merged_side(config),
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=extra_rows,
        chat_template=tokenizer.chat_template,
    )
