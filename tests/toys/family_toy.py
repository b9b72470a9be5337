"""A language family of another class and another chat format: OLMo 2's class with ChatML."""

from __future__ import annotations

from typing import Any

from phisense.families import ChatFormat, ConfigDefaults, Family


def lora_shapes(text: Any) -> tuple[tuple[int, int], ...]:
    """Queries and outputs are as wide as the model, keys and values as their heads."""
    hidden, mlp = text.hidden_size, text.intermediate_size
    keys = hidden // text.num_attention_heads * text.num_key_value_heads
    square, narrow, up, down = (hidden, hidden), (hidden, keys), (hidden, mlp), (mlp, hidden)
    return (square, narrow, narrow, square, up, up, down)


FAMILY = Family(
    title="Toy",
    models="a toy model",
    model_type="olmo2",
    model_class="Olmo2ForCausalLM",
    chat=ChatFormat(
        tag="<|im_start|>{role}\n",
        end="<|im_end|>",
        after_end="\n",
        end_of_text="<|endoftext|>",
        special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    ),
    max_window=2048,
    lora_targets=(
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    ),
    lora_shapes=lora_shapes,
    rope_types=("default", "llama3"),
    tokenizer_classes=("GemmaTokenizer",),
    config_defaults=ConfigDefaults(
        vocab_size=50304,
        special_token_ids={"bos_token_id": None, "eos_token_id": 50279, "pad_token_id": 1},
    ),
)
