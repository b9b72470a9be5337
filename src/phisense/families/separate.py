"""Layers whose queries, keys, values, gates and inputs of the MLP are matrices of their own, as in
Llama's class and those that follow it: names, shapes, and llama.cpp's names of them.
"""

from __future__ import annotations

from typing import Any

from .base import Shape

LORA_TARGETS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)

#: Weights of a layer -> tensors of a block (llama.cpp, gguf-py/gguf/tensor_mapping.py).
GGUF_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def head_width(text: Any) -> int:
    """Width of a head: what the configuration says, else its share of the model's width."""
    told = getattr(text, "head_dim", None)
    return int(told or text.hidden_size // text.num_attention_heads)


def lora_shapes(text: Any) -> tuple[tuple[int, int], ...]:
    """(inputs, outputs) of each of `LORA_TARGETS`; keys and values may have fewer heads."""
    hidden, mlp, head = text.hidden_size, text.intermediate_size, head_width(text)
    queries, keys = head * text.num_attention_heads, head * text.num_key_value_heads
    return (
        (hidden, queries),
        (hidden, keys),
        (hidden, keys),
        (queries, hidden),
        (hidden, mlp),
        (hidden, mlp),
        (mlp, hidden),
    )


def block_shapes(width: int, mlp: int, heads: int, key_heads: int, head: int) -> dict[str, Shape]:
    """Shape of each tensor of a block, row length first."""
    return {
        "attn_norm": (width,),
        "attn_q": (width, heads * head),
        "attn_k": (width, key_heads * head),
        "attn_v": (width, key_heads * head),
        "attn_output": (heads * head, width),
        "ffn_norm": (width,),
        "ffn_gate": (width, mlp),
        "ffn_up": (width, mlp),
        "ffn_down": (mlp, width),
    }
