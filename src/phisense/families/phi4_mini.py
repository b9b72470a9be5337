"""Phi-4-mini: Phi-3's class with partial rotary embeddings, grouped key heads and an output matrix
that is the embedding; a vocabulary of its own, and tags with no line break after them.

Where the facts are from, for https://huggingface.co/microsoft/Phi-4-mini-instruct:
chat format          its model card, section "Input Formats"
sizes, rope, ties    its config.json at revision cfbefacb, as others quote it
ids                  the same; llama.cpp lists 200,064 tokens, and 199999 as bos, eos and padding
                     (log in https://github.com/ollama/ollama/issues/11079)
splitting            o200k's regular expression, llama.cpp's `gpt-4o` (src/llama-vocab.cpp)

Its tokenizer.json itself was not at hand: one that splits otherwise is refused when it is opened.
"""

from __future__ import annotations

from dataclasses import replace

from .base import ChatFormat, fixed_gguf_name
from .phi3 import FAMILY as PHI3
from .pre_tokenizers import O200K

_END_OF_TEXT = 199999


assert PHI3.gguf is not None
FAMILY = replace(
    PHI3,
    title="Phi-4-mini",
    models="a Phi-4-mini model",
    chat=ChatFormat(
        tag="<|{role}|>",
        end="<|end|>",
        end_of_text="<|endoftext|>",
        special_tokens=(
            "<|endoftext|>",
            "<|endofprompt|>",
            "<|assistant|>",
            "<|end|>",
            "<|user|>",
            "<|system|>",
            "<|tool|>",
            "<|/tool|>",
            "<|tool_call|>",
            "<|/tool_call|>",
            "<|tool_response|>",
            "<|tag|>",
        ),
    ),
    # config.json has Phi-3's model type; no Phi-3 has as many rows.
    config_marks={"vocab_size": 200064},
    token_marks={"<|endoftext|>": _END_OF_TEXT, "<|assistant|>": 200019, "<|end|>": 200020},
    gguf=replace(PHI3.gguf, name=fixed_gguf_name("Phi-4-mini with a projector")),
    tokenizer_patterns=(O200K,),
    image_tokens=("<|tag|>", "<|endofprompt|>"),
    known_configs={
        "microsoft/Phi-4-mini-instruct": {
            "architectures": ["Phi3ForCausalLM"],
            "bos_token_id": _END_OF_TEXT,
            "dtype": "bfloat16",
            "eos_token_id": _END_OF_TEXT,
            "hidden_act": "silu",
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "max_position_embeddings": 131072,
            "model_type": "phi3",
            "num_attention_heads": 24,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "original_max_position_embeddings": 4096,
            "pad_token_id": _END_OF_TEXT,
            "partial_rotary_factor": 0.75,
            "rms_norm_eps": 1e-05,
            "sliding_window": 262144,
            "tie_word_embeddings": True,
            "vocab_size": 200064,
        }
    },
)
