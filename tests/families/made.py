"""Language parts with random weights, one of each family: the real class, ids, vocabulary size and
splitting; small matrices, grouped key heads, tied embeddings.

`FAMILY_PARTS` names them; `make_language` writes one into a folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from phisense.families import FAMILIES

from ..tiny import PRACTICE

ROWS = 200_064
END_OF_TEXT, ASSISTANT, END, USER, SYSTEM = 199_999, 200_019, 200_020, 200_021, 200_022
IMAGE_ID = 200_029
LINES = (
    "What colour is it? Which colour? Name the colour.",
    "Red. Green. Blue. White. A red square beside a blue circle.",
    "What is in the picture? Describe the picture in detail. I'm 12,345 years old.",
    "system user assistant You are a helpful AI assistant named SmolLM, trained by Hugging Face.",
)


def _train(pre_tokenizer: Any) -> tuple[list[str], list[tuple[str, str]]]:
    """Pieces by id, and merges, of byte-level BPE learned from `LINES`."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator(LINES, trainer)
    learned = sorted(inner.get_vocab().items(), key=lambda item: item[1])
    merges = [tuple(m) for m in json.loads(inner.to_str())["model"]["merges"]]
    return [piece for piece, _ in learned], merges


def build_tokenizer(
    pre_tokenizer: Any, special: Mapping[int, str], rows: int, *, normalizer: Any = None
) -> Tokenizer:
    """Byte-level BPE of `rows` tokens, with `special` tokens at their ids; ids that no merge makes
    are fillers.
    """
    pieces, merges = _train(pre_tokenizer)
    names = iter([*pieces, *(f"filler{i}" for i in range(rows))])
    vocab = {special.get(i) or next(names): i for i in range(rows)}
    whole = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    whole.normalizer = normalizer
    whole.pre_tokenizer = pre_tokenizer
    whole.decoder = decoders.ByteLevel()
    return whole


def _special(*tokens: str) -> list[AddedToken]:
    return [AddedToken(token, special=True, normalized=False) for token in tokens]


