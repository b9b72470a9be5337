"""The weights of a source, in a native model."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from ..errors import PartError
from ..model import Phi3WithProjector
from ..model.assembly import make_generation_config
from ..model.projectors import make_processor
from ..opening.shape_checks import check_shapes
from ..prompt import Prompt
from ..vision.encoders import ENCODER_FAMILIES, load_image_processor, num_patches
from .llama import fuse_weights, to_phi3_config
from .source import Source


def rebuild_native(found: Source, model: Any, prompt: Prompt, image_id: int) -> Phi3WithProjector:
    """The source's weights in a native model with a Phi-3, in their stored dtype. Raises PartError
    unless all of them fit.
    """
    config = found.config
    llama = config.text_config.model_type == "llama"
    text = to_phi3_config(config.text_config) if llama else config.text_config
    text.architectures = ["Phi3ForCausalLM"]
    made = LlavaConfig(
        text_config=text,
        vision_config=config.vision_config,
        vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        image_token_index=image_id,
        tie_word_embeddings=False,
        projector_hidden_act=config.projector_hidden_act,
        multimodal_projector_bias=config.multimodal_projector_bias,
        image_seq_length=num_patches(config.vision_config),
        dtype=found.dtype,
    )
    with torch.device("meta"):
        whole = LlavaForConditionalGeneration(made)
    try:
        weights = model.state_dict()
        weights = fuse_weights(weights, text.num_hidden_layers) if llama else weights
    except KeyError as error:
        raise PartError(
            f"{found.base} lacks a weight",
            got=f"no {error.args[0]}",
            do="Download the whole folder again",
        ) from error
    check_shapes(
        f"{found.base} does not fill the model it describes",
        {name: (tuple(weight.shape), "in its weights") for name, weight in weights.items()},
        {name: tuple(weight.shape) for name, weight in whole.state_dict().items()},
        wanted_by="as config.json says",
        do="Check that config.json belongs to the weights",
    )
    cast = {
        name: weight.to(found.dtype, copy=name == "lm_head.weight")
        for name, weight in weights.items()
    }  # copied, to untie it from the embedding
    whole.load_state_dict(cast, strict=True, assign=True)
    whole.generation_config = make_generation_config(prompt)
    images = load_image_processor(found.base)
    processor = make_processor(
        images, prompt.tokenizer, made, ENCODER_FAMILIES[found.encoder].extra_rows
    )
    return Phi3WithProjector(whole.eval(), processor, prompt, text.max_position_embeddings)
