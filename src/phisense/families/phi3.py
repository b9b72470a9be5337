"""Phi-3 and Phi-3.5: fused matrices, LongRoPE, tags that strip the white space to their right."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from .base import ChatFormat, ConfigDefaults, Family, GGUFFormat, Shape


def lora_shapes(text: Any) -> tuple[tuple[int, int], ...]:
    """(inputs, outputs) of each of `lora_targets`; queries, keys and values are one matrix."""
    hidden, mlp = text.hidden_size, text.intermediate_size
    head = hidden // text.num_attention_heads
    qkv = head * (text.num_attention_heads + 2 * text.num_key_value_heads)
    return (
        (hidden, qkv),
        (head * text.num_attention_heads, hidden),
        (hidden, 2 * mlp),
        (mlp, hidden),
    )


def block_shapes(width: int, mlp: int, heads: int, key_heads: int, head: int) -> dict[str, Shape]:
    """Shape of each tensor of a block, row length first."""
    return {
        "attn_norm": (width,),
        "attn_qkv": (width, (heads + 2 * key_heads) * head),
        "attn_output": (heads * head, width),
        "ffn_norm": (width,),
        "ffn_up": (width, 2 * mlp),
        "ffn_down": (mlp, width),
    }


def gguf_name(folder: str, pieces: Collection[str]) -> str:
    """With "phi-3" in its name, llama.cpp lets special tokens strip the white space after them, and
    then requires a `</s>`.
    """
    return f"Phi-3 with a projector: {folder}" if "</s>" in pieces else "a small language part"


FAMILY = Family(
    title="Phi-3",
    models="a Phi-3 or Phi-3.5 model",
    model_type="phi3",
    model_class="Phi3ForCausalLM",
    chat=ChatFormat(
        tag="<|{role}|>",
        stripped="\n",
        end="<|end|>",
        end_of_text="<|endoftext|>",
        special_tokens=(
            "<|endoftext|>",
            "<|assistant|>",
            *(f"<|placeholder{i}|>" for i in range(1, 5)),
            "<|system|>",
            "<|end|>",
            "<|placeholder5|>",
            "<|placeholder6|>",
            "<|user|>",
        ),
    ),
    # Beyond it LongRoPE changes its factors, and cached keys are wrong.
    max_window=4096,
    lora_targets=(
        "self_attn.qkv_proj",
        "self_attn.o_proj",
        "mlp.gate_up_proj",
        "mlp.down_proj",
    ),
    lora_shapes=lora_shapes,
    config_defaults=ConfigDefaults(
        vocab_size=32064,
        special_token_ids={"bos_token_id": 1, "eos_token_id": 32000, "pad_token_id": 32000},
    ),
    rope_types=("default", "longrope", "su"),
    gguf=GGUFFormat(
        architecture="phi3",
        layer_names={
            "input_layernorm": "attn_norm",
            "self_attn.qkv_proj": "attn_qkv",
            "self_attn.o_proj": "attn_output",
            "post_attention_layernorm": "ffn_norm",
            # gate and up fused in this order, as in llama.cpp's graph
            "mlp.gate_up_proj": "ffn_up",
            "mlp.down_proj": "ffn_down",
        },
        block_shapes=block_shapes,
        name=gguf_name,
    ),
    image_tokens=tuple(f"<|placeholder{i}|>" for i in range(1, 7)),
    known_configs={
        "microsoft/Phi-3.5-mini-instruct": {
            "architectures": ["Phi3ForCausalLM"],
            "bos_token_id": 1,
            "dtype": "bfloat16",
            "eos_token_id": 32000,
            "hidden_act": "silu",
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "max_position_embeddings": 131072,
            "model_type": "phi3",
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 32,
            "original_max_position_embeddings": 4096,
            "pad_token_id": 32000,
            "rms_norm_eps": 1e-05,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "vocab_size": 32064,
        }
    },
)