def make_tokenizer(*, rows: int = 200_019) -> PreTrainedTokenizerFast:
    """Phi-4-mini's: each special token has its id."""
    (split,) = FAMILIES["phi4_mini"].tokenizer_patterns
    steps = [
        pre_tokenizers.Split(Regex(split), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    special = {END_OF_TEXT: "<|endoftext|>", 200_018: "<|endofprompt|>"}
    whole = build_tokenizer(pre_tokenizers.Sequence(steps), special, rows)
    whole.add_special_tokens(_special(*FAMILIES["phi4_mini"].chat.special_tokens))
    return PreTrainedTokenizerFast(
        tokenizer_object=whole,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )


#: In the order of their ids (the GGUF file that test_own_templates.py names).
SMOLLM2_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>"),
    *("<filename>", "<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>"),
    *("<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>"),
    *("<jupyter_script>", "<empty_output>"),
)


def smollm2_tokenizer(rows: int = 49_152) -> PreTrainedTokenizerFast:
    """SmolLM2's: 17 special tokens, no free row, digits one by one."""
    steps = [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ]
    whole = build_tokenizer(pre_tokenizers.Sequence(steps), dict(enumerate(SMOLLM2_SPECIAL)), rows)
    whole.add_special_tokens(_special(*SMOLLM2_SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=whole,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>", "<repo_name>", "<empty_output>"],
    )


def practice_tokenizer() -> Any:
    """Phi-3's tags in the practice vocabulary."""
    return AutoTokenizer.from_pretrained(PRACTICE / "language")


def qwen_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Qwen's: ids from 151643 on, those of Qwen3 with `<think>`, which is no special token."""
    (split,) = FAMILIES[family].tokenizer_patterns
    steps = [
        pre_tokenizers.Split(Regex(split), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    whole = build_tokenizer(
        pre_tokenizers.Sequence(steps), {}, 151_643, normalizer=normalizers.NFC()
    )
    whole.add_special_tokens(_special(*FAMILIES["qwen2_5"].chat.special_tokens))
    code = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>")
    later: tuple[str, ...] = ("<tool_call>", "</tool_call>", *code, "<|repo_name|>", "<|file_sep|>")
    if family == "qwen3":
        later = (*later, "<tool_response>", "</tool_response>", "<think>", "</think>")
    whole.add_tokens([AddedToken(token, special=False, normalized=False) for token in later])
    return PreTrainedTokenizerFast(
        tokenizer_object=whole, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def config(**changes: Any) -> Phi3Config:
    """Phi-4-mini's: partial rotary embeddings, grouped key heads, tied embeddings, LongRoPE."""
    settings: dict[str, Any] = {
        **_SMALL,
        "vocab_size": ROWS,
        "max_position_embeddings": 8192,
        "original_max_position_embeddings": 1024,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0, 1.3, 1.6],
            "long_factor": [2.0, 3.0, 4.0],
        },
        "sliding_window": 262_144,
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": END_OF_TEXT,
        "pad_token_id": END_OF_TEXT,
    }
    return Phi3Config(**settings | changes)


def phi3_config() -> Phi3Config:
    """Phi-3's with grouped key heads, as none is published."""
    return Phi3Config(
        **_SMALL | {"tie_word_embeddings": False},
        vocab_size=768,
        max_position_embeddings=1024,
        original_max_position_embeddings=1024,
        sliding_window=None,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=None,
    )


def smollm2_config() -> LlamaConfig:
    """SmolLM2's."""
    return LlamaConfig(
        **_SMALL,
        vocab_size=49_152,
        max_position_embeddings=1024,
        rope_theta=100_000.0,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )


def qwen2_5_config() -> Qwen2Config:
    """Qwen2.5's."""
    return Qwen2Config(
        **_SMALL,
        vocab_size=151_936,
        max_position_embeddings=1024,
        rope_theta=1_000_000.0,
        use_sliding_window=False,
        bos_token_id=151_643,
        eos_token_id=151_645,
    )


def qwen3_config() -> Qwen3Config:
    """Qwen3's: heads are wider than the model's share."""
    return Qwen3Config(
        **_SMALL,
        head_dim=16,
        vocab_size=151_936,
        max_position_embeddings=1024,
        rope_theta=1_000_000.0,
        bos_token_id=151_643,
        eos_token_id=151_645,
    )


@dataclass(frozen=True)
class FamilyPart:
    """How a language part of a family is made; `tokenizer` is None for the practice one, and
    `image_id` the id that `<image>` takes.
    """

    config: Callable[[], PreTrainedConfig]
    tokenizer: Callable[[], PreTrainedTokenizerFast] | None
    image_id: int


FAMILY_PARTS = {
    "phi3": FamilyPart(phi3_config, None, 615),
    "phi4_mini": FamilyPart(config, make_tokenizer, IMAGE_ID),
    "smollm2": FamilyPart(smollm2_config, smollm2_tokenizer, 16),
    "qwen2_5": FamilyPart(qwen2_5_config, lambda: qwen_tokenizer("qwen2_5"), 151_665),
    "qwen3": FamilyPart(qwen3_config, lambda: qwen_tokenizer("qwen3"), 151_669),
}


def make_language(folder: Path, family: str = "phi4_mini", *, tied: bool | None = None) -> Path:
    """A language part, with weights large enough that what it reads shows in its logits, biases and
    norms of heads that are not what they are initialized as. Its head is `tied` as its family's
    usually is if None.
    """
    torch.manual_seed(0)
    part = FAMILY_PARTS[family]
    config = part.config()
    if tied is not None:
        config.tie_word_embeddings = tied
    model = FAMILIES[family].load_class()(config)
    for name, weight in model.named_parameters():
        if name.endswith(("_proj.weight", "embed_tokens.weight")) and "mlp" not in name:
            weight.data.mul_(12)
        elif name.endswith(("bias", "q_norm.weight", "k_norm.weight")):
            weight.data.add_(torch.randn_like(weight) * 0.3)
    model.save_pretrained(folder)
    if part.tokenizer is None:
        for path in (PRACTICE / "language").glob("tokenizer*.json"):
            shutil.copy(path, folder)
    else:
        part.tokenizer().save_pretrained(folder)
    return folder
