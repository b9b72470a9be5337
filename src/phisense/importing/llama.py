"""Converts a Phi-3 that was rewritten as a Llama back to Phi-3.

xtuner's LLaVA-Phi-3-mini was converted to Llama, since LLaVA's classes once supported only Llamas:
Phi-3's fused matrices were split, and otherwise the two compute the same.

    q_proj (H, D), k_proj (K, D), v_proj (K, D)    -> qkv_proj (H + 2K, D), in this order
    gate_proj (M, D), up_proj (M, D)               -> gate_up_proj (2M, D)

H: width of all query heads, K: of all key heads, D: hidden width, M: width of the MLP. Rows are
moved, no value is changed.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Phi3Config, PreTrainedConfig

from ..errors import PartError

FUSED_MATRICES = {
    "self_attn.qkv_proj.weight": (
        "self_attn.q_proj.weight",
        "self_attn.k_proj.weight",
        "self_attn.v_proj.weight",
    ),
    "mlp.gate_up_proj.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
}
_SHARED_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_parameters",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def to_phi3_config(text: Any) -> PreTrainedConfig:
    """Configuration of the Phi-3 equivalent to this Llama. Raises PartError if no Phi-3 is
    equivalent to it.
    """
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    unlike = [name for name in ("attention_bias", "mlp_bias") if getattr(text, name, False)]
    unlike += ["head_dim"] if head * text.num_attention_heads != text.hidden_size else []
    kind = (text.rope_parameters or {}).get("rope_type", "default")
    unlike += [f"rope_type {kind}"] if kind not in ("default", "longrope") else []
    if unlike:
        raise PartError(
            "the text part is a Llama that no Phi-3 computes like",
            got=", ".join(unlike),
            wanted="a Phi-3 rewritten as llama",
        )
    shared = {name: getattr(text, name) for name in _SHARED_KEYS}
    window = getattr(text, "original_max_position_embeddings", None) or text.max_position_embeddings
    # Llamas use full attention, whatever sliding_window was left in their configuration.
    return Phi3Config(
        **shared,
        original_max_position_embeddings=window,
        sliding_window=None,
        tie_word_embeddings=False,
    )


def fuse_weights(weights: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """The same weights under Phi-3's names; the language part's begin with
    `model.language_model.layers.N.`.

    Raises KeyError for a missing weight.
    """
    left = dict(weights)
    for number in range(layers):
        layer = f"model.language_model.layers.{number}."
        for fused, pieces in FUSED_MATRICES.items():
            left[layer + fused] = torch.cat([left.pop(layer + piece) for piece in pieces])
    return left
