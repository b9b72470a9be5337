"""Conversion of a model folder's language model to GGUF, in float16, one tensor at a time.

Architecture, names of tensors and their shapes are the family's (`families/`, `GGUFFormat`), as
llama.cpp's src/models/{phi3,llama,qwen2,qwen3}.cpp read them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import PartError
from ..families import GGUFFormat, family_of_config
from ..families.separate import head_width
from ..pipeline.progress import OnEvent
from .gguf_file import PlannedTensor, take_weight, write_tensors
from .quantization import QUANTIZATIONS
from .vocabulary import GGUFVocabulary
from .weights import WeightReader


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
    rope_tensors = _write_sizes(writer, config, made_as.name(name, vocabulary.pieces))
    vocabulary.write(writer, tokenizer)
    plan = [take_weight(weights, "token_embd.weight", "embed_tokens.weight"), *rope_tensors]
    for i in range(config.num_hidden_layers):
        for here, there in made_as.layer_names.items():
            order = _interleave(config, here) if here in made_as.interleaved else None
            for kind in ("weight", "bias") if here in made_as.biased else ("weight",):
                source = f"layers.{i}.{here}.{kind}"
                plan.append(take_weight(weights, f"blk.{i}.{there}.{kind}", source, order))
    plan += [take_weight(weights, "output_norm.weight", "norm.weight")]
    if not config.tie_word_embeddings:
        plan.append(take_weight(weights, "output.weight", "lm_head.weight"))
    write_tensors(writer, weights, plan, on_event)


def write_vocabulary(
    config: Any, vocabulary: GGUFVocabulary, tokenizer: Any, path: Path, name: str
) -> None:
    """Write a file without weights, of which llama.cpp opens the vocabulary alone."""
    import gguf

    made_as = format_of(config)
    writer = gguf.GGUFWriter(path, made_as.architecture)
    _write_sizes(writer, config, made_as.name(name, vocabulary.pieces))
    vocabulary.write(writer, tokenizer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def _write_sizes(writer: Any, config: Any, name: str) -> list[PlannedTensor]:
    """Write the keys of the architecture; returns the tensors that its rope takes."""
    rope, head = config.rope_parameters, head_width(config)
    writer.add_name(name)
    writer.add_file_type(QUANTIZATIONS["f16"].file_type)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if head * config.num_attention_heads != config.hidden_size:
        writer.add_key_length(head)
        writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    dims = int(rope.get("partial_rotary_factor", 1.0) * head)
    writer.add_rope_dimension_count(dims)
    writer.add_rope_freq_base(rope["rope_theta"])
    original = getattr(config, "original_max_position_embeddings", None)
    if original:
        writer.add_rope_scaling_orig_ctx_len(original)
        # Chats are shorter than the sliding window, and llama.cpp ignores it anyway.
        writer.add_sliding_window(0)
    factors = rope_tensors(config, rope, dims)
    if len(factors) == 2:
        writer.add_rope_scaling_attn_factors(_attention_factor(config, rope))
    return factors


def _interleave(config: Any, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The order of rows that llama.cpp's rotary embedding takes: in each head neighbours are turned
    together, and in transformers elements that are half a head apart.
    """
    heads = config.num_attention_heads if ".q_" in name else config.num_key_value_heads

    def order(values: torch.Tensor) -> torch.Tensor:
        halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)

    return order


def rope_tensors(config: Any, rope: dict[str, Any], dims: int) -> list[PlannedTensor]:
    """Divisors of the frequencies: LongRoPE's, within the original context and beyond it, or Llama
    3's.
    """
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return []
    if kind == "llama3":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        scaled, _ = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
        plain = rope["rope_theta"] ** -(torch.arange(0, dims, 2).double() / dims)
        factors = (plain / scaled.double()).float().numpy()
        return [PlannedTensor("rope_freqs.weight", factors.shape, factors)]
    if kind != "longrope":
        raise PartError(
            f"llama.cpp's {family_of_config(config).title} knows no such rope",
            got=kind,
            wanted="default, llama3 or longrope",
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
