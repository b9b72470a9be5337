"""The weights of a source, in a native model."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import PartError
from ..families import context_window
from ..model import Phi3WithProjector
from ..model.assembly import make_generation_config
from ..model.projectors.config import make_processor, native_class, native_config
from ..model.projectors.native import LLAVA, llava_keys
from ..model.tied_head import match_config_to_head
from ..opening.shape_checks import check_shapes
from ..prompt import Prompt
from ..vision.encoders.base import ENCODERS
from ..vision.encoders.loading import load_image_processor, num_patches
from .llama import fuse_weights, to_phi3_config
from .source import Source, is_rewritten


def rebuild_native(found: Source, model: Any, prompt: Prompt, image_id: int) -> Phi3WithProjector:
    """The source's weights in a native model, in their stored dtype. Raises PartError unless all of
    them fit.
    """
    config = found.config
    llama = is_rewritten(config.text_config, prompt.family)
    text = to_phi3_config(config.text_config) if llama else config.text_config
    made = native_config(
        LLAVA,
        text,
        config.vision_config,
        image_id=image_id,
        layer=config.vision_feature_layer,
        strategy=config.vision_feature_select_strategy,
        multimodal_projector_bias=config.multimodal_projector_bias,
        dtype=found.dtype,
        **llava_keys(config.projector_hidden_act, num_patches(config.vision_config)),
    )
    with torch.device("meta"):
        whole = native_class(made)(made)
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
    }  # copied: of a Llama it may be the embedding, which Phi-3 does not share
    whole.load_state_dict(cast, strict=True, assign=True)
    head, table = whole.get_output_embeddings(), whole.get_input_embeddings()
    if text.tie_word_embeddings and torch.equal(head.weight, table.weight):
        whole.tie_weights()
    match_config_to_head(whole, found.base)
    whole.generation_config = make_generation_config(prompt)
    images = load_image_processor(found.base)
    processor = make_processor(images, prompt.tokenizer, made, ENCODERS[found.encoder].extra_rows)
    return Phi3WithProjector(whole.eval(), processor, prompt, context_window(made))
