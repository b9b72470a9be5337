"""Qwen3: norms on queries and keys, heads whose width is not the model's share, ChatML without a
system message of its own. It is trained and asked in the mode without thinking.

Where the facts are from, for https://huggingface.co/Qwen/Qwen3-1.7B:
chat template        its tokenizer_config.json, as TRL keeps it (trl/chat_templates/qwen3.jinja)
sizes, rope, ties    its config.json, as others quote it
ids, splitting       its tokenizer.json, as transformers' Qwen2Tokenizer builds it

Its own template, with `enable_thinking=False`, lets the assistant's tag be followed by an empty
`<think>` block where an answer is to be generated. Where a conversation is complete, the block
stands before the last answer, and is left out before earlier ones. `Prompt` does the same
(`answer_prefix`): so training sees the last answer as it will be asked for, and the earlier ones as
they will be read. The block is never learned, because it is always given. Answers with thoughts in
them are not for this mode: the tokens are special here, so `check` names rows that hold them. Tools
are not rendered.
"""

from __future__ import annotations

from dataclasses import replace

from .base import Family, Shape
from .qwen2_5 import END, END_OF_TEXT
from .qwen2_5 import FAMILY as QWEN2_5
from .separate import GGUF_LAYER_NAMES, block_shapes

_THINK = 151667


def _block_shapes(width: int, mlp: int, heads: int, key_heads: int, head: int) -> dict[str, Shape]:
    """Those of Llama's class, and the norms of a head."""
    norms = {"attn_q_norm": (head,), "attn_k_norm": (head,)}
    return {**block_shapes(width, mlp, heads, key_heads, head), **norms}


assert QWEN2_5.gguf is not None
FAMILY: Family = replace(
    QWEN2_5,
    title="Qwen3",
    models="a Qwen3 model",
    model_type="qwen3",
    model_class="Qwen3ForCausalLM",
    chat=replace(
        QWEN2_5.chat,
        special_tokens=(*QWEN2_5.chat.special_tokens, "<think>", "</think>"),
        default_system="",
        answer_prefix="<think>\n\n</think>\n\n",
    ),
    token_marks={**QWEN2_5.token_marks, "<think>": _THINK},
    gguf=replace(
        QWEN2_5.gguf,
        architecture="qwen3",
        layer_names={
            **GGUF_LAYER_NAMES,
            "self_attn.q_norm": "attn_q_norm",
            "self_attn.k_norm": "attn_k_norm",
        },
        block_shapes=_block_shapes,
        biased=(),
    ),
    known_configs={
        "Qwen/Qwen3-1.7B": {
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False,
            "bos_token_id": END_OF_TEXT,
            "dtype": "bfloat16",
            "eos_token_id": END,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "max_position_embeddings": 40960,
            "max_window_layers": 28,
            "model_type": "qwen3",
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
        }
    },
)
