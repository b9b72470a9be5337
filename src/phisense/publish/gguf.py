"""Conversion of a model folder to GGUF: the text model and, if llama.cpp supports the projector,
the vision tower and projector.

model folder                    GGUF                                    source of the names
language model                  its family's, one per quantization      src/models/phi3.cpp
CLIP or SigLIP, LLaVA's MLP     `clip` with projector `mlp`, float16    tools/mtmd/models/llava.cpp
2x2 pooling, linear projector   unsupported: only our engine does it    -

Sources are paths in llama.cpp's repository. Tensors are converted one at a time, so the model is
never in memory as a whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ArtifactError, PartError
from ..families import GGUFFormat, family_of_config
from ..model.projectors.image_tokens import merged_side
from ..model.projectors.native import LLAVA
from ..pipeline.progress import OnEvent, Progress
from .vocabulary import GGUFVocabulary
from .weights import WeightReader

#: Supported quantizations, with `llama_cpp`'s file type number.
QUANTIZATIONS = {"f16": 1, "q8_0": 7, "q4_k_m": 15}
#: Tensor types of the matrices; those whose row length is no multiple of 256 get fallbacks for the
#: k-quants.
TENSOR_TYPES = {"f16": ("F16",), "q8_0": ("Q8_0",), "q4_k_m": ("Q4_K", "Q6_K", "Q5_0", "Q8_0")}

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


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of the file: its source name or its values.

    Matrices are stored as float16, vectors as float32.
    """

    name: str
    shape: tuple[int, ...]
    source: str | np.ndarray[Any, Any]

    @property
    def dtype(self) -> Any:
        """NumPy dtype in the file: float16 for matrices, float32 for vectors and position
        embeddings.
        """
        return np.dtype(
            np.float16
            if len(self.shape) > 1 and not self.name.endswith("position_embd.weight")
            else np.float32
        )


def format_of(config: Any) -> GGUFFormat:
    """How llama.cpp stores the language model of this configuration. Raises PartError if it cannot
    be stored.
    """
    family = family_of_config(config)
    if family.gguf is None:
        raise PartError(
            f"llama.cpp has no {family.title}",
            wanted="a language family with a GGUF format",
            do="Serve the model folder itself",
        )
    return family.gguf


def write_text_model(
    weights: WeightReader,
    config: Any,
    vocabulary: GGUFVocabulary,
    tokenizer: Any,
    path: Path,
    name: str,
    on_event: OnEvent,
) -> None:
    """Write the language model in float16; `config` is its configuration.

    Raises PartError for a RoPE type or a language family that llama.cpp does not support.
    """
    import gguf

    made_as = format_of(config)
    writer = gguf.GGUFWriter(path, made_as.architecture)
    rope = config.rope_parameters
    heads = config.num_attention_heads
    head = config.hidden_size // heads
    writer.add_name(made_as.name(name, vocabulary.pieces))
    writer.add_file_type(QUANTIZATIONS["f16"])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope_dims = int(rope.get("partial_rotary_factor", 1.0) * head)
    writer.add_rope_dimension_count(rope_dims)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    # Chats are shorter than the sliding window, and llama.cpp ignores it anyway.
    writer.add_sliding_window(0)
    factors = _rope_factors(config, rope, rope_dims)
    if factors:
        writer.add_rope_scaling_attn_factors(_attention_factor(config, rope))
    vocabulary.write(writer, tokenizer)
    plan = [_take_weight(weights, "token_embd.weight", "embed_tokens.weight"), *factors]
    for i in range(config.num_hidden_layers):
        plan += [
            _take_weight(weights, f"blk.{i}.{there}.weight", f"layers.{i}.{here}.weight")
            for here, there in made_as.layer_names.items()
        ]
    plan += [_take_weight(weights, "output_norm.weight", "norm.weight")]
    if not config.tie_word_embeddings:
        plan.append(_take_weight(weights, "output.weight", "lm_head.weight"))
    _write(writer, weights, plan, on_event)


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
    writer.add_file_type(QUANTIZATIONS["f16"])
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
    _write(writer, weights, _tower_tensors(weights, seen), on_event)
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


def quantize(source: Path, target: Path, quant: str, threads: int) -> None:
    """Quantize a GGUF file. Raises ArtifactError, with llama.cpp's message, if it fails."""
    import ctypes

    import llama_cpp

    from ..chat.llama_context import capture_errors

    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype = QUANTIZATIONS[quant]
    how.nthread = threads
    with capture_errors() as heard:
        code = llama_cpp.llama_model_quantize(
            str(source).encode(), str(target).encode(), ctypes.byref(how)
        )
    if code != 0:
        raise ArtifactError(
            f"llama.cpp could not quantize to {quant}",
            got=heard.last or f"code {code}",
            do="Free some space, or try q8_0",
        )


def _rope_factors(config: Any, rope: dict[str, Any], dims: int) -> list[PlannedTensor]:
    """LongRoPE divisors of the frequencies, within the original context and beyond it."""
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return []
    if kind != "longrope":
        raise PartError(
            f"llama.cpp's {family_of_config(config).title} knows no such rope",
            got=kind,
            wanted="default or longrope",
        )
    planned = []
    for length in ("long", "short"):
        factors = np.asarray(rope[f"{length}_factor"], np.float32)
        if factors.shape != (dims // 2,):
            raise PartError(
                f"the rope's {length} factors do not fit",
                got=f"{factors.size}",
                wanted=f"{dims // 2}",
            )
        planned.append(PlannedTensor(f"rope_factors_{length}.weight", factors.shape, factors))
    return planned


def _attention_factor(config: Any, rope: dict[str, Any]) -> float:
    """LongRoPE scale of cosines and sines, the same for short and long contexts.

    Formula: transformers, modeling_rope_utils.py.
    """
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    times = (
        rope.get("factor")
        or config.max_position_embeddings / config.original_max_position_embeddings
    )
    return (
        math.sqrt(1 + math.log(times) / math.log(config.original_max_position_embeddings))
        if times > 1
        else 1.0
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
        _take_weight(weights, there, prefix + here)
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
        _take_weight(weights, f"{there}.{kind}", f"{here}.{kind}")
        for there, here in names
        for kind in ("weight", "bias")
    ]
    return plan


def _take_weight(weights: WeightReader, name: str, source: str) -> PlannedTensor:
    return PlannedTensor(name, tuple(weights.shape(source)), source)


def _write(
    writer: Any, weights: WeightReader, plan: list[PlannedTensor], on_event: OnEvent
) -> None:
    """Write the header, then each tensor as it is read."""
    for one in plan:
        writer.add_tensor_info(
            one.name, one.shape, one.dtype, math.prod(one.shape) * one.dtype.itemsize
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, one in enumerate(plan):
        on_event(Progress("writing", done, len(plan), "tensors"))
        values = one.source
        if isinstance(values, str):
            values = (
                weights.read(values)
                .to(torch.float16 if one.dtype == np.float16 else torch.float32)
                .numpy()
            )
        if not np.isfinite(values).all():
            raise ArtifactError(
                f"{one.name} does not fit float16",
                got="a number past 65504, or none at all",
                do="Merge again in float32",
            )
        writer.write_tensor_data(np.ascontiguousarray(values))
    writer.close()
    on_event(Progress("writing", len(plan), len(plan), "tensors"))
