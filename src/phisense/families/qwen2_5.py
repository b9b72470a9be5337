"""Qwen2.5: biases on queries, keys and values, grouped key heads, ChatML with a system message of
its own.

Where the facts are from, for https://huggingface.co/Qwen/Qwen2.5-1.5B-Instruct:
chat template        its tokenizer_config.json, as others quote it; without tools it is ChatML
sizes, rope, ties    its config.json, as others quote it
ids, splitting       its tokenizer.json, as transformers' Qwen2Tokenizer builds it

The sizes from 7B on have 152,064 rows and an output matrix of their own. The positions were
trained for 32,768 tokens.
"""

from __future__ import annotations

from dataclasses import replace

from .base import ConfigDefaults, Family, GGUFFormat, Shape, fixed_gguf_name
from .chatml import CHATML
from .pre_tokenizers import QWEN2
from .separate import GGUF_LAYER_NAMES, LORA_TARGETS, block_shapes, lora_shapes

END_OF_TEXT, START, END = 151643, 151644, 151645
_BIASED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def _block_shapes(width: int, mlp: int, heads: int, key_heads: int, head: int) -> dict[str, Shape]:
    """Those of Llama's class, and the biases."""
    shapes = block_shapes(width, mlp, heads, key_heads, head)
    biases = {f"attn_{one}.bias": (shapes[f"attn_{one}"][1],) for one in "qkv"}
    return {**shapes, **biases}


FAMILY = Family(
    title="Qwen2.5",
    models="a Qwen2.5 model",
    model_type="qwen2",
    model_class="Qwen2ForCausalLM",
    chat=replace(
        CHATML,
        special_tokens=(
            *CHATML.special_tokens,
            *(
                f"<|{name}_{side}|>"
                for name in ("object_ref", "box", "quad", "vision")
                for side in ("start", "end")
            ),
            "<|vision_pad|>",
            "<|image_pad|>",
            "<|video_pad|>",
        ),
        default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    ),
    max_window=32768,
    lora_targets=LORA_TARGETS,
    lora_shapes=lora_shapes,
    config_defaults=ConfigDefaults(
        vocab_size=151936,
        special_token_ids={"bos_token_id": None, "eos_token_id": None, "pad_token_id": None},
    ),
    token_marks={"<|endoftext|>": END_OF_TEXT, "<|im_start|>": START, "<|im_end|>": END},
    gguf=GGUFFormat(
        architecture="qwen2",
        layer_names=GGUF_LAYER_NAMES,
        block_shapes=_block_shapes,
        name=fixed_gguf_name("Qwen with a projector"),
        biased=_BIASED,
    ),
    tokenizer_classes=("Qwen2Tokenizer",),
    tokenizer_patterns=(QWEN2,),
    image_tokens=("<|image_pad|>", "<|vision_pad|>", "<|video_pad|>"),
    known_configs={
        "Qwen/Qwen2.5-1.5B-Instruct": {
            "architectures": ["Qwen2ForCausalLM"],
            "bos_token_id": END_OF_TEXT,
            "dtype": "bfloat16",
            "eos_token_id": END,
            "hidden_act": "silu",
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "max_position_embeddings": 32768,
            "max_window_layers": 21,
            "model_type": "qwen2",
            "num_attention_heads": 12,
            "num_hidden_layers": 28,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
        }
    },
)
