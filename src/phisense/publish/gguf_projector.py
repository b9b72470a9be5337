"""Conversion of the vision tower and projector to llama.cpp's `mmproj`, in float16, if llama.cpp
has a graph for them.

CLIP or SigLIP, LLaVA's MLP     `clip` with projector `mlp`             tools/mtmd/models/llava.cpp
2x2 pooling, linear projector   unsupported: only our engine does it    -
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..model.projectors.image_tokens import merged_side
from ..model.projectors.native import LLAVA
from ..pipeline.progress import OnEvent
from .gguf_file import PlannedTensor, take_weight, write_tensors
from .quantization import QUANTIZATIONS
from .weights import WeightReader

_TOWER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}


def write_projector(
    weights: WeightReader, config: Any, images: Any, path: Path, on_event: OnEvent
) -> str | None:
    """Write the tower and LLaVA's MLP in float16, or nothing; returns the reason for nothing.

    `images` is the image processor.
    """
    why = why_no_projector(config)
    if why is not None:
        return why
    import gguf

    seen = config.vision_config
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_file_type(QUANTIZATIONS["f16"].file_type)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_projection_dim(config.text_config.hidden_size)
    writer.add_vision_image_size(seen.image_size)
    writer.add_vision_patch_size(seen.patch_size)
    writer.add_vision_embedding_length(seen.hidden_size)
    writer.add_vision_feed_forward_length(seen.intermediate_size)
    writer.add_vision_block_count(seen.num_hidden_layers)
    writer.add_vision_head_count(seen.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(seen.layer_norm_eps)
    writer.add_vision_image_mean(list(images.image_mean))
    writer.add_vision_image_std(list(images.image_std))
    writer.add_vision_use_gelu(seen.hidden_act != "quick_gelu")
    layer = config.vision_feature_layer
    layer = layer if layer >= 0 else seen.num_hidden_layers + 1 + layer
    if layer != seen.num_hidden_layers - 1:  # llama.cpp's default layer
        writer.add_array("clip.vision.feature_layer", [layer])
    write_tensors(writer, weights, _tower_tensors(weights, seen), on_event)
    return None


def why_no_projector(config: Any) -> str | None:
    """Why llama.cpp has no graph for the tower and projector, or None."""
    if config.model_type != LLAVA.model_type:
        side = merged_side(config)
        return f"llama.cpp knows no projector that joins {side} x {side} patches as ours does"
    if config.projector_hidden_act != "gelu":
        return (
            "llama.cpp's projector has a GELU between its layers, this one has"
            f" {config.projector_hidden_act}"
        )
    if config.vision_config.model_type not in ("clip_vision_model", "siglip_vision_model"):
        return (
            "llama.cpp's LLaVA reads CLIP and SigLIP towers, this one is"
            f" {config.vision_config.model_type}"
        )
    return None


def projector_caveat(config: Any) -> str | None:
    """A warning for other readers of the `mmproj`, or None."""
    if config.vision_config.model_type != "clip_vision_model":
        return None
    return (
        "llama.cpp reads CLIP's class row as the last patch and loses the first (its issue 25814);"
        " our engine does not"
    )


def _tower_tensors(weights: WeightReader, seen: Any) -> list[PlannedTensor]:
    """The tower's tensors, without the final norm.

    LLaVA reads a hidden layer, but llama.cpp applies the final norm if the file has one.
    """
    prefix = (
        "vision_tower.vision_model."
        if any(n.startswith("vision_tower.vision_model.") for n in weights.vision)
        else "vision_tower."
    )
    wanted = {
        "v.patch_embd.weight": "embeddings.patch_embedding.weight",
        "v.patch_embd.bias": "embeddings.patch_embedding.bias",
        "v.class_embd": "embeddings.class_embedding",
        "v.position_embd.weight": "embeddings.position_embedding.weight",
        "v.pre_ln.weight": "pre_layrnorm.weight",
        "v.pre_ln.bias": "pre_layrnorm.bias",
    }
    # CLIP has no patch bias; SigLIP has no class token and no norm before its layers.
    plan = [
        take_weight(weights, there, prefix + here)
        for there, here in wanted.items()
        if prefix + here in weights.vision
    ]
    names = [
        (f"v.blk.{i}.{there}", f"{prefix}encoder.layers.{i}.{here}")
        for i in range(seen.num_hidden_layers)
        for here, there in _TOWER_NAMES.items()
    ]
    names += [
        (f"mm.{there}", f"multi_modal_projector.linear_{here}") for here, there in ((1, 0), (2, 2))
    ]
    plan += [
        take_weight(weights, f"{there}.{kind}", f"{here}.{kind}")
        for there, here in names
        for kind in ("weight", "bias")
    ]
    return plan
